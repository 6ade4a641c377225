"""A weighted sum of running means of the gradient over a denominator, which QHM, QHAdam, AdEMAMix and MT-DAO share."""

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.engine import core
from gradkit.engine.accumulators import ema, ema_of_square, none_for_0, over, plus
from gradkit.engine.core import (
    abs_sq,
    at_count,
    cast,
    counter,
    increment,
    inside,
    once_per_dtype,
    pair,
    scalar,
    transformation,
    weights,
    zeros,
)
from gradkit.types import DTypeLike, Scalar, ScalarOrSchedule


class Mean(NamedTuple):
    """One running mean: its decay and its weight (numbers or schedules), and whether it is corrected for its start,
    which needs a decay that is a number; the method's names of the two, for messages."""

    decay: Any
    weight: Any = 1.0
    bias_correction: bool = False
    called: tuple[str, str] = ("a decay", "a weight")


@functools.partial(jax.jit, inline=True)
def _weighted_sum(g: jax.Array, momenta: Sequence[jax.Array], w_0: Any, shares: Any, by: Any) -> jax.Array:
    """The sum of w_0 g, where w_0 is given, and the running means, each with its weight (None for 1) and correction."""
    terms = [] if w_0 is None else [scalar(w_0, g) * g]
    for weight, c, u in zip(shares, by, momenta, strict=True):
        u = cast(u, g.dtype) if weight is None else scalar(weight, g) * cast(u, g.dtype)
        terms.append(u if c is None else u / scalar(c, g))
    return functools.reduce(operator.add, terms)


@functools.partial(jax.jit, inline=True)
def _root(v: jax.Array, g: jax.Array, c: Any, nu: Any, eps: Any, eps_root: Any) -> jax.Array:
    """sqrt((1 - nu) |g|^2 + nu v / c + eps_root) + eps; nu and 1 - nu as a pair, None for 1 and 0; eps None for 0."""
    square = v if c is None else v / c
    if nu is not None:
        share, rest = weights(nu, v)
        square = rest * abs_sq(g) + share * square
    return plus(jnp.sqrt(plus(square, eps_root)), eps)


class WeightedMomentaState(NamedTuple):
    """Number of updates made (None where no weight depends on it); the running means, one tree per decay; the state of
    the denominator."""

    count: Any
    momenta: tuple[Any, ...]
    denominator: Any


