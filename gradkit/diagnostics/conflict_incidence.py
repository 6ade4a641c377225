"""How often the gradients of tasks conflict.

Equations: in the docstring of `conflict_incidence`.
"""

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register

PAPER = Paper(
    "Proactive Gradient Conflict Mitigation in Multi-Task Learning: A Sparse Training Perspective", "Zhang et al.",
    2024, "2411.18615",
)  # fmt: skip


def conflict_incidence(G: jax.Array) -> jax.Array:
    """The part of the pairs of tasks whose gradients conflict, from their inner products.

        #{i < j: <g_i, g_j> < 0} / (m (m - 1) / 2)

    Args:
      G: the Gramian of the gradients, (..., m, m), as `gk.aggregation.gramian` makes it; one per step along leading
        axes, where the result is averaged over them by the user.

    Returns:
      A number in [0, 1] per Gramian, (...); 0 for one task. The paper has it in percent, averaged over steps.

    Raises:
      ValueError: no square matrices.

    Example:
      >>> G = jnp.array([[1.0, -1.0, 2.0], [-1.0, 1.0, 0.5], [2.0, 0.5, 1.0]])
      >>> round(float(conflict_incidence(G)), 4)
      0.3333

    Reference: Zhang et al. Proactive Gradient Conflict Mitigation in Multi-Task Learning: A Sparse Training
    Perspective. 2024, arXiv 2411.18615.
    """
    checks.arrays(G=G)
    G = jnp.asarray(G)
    m = G.shape[-1] if G.ndim >= 2 else 0
    if G.ndim < 2 or G.shape[-2] != m or m == 0:
        raise ValueError(f"conflict_incidence: G must be square matrices (..., m, m), got shape {G.shape}")
    pairs = jnp.sum(jnp.triu(G < 0, 1), axis=(-2, -1), dtype=jnp.int32)
    return pairs.astype(jnp.float32) / max(m * (m - 1) // 2, 1)


register(conflict_incidence, form="function", paper=PAPER, example={"G": ((1.0, -0.5), (-0.5, 1.0))})
