"""Momentum as a moving average of the iterates, with gradients at the average."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment
from gradkit.transforms.interpolated_averaging import interpolate


def iterate_moving_average(
    inner: optax.GradientTransformation, *, lam: Callable[[Any], Any] | None = None
) -> optax.GradientTransformationExtraArgs:
    """Any optimizer without momentum, with a moving average of its iterates as the parameters.

    Equations, with t = 0, 1, ..., z_0 = x_0, and u_t the update of the optimizer, -eta_t g(x_t) with SGD:

        z_{t+1} = z_t + u_t
        x_{t+1} = (lam(t+1) x_t + z_{t+1}) / (lam(t+1) + 1)

    With SGD this is heavy ball, with the learning rate gamma_t and the momentum beta_t:

        m_t = beta_t m_{t-1} + g_t,   x_{t+1} = x_t - gamma_t m_t
        gamma_t = eta_t / (1 + lam(t+1)),   beta_t = lam(t) eta_{t-1} / (eta_t (1 + lam(t)))

    It is `gk.interpolated_averaging` with b1 = 1, and must be the outermost transformation.

    Args:
      inner: an optimizer; its updates include the learning rate.
      lam: a function from t = 1, 2, ... (a floating point number) to the weight >= 0 of the average; the newest iterate
        has the weight 1. Default None: t / 2 (the handbook's, for convex smooth functions).

    Returns:
      A transformation that needs `params`. State: 1 word per parameter, in float32 or wider, numbers, and the inner
      state. Elementwise: no collective.

    Raises:
      ValueError: a `lam` that is no function; an `inner` that is no transformation; at `update`, missing `params`.

    Example:
      >>> tx, x = iterate_moving_average(optax.sgd(1.0)), jnp.array(0.0)
      >>> round(tx.update(jnp.array(-3.0), tx.init(x), x)[0].item(), 4)  # z is 3, lambda 1 / 2
      2.0

    Reference: Garrigos, Gower. Handbook of Convergence Theorems for (Stochastic) Gradient Methods. 2023, arXiv
    2301.11235, Section 7.
    """
    # With t / 2 and a constant learning rate eta, gamma_t = 2 eta / (t + 3) and beta_t = t / (t + 2).
    own = (lambda t: t / 2) if lam is None else lam
    checks.function("lam", own)

    def share(_: Any, count: jax.Array) -> tuple[jax.Array, Any]:
        t = increment(count).astype(jnp.result_type(float))
        return 1 / (jnp.asarray(checks.scalar("the value of lam", own(t))) + 1), ()

    return interpolate("iterate_moving_average", inner, share, lambda dtype: (), 1.0)


register(
    iterate_moving_average,
    form="wrapper",
    paper=Paper(
        "Handbook of Convergence Theorems for (Stochastic) Gradient Methods", "Garrigos, Gower", 2023, "2301.11235"
    ),
    words=1,
)
