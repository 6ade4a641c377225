"""Dual averaging of gradients that arrive late, in any order: the parameters are a function of their sum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import at_count, counter, increment, scalar, transformation, zeros
from gradkit.engine.norms import global_square
from gradkit.leaves import Method
from gradkit.parallel.local_updates import anchor
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper(
    "Multi-Agent Online Optimization with Delays: Asynchronicity, Adaptivity, and Optimism",
    "Hsieh et al.",
    2020,
    "2012.11579",
)


class DelayedDualAveragingState(NamedTuple):
    """Number of updates, where the radius is a schedule; the initial parameters, the sum of gradients, and L; the
    radius as a metric."""

    count: Any
    start: Any
    total: Any
    lag: jax.Array
    metrics: dict[str, jax.Array]

    exact_fields = ("start",)


def delayed_dual_averaging(
    learning_rate: ScalarOrSchedule, *, initial: Any = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Dual averaging with a step size that accounts for outstanding gradients.

    Equations, with the set S of gradients that have arrived, the initial parameters x_1, the radius R (`learning_rate`)
    and b = initial:

        L_t   = sum_{s in S} |g_s|^2 + 2 sum_{(s, l)} |g_s| |g_l|
        eta_t = R / sqrt(b + L_t)
        x_t   = x_1 - eta_t sum_{s in S} g_s

    The pairs (s, l) in S are those where g_l was outstanding when g_s was computed. Norms are over all leaves. `update`
    gets the gradients as they arrive, and, as an extra argument, `outstanding_norms`: the sum of |g_l| over those l
    that were outstanding when this gradient was computed and have arrived since (default 0: no delays). Nodes only add
    arriving gradients, so they agree for any order.

    Args:
      learning_rate: R, the radius: a guess of the distance to the solution, >= 0; a schedule of it must not increase.
      initial: b > 0, of the order of a squared gradient norm times the delay. Default 1.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter (the initial parameters, the sum) and a scalar.
      Collectives: one number per leaf where parameters are sharded.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx, x = delayed_dual_averaging(1.0, initial=7.0), jnp.array(0.0)
      >>> print(tx.update(jnp.array(3.0), tx.init(x), x)[0])  # 3 / sqrt(7 + 9)
      -0.75

    Reference: Hsieh et al. Multi-Agent Online Optimization with Delays: Asynchronicity, Adaptivity, and Optimism. 2020,
    arXiv 2012.11579. Euclidean and without constraints; how b is chosen from bounds is not part of it.
    """
    return _dual_averaging("delayed_dual_averaging", learning_rate, initial, None)


def optimistic_delayed_dual_averaging(
    learning_rate: ScalarOrSchedule, *, lookahead: Scalar = 2.0, initial: Any = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Delayed dual averaging with a prediction of the gradients that are missing.

    Equations: those of `delayed_dual_averaging`, with other parameters x_t, for which the last gradient g that has
    arrived predicts the missing ones:

        x_t = x_1 - eta_t (sum_{s in S} g_s + lookahead g)

    `outstanding_norms` as in `delayed_dual_averaging`.

    Args:
      learning_rate: R, the radius, >= 0; a schedule of it must not increase.
      lookahead: >= 0, of the order of the number of missing gradients plus 1: the optimistic step is larger than that
        of the update. Default 2, for a delay of one; 0 is `delayed_dual_averaging`.
      initial: b > 0. Default 1.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter and a scalar. Collectives: one number per leaf
      where parameters are sharded.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx, x = optimistic_delayed_dual_averaging(1.0, lookahead=1.0, initial=7.0), jnp.array(0.0)
      >>> print(tx.update(jnp.array(3.0), tx.init(x), x)[0])  # the step once more
      -1.5

    Reference: Hsieh et al. Multi-Agent Online Optimization with Delays: Asynchronicity, Adaptivity, and Optimism. 2020,
    arXiv 2012.11579. The prediction is the last gradient that has arrived.
    """
    checks.real("lookahead", lookahead, "[0, inf)")
    return _dual_averaging("optimistic_delayed_dual_averaging", learning_rate, initial, lookahead)


def _dual_averaging(name: str, radius: Any, initial: Any, lookahead: Any) -> optax.GradientTransformationExtraArgs:
    checks.real("learning_rate", radius, "[0, inf)", schedule=True)
    checks.real("initial", initial, "(0, inf)")

    def rate_at(count: Any) -> Any:
        return at_count(radius, count, f"{name}: learning_rate")

    def published(rate: Any) -> dict[str, jax.Array]:
        return {"last_learning_rate": jnp.array(rate, jnp.float32, copy=True)}

    def init(params: Any) -> DelayedDualAveragingState:
        lag, count = jnp.zeros((), jnp.result_type(float)), counter(callable(radius))
        return DelayedDualAveragingState(count, anchor(params), zeros(params), lag, published(rate_at(count)))

    def update(
        updates: Any,
        state: DelayedDualAveragingState,
        params: Any = None,
        *,
        outstanding_norms: Any = None,
        **extra: Any,
    ) -> tuple[Any, Any]:
        del extra
        square = global_square(updates).astype(state.lag.dtype)
        others = jnp.zeros_like(square) if outstanding_norms is None else scalar(outstanding_norms, square)
        lag = state.lag + square + 2 * jnp.sqrt(square) * others
        rate = rate_at(state.count)
        eta = scalar(rate, lag) / jnp.sqrt(scalar(initial, lag) + lag)
        total = jax.tree.map(jnp.add, state.total, updates)

        def moved(start: jax.Array, S: jax.Array, g: jax.Array, x: jax.Array) -> jax.Array:
            step = eta.astype(S.dtype) * (S if lookahead is None else S + scalar(lookahead, S) * g)
            return (start - x) - step

        u = jax.tree.map(moved, state.start, total, updates, params)
        return u, DelayedDualAveragingState(increment(state.count), state.start, total, lag, published(rate))

    described = Method(name, radius)
    return transformation(
        name,
        init,
        update,
        needs_params=True,
        complex_leaves=True,
        as_params=True,
        described=described,
        complete=True,
    )


NOTES = "for a server or node that gradients reach late"
for _function in (delayed_dual_averaging, optimistic_delayed_dual_averaging):
    register(
        _function,
        form="optimizer",
        paper=PAPER,
        words=2,
        collectives="norms",
        delay="any; longer ones make smaller steps",
        race=Race(1.0, schedule=None),
        notes=NOTES,
    )
