"""Two means that a few examples do not decide: coordinate by coordinate, over the gradients of examples.

winsorized_mean    with r = floor(fraction m) and the values g_(1) <= ... <= g_(m) of a coordinate:
                   the mean of clip(g_i, g_(r + 1), g_(m - r))
median_of_means    the median of the means of consecutive groups of gradients
"""

import math

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import coordinatewise
from gradkit.catalogue import Paper, register
from gradkit.engine.sorting import sorted_rows

PAPER = Paper("On the Generalization Mystery in Deep Learning", "Chatterjee, Zielinski", 2022, "2203.10036")


def winsorized_mean(*, fraction: float = 0.1) -> optax.GradientTransformationExtraArgs:
    """The mean of gradients whose extreme values are replaced, per coordinate, by the nearest that remain.

        r = floor(fraction m),   mean of clip(g_i, g_(r + 1), g_(m - r)),   g_(1) <= ... <= g_(m)

    It suppresses what few examples have in common with no others. With fraction 0 it is the mean.

    Args:
      fraction: share of the values replaced at each end, in [0, 0.5); the paper's c in percent, divided by 100. Default
        0.1.

    Returns:
      A transformation whose updates come in as one gradient per example and leave as one; the first link of a chain. No
      state. m gradients are in memory. Elementwise: no collective.

    Raises:
      ValueError: at construction, a fraction outside its range; when called, leading axes that differ or are missing,
        gradients that do not match the parameters.

    Example:
      >>> tx = winsorized_mean(fraction=0.25)
      >>> g = jnp.array([0.0, 1.0, 2.0, 100.0])
      >>> float(tx.update(g, tx.init(g[0]))[0])  # of 1, 1, 2, 2
      1.5

    Reference: Chatterjee, Zielinski. On the Generalization Mystery in Deep Learning. 2022, arXiv 2203.10036. Order
    statistics are used where the paper speaks of percentiles, so that no interpolation has to be chosen.
    """
    checks.real("fraction", fraction, "[0, 0.5)")
    share = checks.readable(fraction)
    if share is None:
        raise ValueError(
            f"winsorized_mean: fraction must be a Python number, got {fraction!r}; it decides what is sorted"
        )

    def rule(g: jax.Array) -> jax.Array:
        # A product such as 0.29 * 100 is a little below the integer that is meant.
        r = math.floor(share * g.shape[0] + 1e-9)
        if not r:
            return jnp.mean(g, axis=0)
        ordered = sorted_rows(g)
        return jnp.mean(jnp.clip(g, ordered[r][None], ordered[g.shape[0] - 1 - r][None]), axis=0)

    return coordinatewise("winsorized_mean", rule)


def median_of_means(*, groups: int = 3) -> optax.GradientTransformationExtraArgs:
    """The median, per coordinate, of the means of groups of gradients.

        median over j of (g_{j n + 1} + ... + g_{j n + n}) / n,   n = m / groups

    Args:
      groups: how many, >= 1: of consecutive gradients, whose sizes differ by one at most; never more than gradients.
        Default 3 (paper): the middle of three microbatches. With 1 it is the mean, with m the median.

    Returns:
      A transformation whose updates come in as one gradient per example or microbatch and leave as one; the first link
      of a chain. No state. m gradients are in memory. Elementwise: no collective.

    Raises:
      ValueError: at construction, groups outside its range; when called, leading axes that differ or are missing,
        gradients that do not match the parameters.

    Example:
      >>> tx = median_of_means()
      >>> g = jnp.array([1.0, 3.0, 4.0, 4.0, 0.0, 900.0])
      >>> float(tx.update(g, tx.init(g[0]))[0])  # of 2, 4, 450
      4.0

    Reference: Chatterjee, Zielinski. On the Generalization Mystery in Deep Learning. 2022, arXiv 2203.10036.
    """
    groups = checks.integer("groups", groups, 1)

    def rule(g: jax.Array) -> jax.Array:
        n = min(groups, g.shape[0])
        means = jnp.stack([jnp.mean(part, axis=0) for part in jnp.array_split(g, n)])
        ordered = sorted_rows(means)
        return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2

    return coordinatewise("median_of_means", rule)


register(winsorized_mean, form="aggregator", paper=PAPER)
register(median_of_means, form="aggregator", paper=PAPER)
