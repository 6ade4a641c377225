"""Aligned-MTL: the gradients are rotated and scaled until they are orthogonal and of one length.

Equations: in the docstring of `aligned_mtl`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import weights_of_gramian
from gradkit.aggregation.preferences import check_vector, vector_of
from gradkit.aggregation.spectral import kept_eigenpairs
from gradkit.catalogue import Paper, register

PAPER = Paper("Independent Component Alignment for Multi-Task Learning", "Senushkin et al.", 2023, "2305.19000")
MODES = ("min", "median", "rmse")


def balance(G: jax.Array, scale_mode: str) -> jax.Array:
    """The matrix B of the aligned gradients B J, from the Gramian; the identity where G is 0."""
    values, vectors, kept = kept_eigenpairs(G)
    n = jnp.sum(kept, dtype=jnp.int32)
    if scale_mode == "min":
        s = jnp.min(jnp.where(kept, values, jnp.inf))
    elif scale_mode == "median":  # in ascending order those that are kept come last; of two in the middle, the lower
        s = values[jnp.minimum(len(G) - n + (n - 1) // 2, len(G) - 1)]
    else:
        s = jnp.sum(jnp.where(kept, values, 0)) / jnp.maximum(n, 1).astype(values.dtype)
    roots = jnp.where(kept, jnp.sqrt(s / jnp.where(kept, values, jnp.ones_like(values))), jnp.zeros_like(values))
    B = jnp.matmul(vectors * roots[None, :], vectors.T, precision="highest")
    return jnp.where(n > 0, B, jnp.eye(len(G), dtype=B.dtype)).astype(G.dtype)


def aligned_mtl(*, pref_vector: Any = None, scale_mode: str = "min") -> optax.GradientTransformationExtraArgs:
    """Independent component alignment: the condition number of the system of gradients becomes 1.

    With the eigenpairs G = V diag(l) V^T of the Gramian whose l exceeds m eps of the largest, and preferences p:

        s = the least l ("min"),  the lower median of l ("median"),  or their mean ("rmse")
        B = sqrt(s) V diag(1 / sqrt(l)) V^T,    w = B p,    result = w_1 g_1 + ... + w_m g_m

    The rows of B J are orthogonal, all of norm sqrt(s).

    Args:
      pref_vector: p, m finite numbers. Default 1 / m each (torchjd); the authors' code and LibMTL take 1 each, which is
        m times larger.
      scale_mode: "min" (default, paper), "median" or "rmse": the scale that all directions get.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; put it first in a
      chain. No state. Sharded gradients cost one all-reduce of m^2 numbers. Eigenvalues are computed in float64 where
      that is enabled.

    Raises:
      ValueError: at construction, an unknown scale, a preference that is not a vector of numbers; when called, a
        preference of another length, leading axes that differ or are missing, gradients that do not match the
        parameters.

    Example:
      >>> tx = aligned_mtl()
      >>> g = jnp.array([[4.0, 0.0], [0.0, 1.0]])
      >>> print(tx.update(g, tx.init(g[0]))[0])
      [0.5 0.5]

    Reference: Senushkin et al. Independent Component Alignment for Multi-Task Learning. 2023, arXiv 2305.19000. The
    rank is decided with eps of the Gramian's dtype; the authors' code takes that of torch's default dtype.
    """
    checks.choice("scale_mode", scale_mode, MODES)
    check_vector("pref_vector", pref_vector)

    def weigh(G: jax.Array, state: Any, **extra: Any) -> tuple[jax.Array, Any]:
        del extra
        p = vector_of("aligned_mtl", "pref_vector", pref_vector, len(G), G.dtype)
        return jnp.dot(balance(G, scale_mode), p, precision="highest"), state

    return weights_of_gramian("aligned_mtl", weigh)


register(
    aligned_mtl,
    form="aggregator",
    paper=PAPER,
    collectives="gramian",
    golden=("estimators/aligned_mtl", "estimators/aligned_mtl_median"),
)
