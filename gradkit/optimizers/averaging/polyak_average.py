"""Averages of the iterates, computed beside a run without changing it."""

from typing import Any

import jax
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import bias_correction as correction
from gradkit.engine.core import scalar
from gradkit.transforms.running_average import average_iterates
from gradkit.types import Scalar

PAPER = Paper("Optimization Methods for Large-Scale Machine Learning", "Bottou, Curtis, Nocedal", 2016, "1606.04838")


def polyak_average(*, start: int = 0) -> optax.GradientTransformationExtraArgs:
    """The arithmetic mean of the iterates, as the last link of a chain.

    Equation, from step `start` on, with x_t the parameters after step t, and n the number of iterates in the mean:

        mean <- mean + (x_t - mean) / n

    `optax.chain(gk.sgd(rate), gk.polyak_average(start=1000))`; the learning rate should fall slower than 1 / t, as
    t^(-a) with a in (1/2, 1). The mean is `gk.eval_params(state, params)`; before the first average it is the
    parameters themselves.

    Args:
      start: the first step, counted from 0, whose iterate is averaged, >= 0. Default 0.

    Returns:
      A transformation that needs `params` and lets updates through. It must be the LAST link: it averages parameters
      plus updates. State: 1 word per parameter and two counters. Elementwise: no collective.

    Raises:
      ValueError: a `start` that is no integer >= 0; missing `params`.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkit.transforms import eval_params
      >>> tx, x = optax.chain(optax.sgd(1.0), polyak_average()), jnp.array(0.0)
      >>> state = tx.init(x)
      >>> for g in (-1.0, -2.0):
      ...     u, state = tx.update(jnp.array(g), state, x)
      ...     x = x + u
      >>> float(x), float(eval_params(state, x))  # the mean of 1 and 3
      (3.0, 2.0)

    Reference: Bottou, Curtis, Nocedal. Optimization Methods for Large-Scale Machine Learning. 2016, arXiv 1606.04838;
    Polyak, Juditsky. Acceleration of Stochastic Approximation by Averaging. 1992.
    """
    start = checks.integer("start", start)
    return average_iterates(
        "polyak_average", lambda n, x: (1 / n.astype(x.real.dtype)).astype(x.dtype), start=start, from_first=False
    )


def params_ema(decay: Scalar = 0.999, *, bias_correction: bool = True) -> optax.GradientTransformationExtraArgs:
    """The running mean of the iterates, as the last link of a chain.

    Equation, with x_t the parameters after step t, d = decay, and n the number of iterates in the mean:

        mean <- mean + (1 - d) / (1 - d^n) (x_t - mean)        with `bias_correction`
        mean <- mean + (1 - d) (x_t - mean),  mean_0 = x_0     otherwise

    The mean is `gk.eval_params(state, params)`; before the first step it is the parameters themselves.

    Args:
      decay: d, in [0, 1); the mean is over about the last 1 / (1 - d) iterates. Default 0.999.
      bias_correction: whether the first iterates have the weight of a plain mean; otherwise the mean starts at the
        initial parameters, and is close to them for 1 / (1 - d) steps. Default True.

    Returns:
      A transformation that needs `params` and lets updates through. It must be the LAST link: it averages parameters
      plus updates. State: 1 word per parameter and two counters. Elementwise: no collective.

    Raises:
      ValueError: a `decay` outside its range; missing `params`.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkit.transforms import eval_params
      >>> tx, x = optax.chain(optax.sgd(1.0), params_ema(0.5)), jnp.array(0.0)
      >>> state = tx.init(x)
      >>> for g in (-1.0, -2.0):
      ...     u, state = tx.update(jnp.array(g), state, x)
      ...     x = x + u
      >>> round(float(eval_params(state, x)), 4)  # (1 + 2 * 3) / 3
      2.3333

    Reference: Bottou, Curtis, Nocedal. Optimization Methods for Large-Scale Machine Learning. 2016, arXiv 1606.04838.
    """
    checks.switch(bias_correction=bias_correction)
    checks.real("decay", decay, "[0, 1)")

    def share(n: jax.Array, x: jax.Array) -> Any:
        fresh = 1 - scalar(decay, x.real)
        return (fresh / correction(decay, n, x)).astype(x.dtype) if bias_correction else scalar(fresh, x)

    return average_iterates("params_ema", share, from_first=not bias_correction)


register(polyak_average, form="primitive", paper=PAPER, words=1, notes="the last link; read with gk.eval_params")
register(params_ema, form="primitive", paper=PAPER, words=1, notes="the last link; read with gk.eval_params")
