"""Krum: of the gradients of many workers, that with the nearest neighbours.

Equations: in the docstring of `krum`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import weights_of_gramian
from gradkit.catalogue import Paper, Tasks, register

PAPER = Paper(
    "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", "Blanchard et al.", 2017, "1703.02757"
)


def krum(*, n_byzantine: int = 1, n_selected: int = 1, squared: bool = True) -> optax.GradientTransformationExtraArgs:
    """Krum and multi-Krum: gradients far from the others, such as those of faulty workers, have no influence.

        D_ij = |g_i - g_j|^2       (|g_i - g_j| with squared=False)
        score_i = sum of the m - n_byzantine - 2 smallest D_ij with j != i
        result = mean of the n_selected gradients with the lowest scores; of equal scores, the first

    Args:
      n_byzantine: f, how many gradients may be arbitrary, >= 0. m >= f + 3 must come; the theorem of the paper asks
        m >= 2 f + 3. Default 1.
      n_selected: gradients that are averaged, from 1 to m. Default 1 (Krum); more are multi-Krum.
      squared: whether distances are squared. Default True (paper); torchjd does not.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; put it first in a
      chain. No state. Sharded gradients cost one all-reduce of m^2 numbers.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, too few gradients, leading axes that
        differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = krum()
      >>> g = jnp.array([[1.0], [1.1], [9.0], [0.8]])
      >>> print(tx.update(g, tx.init(g[0]))[0])
      [1.]

    Reference: Blanchard et al. Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent. 2017,
    arXiv 1703.02757. torchjd adds up distances that are not squared, which selects other gradients.
    """
    n_byzantine = checks.integer("n_byzantine", n_byzantine, 0)
    n_selected = checks.integer("n_selected", n_selected, 1)
    checks.switch(squared=squared)

    def weigh(G: jax.Array, state: Any, **extra: Any) -> tuple[jax.Array, Any]:
        del extra
        m = len(G)
        fewest = max(n_byzantine + 3, n_selected)
        if m < fewest:
            raise ValueError(
                f"krum: {m} gradients came, and n_byzantine={n_byzantine}, n_selected={n_selected} need {fewest} or "
                "more; write smaller ones"
            )
        norms = jnp.diagonal(G)
        D = jnp.maximum(norms[:, None] + norms[None, :] - 2 * G, 0)
        D = D if squared else jnp.sqrt(D)
        others = jnp.sort(jnp.where(jnp.eye(m, dtype=bool), jnp.inf, D), axis=1)
        scores = jnp.sum(others[:, : m - n_byzantine - 2], axis=1)
        chosen = jnp.argsort(scores, stable=True)[:n_selected]
        weights = jnp.zeros((m,), G.dtype).at[chosen].set(1 / n_selected)
        return jnp.where(jnp.isnan(scores).any(), jnp.nan, weights), state

    return weights_of_gramian("krum", weigh)


register(
    krum,
    form="aggregator",
    paper=PAPER,
    collectives="gramian",
    golden=("estimators/krum",),
    tasks=Tasks(4),
    notes="robust to faulty workers; needs n_byzantine + 3 gradients or more",
)