def weighted_momenta(
    method: str,
    means: Sequence[Mean],
    gradient_weight: ScalarOrSchedule = 0.0,
    *,
    denominator: optax.GradientTransformation | None = None,
    positive: bool = False,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A weighted sum of the gradient and its running means, over a denominator.

    Equations, with one running mean u_j per decay b_j, and d the denominator's result for the same g (1 without one):

        u_j <- b_j u_j + (1 - b_j) g
        c_j = 1 - b_j^t                               where the mean is corrected for its start at 0, else 1
        direction = (w_0 g + sum_j w_j u_j / c_j) / d

    Where d = 0 the direction is 0.

    Args:
      method: the public name, for messages.
      means: the running means; their hyperparameters are checked by the method.
      gradient_weight: w_0, a number or a schedule.
      denominator: gradient -> numbers >= 0 of its shape. None: 1.
      positive: whether the denominator is never 0, so that the case needs no check.
      mu_dtype: dtype in which the means are kept. Default float32, or float64 for float64 parameters.
    """
    below = None if denominator is None else inside(denominator, "denominator")
    scheduled = any(map(callable, (gradient_weight, *(x for mean in means for x in (mean.decay, mean.weight)))))
    counted = scheduled or any(mean.bias_correction for mean in means)

    def init(params: optax.Params) -> WeightedMomentaState:
        momenta = tuple(zeros(params, mu_dtype) for _ in means)
        return WeightedMomentaState(counter(counted), momenta, below.init(params) if below else None)

    def update(updates: Any, state: WeightedMomentaState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        count = increment(state.count)

        def follow(mean: Mean, momentum: Any) -> Any:
            decay = at_count(mean.decay, state.count, f"{method}: {mean.called[0]}")
            return jax.tree.map(lambda u, g: ema(u, g, decay), momentum, updates)

        momenta = tuple(map(follow, means, state.momenta))
        shares = [at_count(mean.weight, state.count, f"{method}: {mean.called[1]}") for mean in means]
        w_0 = at_count(gradient_weight, state.count, f"{method}: the weight of the gradient")
        with_gradient = not (isinstance(w_0, int | float) and w_0 == 0)

        def corrected(g: jax.Array) -> list[Any]:
            """The divisors c_j of the running means, None for 1."""
            return [core.bias_correction(mean.decay, count, g) if mean.bias_correction else None for mean in means]

        corrections = once_per_dtype(corrected)
        factors = [None if type(w) in (int, float) and w == 1 else w for w in shares]

        def numerator(g: jax.Array, *momenta: jax.Array) -> jax.Array:
            return _weighted_sum(g, momenta, w_0 if with_gradient or not momenta else None, factors, corrections(g))

        direction = jax.tree.map(numerator, updates, *momenta)
        if below is None:
            return direction, WeightedMomentaState(count, momenta, None)
        d, state_below = below.update(updates, state.denominator, params, **extra)
        direction = jax.tree.map(lambda x, y: x / cast(y, x.dtype) if positive else over(x, y), direction, d)
        return direction, WeightedMomentaState(count, momenta, state_below)

    return transformation(method, init, update, complex_leaves=True)


class RootMeanSquareState(NamedTuple):
    """Number of updates made (None without bias correction), and the running mean of squares."""

    count: Any
    v: Any


def root_mean_square(
    *, b2: Scalar = 0.999, eps: Scalar = 1e-8, eps_root: Scalar = 0.0, bias_correction: bool = True, nu: Scalar = 1.0
) -> optax.GradientTransformation:
    """The root of the running mean of squared gradients: a denominator, not a link of a chain.

    Equations:

        v <- b2 v + (1 - b2) |g|^2
        d = sqrt((1 - nu) |g|^2 + nu v / c + eps_root) + eps          c = 1 - b2^t, or 1 without bias_correction

    Args:
      b2: decay of the mean, in [0, 1). Default 0.999.
      eps: added to the root, >= 0. Default 1e-8.
      eps_root: added under the root, >= 0. Default 0.
      bias_correction: whether the mean is divided by 1 - b2^t. Default True.
      nu: weight of the mean against the current square, in [0, 1]. Default 1, only the mean.

    Returns:
      A pair (init, update) that replaces a gradient by its denominator. State: 1 word per parameter, and a counter
      with bias correction.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = root_mean_square(eps=0.0)
      >>> g = jnp.array([3.0, -0.5])
      >>> print(tx.update(g, tx.init(g))[0].round(4))
      [3.  0.5]
    """
    checks.switch(bias_correction=bias_correction)
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    checks.real("eps_root", eps_root, "[0, inf)")
    checks.real("nu", nu, "[0, 1]")
    mean_alone = isinstance(nu, int | float) and nu == 1
    added = none_for_0(eps), none_for_0(eps_root)

    def init(params: optax.Params) -> RootMeanSquareState:
        return RootMeanSquareState(counter(bias_correction), zeros(params, real=True))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, RootMeanSquareState]:
        del params
        count = increment(state.count)
        c2 = once_per_dtype(lambda v: core.bias_correction(b2, count, v) if bias_correction else None)
        share = None if mean_alone else pair(nu)
        v = jax.tree.map(lambda v, g: ema_of_square(v, g, b2), state.v, updates)
        d = jax.tree.map(lambda v, g: _root(v, g, c2(v), share, *added), v, updates)
        return d, RootMeanSquareState(count, v)

    return optax.GradientTransformation(init, update)
