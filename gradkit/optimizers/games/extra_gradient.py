"""Extra-gradient and its single-call forms: descent on some leaves, ascent on others, without circling."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import as_arrays, at_count, increment, need, optimizer, scalar, transformation, widen, zeros
from gradkit.leaves import Method, check_mask, check_mask_form, resolve_mask
from gradkit.types import Mask, ScalarOrSchedule

PAPER = Paper("On the convergence of single-call stochastic extra-gradient methods", "Hsieh et al.", 2019, "1908.08465")
Project = Callable[[Any], Any]


class ExtraGradientState(NamedTuple):
    """Number of updates made, and the learning rate of the last one as a metric."""

    count: jax.Array
    metrics: dict[str, jax.Array]


class BaseState(NamedTuple):
    """Number of updates made; the base state x_t, from which both half steps start; the last learning rate as a
    metric."""

    count: jax.Array
    base: Any
    metrics: dict[str, jax.Array]

    exact_fields = ("base",)  # parameters, which gk.precision(state=...) must not round


class OptimisticGradientState(NamedTuple):
    """Number of updates made; the field V at the previous parameters; the last learning rate as a metric."""

    count: jax.Array
    previous: Any
    metrics: dict[str, jax.Array]


def _field(updates: Any, ascent_mask: Any) -> Any:
    """The field V: the gradient, negated on the leaves of `ascent_mask`."""
    if ascent_mask is None:
        return updates
    return jax.tree.map(lambda g, up: -g if up else g, updates, resolve_mask(ascent_mask, updates))


def _moved(x: Any, rate: Any, V: Any) -> Any:
    return jax.tree.map(lambda x, v: x - scalar(rate, x) * v, x, V)


def _check(learning_rate: Any, project: Project | None) -> Project:
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    if project is None:
        return lambda tree: tree
    checks.function("project", project)
    return lambda tree: widen(project(tree))


def _check_mask(method: str, ascent_mask: Any, params: Any) -> None:
    if ascent_mask is not None:
        check_mask(ascent_mask, params, method=method, argument="ascent_mask", instead="ascent_mask=None")


def _published(rate: Any) -> dict[str, jax.Array]:
    # A copy, because donating the state would delete the caller's array.
    return {"last_learning_rate": jnp.array(rate, jnp.float32, copy=True)}


def _rate(method: str, learning_rate: Any, count: jax.Array) -> Any:
    return at_count(learning_rate, count, f"{method}: learning_rate")


def extra_gradient(
    learning_rate: ScalarOrSchedule, *, project: Project | None = None, ascent_mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    """Extra-gradient: a step with the gradient from the end of a trial step, which converges where descent circles.

    Equations, with the gradient V(x), negated on the leaves of `ascent_mask`, and the projection P:

        x' = P(x - learning_rate V(x))
        x <- P(x - learning_rate V(x'))

    Args:
      learning_rate: step size >= 0, or a schedule.
      project: P, parameters -> parameters. Default None: the identity.
      ascent_mask: leaves on which the loss is to rise, those of the other player of a game, as a tree of booleans, a
        function of the parameters or a selector. Default None: no leaf.

    Returns:
      A transformation that needs `params` and `grad_fn`, the gradient of this batch at other parameters. The updates
      are complete: no learning rate follows. State: a counter. Two gradients per step. Elementwise: no collective of
      its own.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `grad_fn` missing.

    Example:
      >>> grad_fn = jax.grad(lambda p: p["x"] * p["y"])  # x descends, y ascends: descent-ascent moves outwards
      >>> tx = extra_gradient(0.5, ascent_mask={"x": False, "y": True})
      >>> p = {"x": jnp.array(1.0), "y": jnp.array(0.0)}
      >>> u, _ = tx.update(grad_fn(p), tx.init(p), p, grad_fn=grad_fn)
      >>> {name: float(u[name] + p[name]) for name in p}
      {'x': 0.75, 'y': 0.5}

    Reference: Hsieh et al. On the convergence of single-call stochastic extra-gradient methods. 2019, arXiv 1908.08465;
    Korpelevich. The extragradient method for finding saddle points and other problems. 1976. Both gradients are of the
    same batch.
    """
    P = _check(learning_rate, project)
    name = "extra_gradient"
    check_mask_form(ascent_mask=ascent_mask)

    def init(params: optax.Params) -> ExtraGradientState:
        _check_mask(name, ascent_mask, params)
        count = jnp.zeros((), jnp.int32)
        return ExtraGradientState(count, _published(_rate(name, learning_rate, count)))

    def update(g: Any, state: ExtraGradientState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        grad_fn = need(name, extra, "grad_fn")
        rate = _rate(name, learning_rate, state.count)
        there = P(_moved(params, rate, _field(g, ascent_mask)))
        V = _field(widen(as_arrays(grad_fn(there))), ascent_mask)
        new = P(_moved(params, rate, V))
        return jax.tree.map(jnp.subtract, new, params), ExtraGradientState(increment(state.count), _published(rate))

    return optimizer(Method(name, learning_rate), transformation(name, init, update, needs_params=True))


def past_extra_gradient(
    learning_rate: ScalarOrSchedule,
    *,
    project: Project | None = None,
    ascent_mask: Mask | None = None,
    first: str = "first",
) -> optax.GradientTransformationExtraArgs:
    """Past extra-gradient: the trial step uses the last gradient, so a step costs one gradient.

    Equations, with the parameters l_t, the gradient V_t at l_t, negated on the leaves of `ascent_mask`, the projection
    P and the learning rate gamma_t:

        x_{t+1} = P(x_t - gamma_t V_t)
        l_{t+1} = P(x_{t+1} - gamma_{t+1} V_t)

    Before the first gradient V_{-1} is V_0 with first="first", so x_1 = l_0, or 0 with first="zero", so x_0 = l_0.

    Args:
      learning_rate: step size >= 0, or a schedule: the trial step has the learning rate of the next update.
      project: P, parameters -> parameters. Default None: the identity.
      ascent_mask: as in `extra_gradient`.
      first: the gradient before the first one: the "first" itself (optax), or "zero". Default "first".

    Returns:
      A transformation that needs `params`. The updates are complete: no learning rate follows. State: 1 word per
      parameter, the base state x. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx, x = past_extra_gradient(0.5), jnp.array(1.0)  # the loss is x^2 / 2
      >>> state = tx.init(x)
      >>> for _ in range(2):
      ...     u, state = tx.update(x, state, x)
      ...     x = x + u
      >>> float(x)  # 1, 1 - 0.5, 0.5 - 2 * 0.25 + 0.5
      0.5

    Reference: Hsieh et al. On the convergence of single-call stochastic extra-gradient methods. 2019, arXiv 1908.08465;
    Popov. A modification of the Arrow-Hurwicz method for search of saddle points. 1980. With the parameters l_t the
    state need not contain the last gradient.
    """
    P = _check(learning_rate, project)
    checks.choice("first", first, ("first", "zero"))
    name = "past_extra_gradient"
    check_mask_form(ascent_mask=ascent_mask)

    def init(params: optax.Params) -> BaseState:
        _check_mask(name, ascent_mask, params)
        count = jnp.zeros((), jnp.int32)
        return BaseState(count, zeros(params), _published(_rate(name, learning_rate, count)))

    def update(g: Any, state: BaseState, params: Any = None, **extra: Any) -> tuple[Any, BaseState]:
        del extra
        V, count = _field(g, ascent_mask), increment(state.count)
        rate, following = (_rate(name, learning_rate, c) for c in (state.count, count))
        begins = state.count == 0
        x = jax.tree.map(lambda x, p: jnp.where(begins, p, x), state.base, params)
        base = P(_moved(x, rate, V))
        if first == "first":
            base = jax.tree.map(lambda new, p: jnp.where(begins, p, new), base, params)
        lead = P(_moved(base, following, V))
        return jax.tree.map(jnp.subtract, lead, params), BaseState(count, base, _published(rate))

    return optimizer(Method(name, learning_rate), transformation(name, init, update, needs_params=True))


def reflected_gradient(
    learning_rate: ScalarOrSchedule, *, project: Project | None = None, ascent_mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    """Reflected gradient: gradients are taken after repeating the last step; one projection and one gradient per step.

    Equations, with the parameters l_t, the gradient V_t at l_t, negated on the leaves of `ascent_mask`, the projection
    P and the learning rate gamma_t:

        x_{t+1} = P(x_t - gamma_t V_t)
        l_{t+1} = 2 x_{t+1} - x_t                       x_0 = l_0

    Args:
      learning_rate: step size >= 0, or a schedule.
      project: P, parameters -> parameters. Default None: the identity. The parameters l_t may leave its set;
        `state.base` does not.
      ascent_mask: as in `extra_gradient`.

    Returns:
      A transformation that needs `params`. The updates are complete: no learning rate follows. State: 1 word per
      parameter, the base state x. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx, x = reflected_gradient(0.25), jnp.array(1.0)  # the loss is x^2 / 2
      >>> float(tx.update(x, tx.init(x), x)[0])  # twice the step of sgd
      -0.5

    Reference: Hsieh et al. On the convergence of single-call stochastic extra-gradient methods. 2019, arXiv 1908.08465;
    Malitsky. Projected reflected gradient methods for monotone variational inequalities. 2015.
    """
    P = _check(learning_rate, project)
    name = "reflected_gradient"
    check_mask_form(ascent_mask=ascent_mask)

    def init(params: optax.Params) -> BaseState:
        _check_mask(name, ascent_mask, params)
        count = jnp.zeros((), jnp.int32)
        return BaseState(count, zeros(params), _published(_rate(name, learning_rate, count)))

    def update(g: Any, state: BaseState, params: Any = None, **extra: Any) -> tuple[Any, BaseState]:
        del extra
        rate = _rate(name, learning_rate, state.count)
        x = jax.tree.map(lambda x, p: jnp.where(state.count == 0, p, x), state.base, params)
        base = P(_moved(x, rate, _field(g, ascent_mask)))
        moved = jax.tree.map(lambda new, x, p: 2 * new - x - p, base, x, params)
        return moved, BaseState(increment(state.count), base, _published(rate))

    return optimizer(Method(name, learning_rate), transformation(name, init, update, needs_params=True))


def optimistic_gradient(
    learning_rate: ScalarOrSchedule,
    *,
    project: Project | None = None,
    ascent_mask: Mask | None = None,
    first: str = "first",
) -> optax.GradientTransformationExtraArgs:
    """Optimistic gradient: every step corrects the previous prediction of the gradient, and predicts the next one.

    Equations, with the parameters l_t, the gradient V_t at l_t, negated on the leaves of `ascent_mask`, the projection
    P and the learning rate gamma_t:

        l_{t+1} = P(l_t - gamma_t (V_t - V_{t-1}) - gamma_{t+1} V_t)

    Before the first gradient V_{-1} is V_0 with first="first", or 0 with first="zero".

    Args:
      learning_rate: step size >= 0, or a schedule.
      project: P, parameters -> parameters. Default None: the identity.
      ascent_mask: as in `extra_gradient`.
      first: as in `past_extra_gradient`. Default "first".

    Returns:
      A transformation that needs `params`. The updates are complete: no learning rate follows. State: 1 word per
      parameter, the last gradient. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx, x = optimistic_gradient(0.25, first="zero"), jnp.array(1.0)  # the loss is x^2 / 2
      >>> float(tx.update(x, tx.init(x), x)[0])
      -0.5

    Reference: Hsieh et al. On the convergence of single-call stochastic extra-gradient methods. 2019, arXiv 1908.08465.
    `optax.optimistic_gradient_descent` multiplies both gradients by the learning rate of this step, which is the same
    only where the learning rate is constant.
    """
    P = _check(learning_rate, project)
    checks.choice("first", first, ("first", "zero"))
    name = "optimistic_gradient"
    check_mask_form(ascent_mask=ascent_mask)

    def init(params: optax.Params) -> OptimisticGradientState:
        _check_mask(name, ascent_mask, params)
        count = jnp.zeros((), jnp.int32)
        return OptimisticGradientState(count, zeros(params), _published(_rate(name, learning_rate, count)))

    def update(g: Any, state: OptimisticGradientState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        V, count = _field(g, ascent_mask), increment(state.count)
        rate, following = (_rate(name, learning_rate, c) for c in (state.count, count))
        before = state.previous
        if first == "first":
            before = jax.tree.map(lambda b, v: jnp.where(state.count == 0, v, b), before, V)

        def moved(v: jax.Array, b: jax.Array) -> jax.Array:
            return -scalar(rate, v) * (v - b) - scalar(following, v) * v

        step = jax.tree.map(moved, V, before)
        if project is not None:
            lead = P(jax.tree.map(jnp.add, params, step))
            step = jax.tree.map(jnp.subtract, lead, params)
        return step, OptimisticGradientState(count, V, _published(rate))

    return optimizer(Method(name, learning_rate), transformation(name, init, update, needs_params=True))


NOTES = "for games: ascent_mask names the leaves of the player whose loss is to rise"
AHEAD = {"schedule": "the trial step has the rate of the next update; tests/papers has it on schedules"}
register(extra_gradient, form="optimizer", paper=PAPER, needs=("grad_fn",), notes=NOTES, race=Race(0.1))
register(past_extra_gradient, form="optimizer", paper=PAPER, words=1, notes=NOTES, opt_outs=AHEAD, race=Race(0.1))
register(reflected_gradient, form="optimizer", paper=PAPER, words=1, notes=NOTES, race=Race(0.1))
register(optimistic_gradient, form="optimizer", paper=PAPER, words=1, notes=NOTES, opt_outs=AHEAD, race=Race(0.1))
