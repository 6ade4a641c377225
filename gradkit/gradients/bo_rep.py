"""BO-REP: bilevel steps of constant length, with a lower variable that is refined now and then."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import at_count, increment, scalar
from gradkit.engine.norms import global_norm
from gradkit.gradients.bilevel_directions import Bilevel, BilevelState, bilevel_directions, stepped
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper(
    "Bilevel Optimization under Unbounded Smoothness: A New Algorithm and Convergence Analysis",
    "Hao, Gong, Liu",
    2024,
    "2401.09587",
)
TINY = 1e-10


def bo_rep(
    upper: Callable[[Any, Any, Any], Any],
    lower: Callable[[Any, Any, Any], Any],
    *,
    learning_rate: ScalarOrSchedule = 1e-4,
    lower_learning_rate: ScalarOrSchedule = 2e-3,
    linear_learning_rate: ScalarOrSchedule = 1e-2,
    momentum: Scalar = 0.9,
    update_interval: int = 3,
    lower_steps: int = 3,
) -> Bilevel:
    """Bilevel optimization with normalized momentum for the upper variable, for losses whose smoothness is not bounded.

        every `update_interval`-th step, from the first on, lower_steps times:    y <- y - lower_learning_rate grad_y g
        v <- v - linear_learning_rate d_v
        m <- momentum m + (1 - momentum) d_x,    x <- x - learning_rate m / (|m| + 1e-10)

    d_v and d_x as of `bilevel_directions`, both at (x, v) before the step and y after it. |m| runs over all of x: every
    step of x has the length learning_rate.

    Args:
      upper: F, (x, y, batch) -> scalar.
      lower: g, (x, y, batch) -> scalar.
      learning_rate: length of a step of x, >= 0, or a schedule. Default 1e-4 (official code).
      lower_learning_rate: of y, >= 0, or a schedule. Default 2e-3 (official code).
      linear_learning_rate: of v, >= 0, or a schedule. Default 1e-2 (official code).
      momentum: in [0, 1). Default 0.9 (official code). m begins at 0 and is not corrected for it: its length does not
        matter.
      update_interval: steps between refinements of y, >= 1. Default 3 (official code).
      lower_steps: gradient steps of a refinement, >= 1. Default 3 (official code).

    Returns:
      `Bilevel`. init(x, y, batches=None) -> state, after one gradient step of y for every entry of the leading axis of
      `batches` (the many steps at the start of the paper). step(state, upper_batch=None, lower_batch=None,
      lower_batches=None) -> (state, F): of `lower_batches` every leaf has a leading axis of lower_steps; without it all
      of them are on `lower_batch`. State: x, y, v, and m like x.

    Raises:
      ValueError: an argument outside its range; trees that do not match.

    Example:
      >>> upper, lower = (lambda x, y, _: (y - 1.0) ** 2 / 2), (lambda x, y, _: (y - x) ** 2 / 2)
      >>> rates = dict(learning_rate=0.1, lower_learning_rate=1.0, linear_learning_rate=1.0)
      >>> bo = bo_rep(upper, lower, **rates, update_interval=1)
      >>> state, step = bo.init(jnp.array(3.0), jnp.array(0.0)), jax.jit(bo.step)
      >>> for _ in range(3):
      ...     state, value = step(state)
      >>> round(float(state.x), 3), round(float(value), 3)  # the first step has v = 0, and no direction
      (2.8, 1.805)

    Reference: Hao, Gong, Liu. Bilevel Optimization under Unbounded Smoothness: A New Algorithm and Convergence
      Analysis.
    2024, arXiv 2401.09587. As in the released code y is not projected onto a ball nor averaged, as the paper has it.
    The code sums the gradients of the lower steps instead of taking one after another, and leaves out grad_x F.
    """
    rates = {"learning_rate": learning_rate, "lower_learning_rate": lower_learning_rate}
    for name, value in {**rates, "linear_learning_rate": linear_learning_rate}.items():
        checks.real(name, value, "[0, inf)", schedule=True)
    checks.real("momentum", momentum, "[0, 1)")
    update_interval = checks.integer("update_interval", update_interval, 1)
    lower_steps = checks.integer("lower_steps", lower_steps, 1)
    checks.function("upper", upper)
    checks.function("lower", lower)
    directions = bilevel_directions(upper, lower)

    def descended(x: Any, y: Any, rate: Any, batch: Any) -> Any:
        return stepped(y, rate, jax.grad(lower, 1)(x, y, batch))

    def init(x: Any, y: Any, batches: Any = None) -> BilevelState:
        x, y = (jax.tree.map(lambda a: jnp.array(a, copy=True), tree) for tree in (x, y))
        count = jnp.zeros((), jnp.int32)
        if batches is not None:
            rate = at_count(lower_learning_rate, count, "lower_learning_rate")
            y, _ = jax.lax.scan(lambda y, batch: (descended(x, y, rate, batch), None), y, batches)
        return BilevelState(count, x, y, *(jax.tree.map(jnp.zeros_like, tree) for tree in (y, x)))

    def step(
        state: BilevelState, upper_batch: Any = None, lower_batch: Any = None, lower_batches: Any = None
    ) -> tuple[BilevelState, jax.Array]:
        count, x, y, v, m = state
        rate = at_count(lower_learning_rate, count, "lower_learning_rate")

        def refined(y: Any) -> Any:
            if lower_batches is None:
                return jax.lax.fori_loop(0, lower_steps, lambda _, y: descended(x, y, rate, lower_batch), y)
            take = lambda y, batch: (descended(x, y, rate, batch), None)  # noqa: E731
            return jax.lax.scan(take, y, lower_batches, length=lower_steps)[0]

        y = jax.lax.cond(count % update_interval == 0, refined, lambda y: y, y)
        value, d = directions({"x": x, "y": y, "v": v}, upper_batch, lower_batch)
        v = stepped(v, at_count(linear_learning_rate, count, "linear_learning_rate"), d["v"])
        m = jax.tree.map(lambda m, d: scalar(momentum, m) * m + (1 - scalar(momentum, m)) * d, m, d["x"])
        share = at_count(learning_rate, count, "learning_rate") / (global_norm(m) + TINY)
        return BilevelState(increment(count), stepped(x, share, m), y, v, m), value

    return Bilevel(init, step)


register(bo_rep, form="program", paper=PAPER, words=2)
