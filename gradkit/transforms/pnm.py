"""Positive-negative momentum: two running means of alternating gradients, one added and one subtracted."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine import core
from gradkit.engine.accumulators import ema
from gradkit.engine.core import divide, increment, inside, scalar, transformation, zeros
from gradkit.types import DTypeLike, Scalar

PAPER = Paper(
    "Positive-Negative Momentum: Manipulating Stochastic Gradient Noise to Improve Generalization",
    "Xie et al.",
    2021,
    "2103.17042",
)


class ScaleByPnmState(NamedTuple):
    """Number of updates made, the running means of the gradients of odd and of even steps, and the state of the
    denominator (None without one)."""

    count: jax.Array
    mu_odd: Any
    mu_even: Any
    denominator: Any


def scale_by_pnm(
    *,
    b0: Scalar = 0.9,
    b1: Scalar = 0.9,
    bias_correction: bool = True,
    denominator: optax.GradientTransformation | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces updates by the difference of two running means, of the odd and of the even steps.

    Equations, with d_t the result of `denominator` for g_t, or 1:

        m_t = b1^2 m_{t-2} + (1 - b1^2) g_t,   m_0 = m_{-1} = 0
        u_t = ((1 + b0) m_t - b0 m_{t-1}) / sqrt((1 + b0)^2 + b0^2) / (1 - b1^t) / d_t

    The two means share no gradient, so their noises are independent, and b0 sets the noise of a step relative to its
    length; b0 = -1/2, half of each mean, has the least noise.

    Args:
      b0: multiple of the other mean that is subtracted, > -1. Default 0.9 (Ranger21; the paper's code has 1). 0 is the
        running mean of every second gradient, -1/2 the mean of both.
      b1: decay per step, in [0, 1); each mean decays by its square at every second step. Default 0.9 (official code).
      bias_correction: whether to divide by 1 - b1^t. Default True (the authors' AdaPNM, Ranger21).
      denominator: a transformation from the gradient to the divisor of the difference, such as `root_mean_square`;
        where the divisor is 0 the update is 0. Default None: 1.
      mu_dtype: dtype in which both means are kept. Default float32.

    Returns:
      A transformation. State: 2 words per parameter, a counter, and the state of the denominator. Elementwise: no
      collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = scale_by_pnm(b0=-0.5, b1=0.5, bias_correction=False)
      >>> g = jnp.array(1.0)
      >>> state = tx.init(g)
      >>> for _ in range(3):
      ...     updates, state = tx.update(g, state)
      >>> round(float(updates), 4)  # (0.9375 + 0.75) / 2 / sqrt(1/2)
      1.1932

    Reference: Xie et al. Positive-Negative Momentum: Manipulating Stochastic Gradient Noise to Improve Generalization.
    2021, arXiv 2103.17042; as a part of Ranger21: Wright, Demeure. Ranger21: a synergistic deep learning optimizer.
    2021, arXiv 2106.13731. The correction is 1 - b1^t, although the means have decay b1^2 (all codes); the
    authors' form for SGD has none: `bias_correction=False`.
    """
    checks.switch(bias_correction=bias_correction)
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("b0", b0, "(-1, inf)")
    checks.real("b1", b1, "[0, 1)")
    below = None if denominator is None else inside(denominator, "denominator")

    def init(params: optax.Params) -> ScaleByPnmState:
        started = below.init(params) if below else None
        return ScaleByPnmState(jnp.zeros((), jnp.int32), zeros(params, mu_dtype), zeros(params, mu_dtype), started)

    def update(updates: Any, state: ScaleByPnmState, params: Any = None, **extra: Any) -> tuple[Any, ScaleByPnmState]:
        count = increment(state.count)

        odd = count % 2 == 1

        def follow(active: jax.Array, mu: Any) -> Any:
            def mean(m: jax.Array, g: jax.Array) -> jax.Array:
                square = scalar(b1, g) ** 2
                return jnp.where(active, ema(m, g, square), m)

            return jax.tree.map(mean, mu, updates)

        # Each mean keeps its field: exchanging the two fields would copy both at every step.
        mu_odd, mu_even = follow(odd, state.mu_odd), follow(~odd, state.mu_even)

        c1 = core.bias_corrections(b1, count)

        def difference(m_odd: jax.Array, m_even: jax.Array, g: jax.Array) -> jax.Array:
            b, m_odd, m_even = scalar(b0, g), m_odd.astype(g.dtype), m_even.astype(g.dtype)
            u = (1 + b) * jnp.where(odd, m_odd, m_even) - b * jnp.where(odd, m_even, m_odd)
            u = u * (1 / ((1 + b) ** 2 + b**2) ** 0.5)
            return u / c1(g).astype(g.dtype) if bias_correction else u

        direction = jax.tree.map(difference, mu_odd, mu_even, updates)
        if below is None:
            return direction, ScaleByPnmState(count, mu_odd, mu_even, None)
        d, state_below = below.update(updates, state.denominator, params, **extra)
        direction = jax.tree.map(lambda u, d: divide(u, d.astype(u.dtype)), direction, d)
        return direction, ScaleByPnmState(count, mu_odd, mu_even, state_below)

    return transformation("scale_by_pnm", init, update, complex_leaves=True)


register(scale_by_pnm, form="primitive", paper=PAPER, words=2)
