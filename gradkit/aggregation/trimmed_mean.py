"""The coordinatewise trimmed mean: in every coordinate, without the largest and the smallest values.

Equations: in the docstring of `trimmed_mean`.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import coordinatewise
from gradkit.catalogue import Paper, Tasks, register
from gradkit.engine.sorting import sorted_rows

PAPER = Paper(
    "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", "Yin et al.", 2018, "1803.01498"
)


def trimmed_mean(*, trim_number: int = 1) -> optax.GradientTransformationExtraArgs:
    """The mean of every coordinate without its extremes: robust to as many faulty workers.

    With x_(1) <= ... <= x_(m) the m values of a coordinate, sorted, and b = trim_number:

        result = (x_(b + 1) + ... + x_(m - b)) / (m - 2 b)

    With b = (m - 1) / 2 it is the median of every coordinate.

    Args:
      trim_number: b, the values that are left out at each end, >= 0; m >= 2 b + 1 gradients must come. Default 1.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; put it first in a
      chain. No state. Elementwise: no collective; all m gradients are in memory.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, too few gradients, leading axes that
        differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = trimmed_mean()
      >>> g = jnp.array([[1.0, 5.0], [2.0, -9.0], [6.0, 4.0]])
      >>> print(tx.update(g, tx.init(g[0]))[0])
      [2. 4.]

    Reference: Yin et al. Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates. 2018,
    arXiv 1803.01498. The paper leaves out a fraction of the workers; this leaves out a number, as torchjd.
    """
    trim_number = checks.integer("trim_number", trim_number, 0)

    def rule(x: jax.Array) -> jax.Array:
        m = len(x)
        if m < 2 * trim_number + 1:
            raise ValueError(
                f"trimmed_mean: {m} gradients came, and trim_number={trim_number} needs {2 * trim_number + 1} or more; "
                f"write trim_number={(m - 1) // 2} or less"
            )
        if not trim_number:
            return jnp.mean(x, axis=0)
        kept = sorted_rows(x)[trim_number : m - trim_number]
        return functools.reduce(jnp.add, kept) / len(kept)

    return coordinatewise("trimmed_mean", rule)


register(
    trimmed_mean,
    form="aggregator",
    paper=PAPER,
    golden=("estimators/trimmed_mean",),
    tasks=Tasks(3),
    notes="robust to faulty workers; m gradients in memory",
)
