"""The rate of a running average between the plain mean and exponential forgetting."""

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.phases import Schedule, real_array, unending
from gradkit.types import Scalar

PAPER = Paper(
    "Overcoming Recency Bias of Normalization Statistics in Continual Learning: Balance and Adaptation",
    "Lyu et al.",
    2023,
)


def balanced_ema_rate(momentum: Scalar = 0.1, kappa: Scalar = 0.5) -> Schedule:
    """The weight of the newest value in a running average, from the first value to a constant.

        e_1 = momentum^kappa,    e_t = e_{t-1} / (e_{t-1} + (1 - momentum)^kappa)
        running <- (1 - e_t) running + e_t new
        1 / e_t = momentum^{-kappa} q^{t-1} + (1 - q^{t-1}) / (1 - q),    q = (1 - momentum)^kappa

    kappa = 0 is 1 / t, the plain mean of all values; kappa = 1 is the constant `momentum`; the limit is 1 - q. Of any
    average: of parameters, or of the statistics of batch normalization (the variance is that of the population).

    Args:
      momentum: the constant rate that it is balanced against, in (0, 1). Default 0.1 (PyTorch's batch normalization).
      kappa: share of forgetting, in [0, 1]. Default 0.5.

    Returns:
      A schedule step -> rate; step 0 has e_1. No state, no collective.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> print(balanced_ema_rate(0.5, 0.0)(jnp.arange(4)).round(3))
      [1.    0.5   0.333 0.25 ]

    Reference: Lyu et al. Overcoming Recency Bias of Normalization Statistics in Continual Learning: Balance and
    Adaptation. 2023 (AdaB2N). The closed form takes the place of the recursion. The other half of the paper, learned
    concentrations that weigh the statistics of a batch by task, is a layer and is not here.
    """
    checks.real("momentum", momentum, "(0, 1)")
    checks.real("kappa", kappa, "[0, 1]")

    def at(since: jax.Array) -> jax.Array:
        m, k, n = real_array(momentum), real_array(kappa), real_array(since)
        log = k * jnp.log1p(-m)
        small = jnp.where(log == 0, -jnp.ones_like(log), log)
        terms = jnp.where(log == 0, n, jnp.expm1(n * small) / jnp.expm1(small))
        return 1 / (m**-k * jnp.exp(n * log) + terms)

    return unending(at)


register(balanced_ema_rate, form="schedule", paper=PAPER, golden=("second_shelf/balanced_ema_rate",))
