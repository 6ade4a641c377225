"""Accelerated methods whose step size is the distance from x_0 over gradients: U-DoG and A-DoG; and UniXGrad."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.anchors import (
    DistanceFromStart,
    check_init_step,
    copied,
    distance_from_start,
    first_distance,
    offsets,
    over_root_of,
    root_of,
    scalar_dtype,
    squared_sums,
)
from gradkit.engine.core import at_count, cast, divide, increment, need, scalar, transformation, widen
from gradkit.engine.matching import check_match
from gradkit.engine.mismatches import check_fit
from gradkit.leaves import Method
from gradkit.transforms import eval_params
from gradkit.transforms.running_average import include
from gradkit.types import PyTree, Scalar, ScalarOrSchedule

PAPER = Paper("Accelerated Parameter-Free Stochastic Optimization", "Kreisler et al.", 2024, "2404.00666")
UNIXGRAD = Paper(
    "UniXGrad: A Universal, Adaptive Algorithm with Optimal Guarantees for Constrained Optimization",
    "Kavis et al.",
    2019,
    "1910.13857",
)
KINDS = ("heuristic", "distance")
DEFAULT = ("heuristic", 1e-6)
Projection = Callable[[Any], Any]


class ExtrapolationState(NamedTuple):
    """Number of updates; y; the average a; its weight, the sum of all omega; and the numbers of the method."""

    count: jax.Array
    y: Any
    average: Any
    weight: jax.Array
    own: Any
    metrics: dict[str, jax.Array]

    exact_fields = ("y", "average")  # parameters, which gk.precision(state=...) must not round

    def eval_params(self, params: Any) -> Any:
        """The average, in the parameters' dtypes."""
        return jax.tree.map(lambda x, a: a.astype(x.dtype), params, self.average)


class UDogNumbers(NamedTuple):
    """x_0 and the largest distance r; omega of the next step; Q and M."""

    distance: DistanceFromStart
    omega: jax.Array
    differences: jax.Array
    largest: jax.Array


class ADogState(NamedTuple):
    """Number of updates; x_0 and the largest distance r; w; R, G and alpha; and the learning rate as a metric."""

    count: jax.Array
    distance: DistanceFromStart
    w: Any
    sum_of_distances: jax.Array
    total: jax.Array
    alpha: jax.Array
    metrics: dict[str, jax.Array]

    exact_fields = ("w",)  # parameters, which gk.precision(state=...) must not round


def _step(y: Any, size: jax.Array, g: Any, project: Projection | None) -> Any:
    """P(y - size g)."""
    moved = jax.tree.map(lambda y, g: y - cast(size, y.dtype) * g, y, g)
    return moved if project is None else widen(project(moved))


def _zeros(params: Any, number: int) -> list[jax.Array]:
    """Numbers for a state, as separate arrays, because a donated state must not contain an array twice."""
    return [jnp.zeros((), scalar_dtype(params)) for _ in range(number)]


def _toward(mean: Any, x: Any, share: jax.Array) -> Any:
    return jax.tree.map(lambda m, x: include(m, x, cast(share, m.dtype)), mean, x)


def _published(rate: Any) -> dict[str, jax.Array]:
    # A copy, because donating the state would delete the caller's array.
    return {"last_learning_rate": jnp.array(rate, jnp.float32, copy=True)}


def _rate(method: str, learning_rate: Any, count: jax.Array) -> Any:
    return at_count(learning_rate, count, f"{method}: learning_rate")


def _gradient(method: str, extra: dict[str, Any], at: Any, like: Any) -> Any:
    grads = need(method, extra, "grad_fn")(at)
    check_match(method, grads, like)
    return widen(grads)


def _ready(method: Method, init: Any, update: Any) -> optax.GradientTransformationExtraArgs:
    return transformation(method.name, init, update, needs_params=True, as_params=True, described=method, complete=True)


def _check_projection(project: Any) -> None:
    if project is not None:
        checks.function("project", project)


def u_dog(
    learning_rate: ScalarOrSchedule = 1.0, *, init_step: tuple[str, Any] = DEFAULT, project: Projection | None = None
) -> optax.GradientTransformationExtraArgs:
    """U-DoG: accelerated and without a learning rate, with two gradients per step.

    Equations of step t = 0, 1, ..., with y_0 = x_0, r_0 = r_eps, a projection P, and Q_{-1} = M_{-1} = 0:

        omega_t = r_0 + ... + r_t,   alpha_t = omega_t / r_t
        m_t = gradient at (omega_t y_t + sum_{k<t} omega_k x_{k+1}) / sum_{k<=t} omega_k            the parameters
        M_t = max(M_{t-1}, alpha_t^2 |m_t|^2)
        x_{t+1} = P(y_t - learning_rate omega_t m_t / sqrt(Q_{t-1} + M_t))
        g_t = gradient at a_t = sum_{k<=t} omega_k x_{k+1} / sum_{k<=t} omega_k                     the average
        Q_t = Q_{t-1} + alpha_t^2 |g_t - m_t|^2
        y_{t+1} = P(y_t - learning_rate omega_t g_t / sqrt(Q_t + M_t))
        r_{t+1} = max(r_t, |x_{t+1} - x_0|, |y_{t+1} - x_0|)

    The parameters are the point where m_t is taken; `gk.eval_params(state, params)` is the average, which every loop
    evaluates. The noise of g should be independent of that of m: give a `grad_fn` of another minibatch. The loops pass
    that of the same minibatch, with which g - m does not contain the noise, and steps become too long unless batches
    are large.

    Args:
      learning_rate: factor >= 0 of both moves, or a schedule. Default 1 (paper).
      init_step: (kind, value > 0): "heuristic", r_eps = value (1 + |x_0|); "distance", r_eps = value. Default
        ("heuristic", 1e-6).
      project: tree like the parameters -> its projection on the allowed set. Default None: no constraint.

    Returns:
      A transformation that needs `params` and `grad_fn`; `init` must get the initial parameters, of which it keeps a
      copy. State: 3 words per parameter and numbers. Collectives: those of a gradient, and four scalars in three
      all-reduces.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `grad_fn` or `params` missing.

    Example:
      >>> tx = u_dog(init_step=("distance", 0.5))
      >>> x = jnp.array([3.0, 4.0])
      >>> u, state = tx.update(x, tx.init(x), x, grad_fn=lambda x: x)
      >>> print(u_dog_eval_params(state, x + u).round(4))  # a first move of length 0.5
      [2.7 3.6]

    Reference: Kreisler et al. Accelerated Parameter-Free Stochastic Optimization. 2024, arXiv 2404.00666. The paper's
    theorem has logarithmic factors and bounds of the noise in the denominators; here they are the smallest that keep
    the order Q_{t-1} + M_t <= Q_t + M_t, with a first move of length r_eps.
    """
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    init_step = check_init_step("u_dog", init_step, KINDS)
    _check_projection(project)

    def init(params: Any) -> ExtrapolationState:
        zero, *zeros = _zeros(params, 4)
        numbers = UDogNumbers(distance_from_start("u_dog", params), *zeros)
        rate = _published(_rate("u_dog", learning_rate, jnp.zeros((), jnp.int32)))
        return ExtrapolationState(jnp.zeros((), jnp.int32), copied(params), copied(params), zero, numbers, rate)

    def update(m: Any, state: ExtrapolationState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        check_fit("u_dog", params, state.y)
        anchor, first, dtype = state.own.distance, state.count == 0, state.weight.dtype
        rate = jnp.asarray(_rate("u_dog", learning_rate, state.count)).astype(dtype)
        square, size = (x.astype(dtype) for x in squared_sums(m, m, anchor.start))
        r = jnp.where(first, first_distance(init_step, size), anchor.farthest)
        omega = jnp.where(first, r, state.own.omega)
        alpha = divide(omega, r)
        largest = jnp.maximum(state.own.largest, jnp.square(alpha) * square)
        x = _step(state.y, rate * over_root_of(omega, state.own.differences + largest, 0.0), m, project)

        weight = state.weight + omega
        average = _toward(state.average, x, divide(omega, weight))
        g = _gradient("u_dog", extra, average, params)
        apart, moved = squared_sums(m, jax.tree.map(jnp.subtract, g, m), offsets(anchor, x))
        differences = state.own.differences + jnp.square(alpha) * apart.astype(dtype)
        y = _step(state.y, rate * over_root_of(omega, differences + largest, 0.0), g, project)

        (too,) = squared_sums(m, offsets(anchor, y))
        r = jnp.maximum(r, root_of(jnp.maximum(moved, too)).astype(dtype))
        omega = omega + r
        there = _toward(average, y, divide(omega, weight + omega))
        numbers = UDogNumbers(DistanceFromStart(anchor.start, r), omega, differences, largest)
        new = ExtrapolationState(increment(state.count), y, average, weight, numbers, _published(rate))
        return jax.tree.map(jnp.subtract, there, params), new

    return _ready(Method("u_dog", learning_rate), init, update)


def u_dog_eval_params(state: Any, params: PyTree) -> Any:
    """The average of U-DoG or UniXGrad, found in the state of any chain or wrapper.

    Args:
      state: of a transformation with `gk.u_dog` or `gk.unixgrad` in it.
      params: the current parameters.

    Returns:
      The average, in the parameters' dtypes. `gk.eval_params` gives the same.

    Raises:
      ValueError: the state has neither of the two.

    Example:
      >>> x = jnp.array(2.0)
      >>> u_dog_eval_params(u_dog().init(x), x).item()
      2.0

    Reference: Kreisler et al. Accelerated Parameter-Free Stochastic Optimization. 2024, arXiv 2404.00666.
    """
    checks.arrays(params=params)
    nodes = jax.tree.leaves(state, is_leaf=lambda n: isinstance(n, ExtrapolationState) or hasattr(n, "decoded"))
    if not any(isinstance(n, ExtrapolationState) or hasattr(n, "decoded") for n in nodes):
        raise ValueError(
            "u_dog_eval_params: the state has neither gk.u_dog nor gk.unixgrad; write gk.eval_params(state, params), "
            "which gives the parameters where there is no other point"
        )
    return eval_params(state, params)


def unixgrad(
    learning_rate: ScalarOrSchedule, *, project: Projection | None = None
) -> optax.GradientTransformationExtraArgs:
    """UniXGrad: accelerated on a set of known diameter, with two gradients per step.

    Equations of step t = 1, 2, ..., with alpha_t = t, y_1 = x_1, a projection P, and Q_0 = 0:

        m_t = gradient at (alpha_t y_t + sum_{k<t} alpha_k x_{k+1}) / sum_{k<=t} alpha_k            the parameters
        x_{t+1} = P(y_t - 2 learning_rate alpha_t m_t / sqrt(1 + Q_{t-1}))
        g_t = gradient at a_t = sum_{k<=t} alpha_k x_{k+1} / sum_{k<=t} alpha_k                     the average
        y_{t+1} = P(y_t - 2 learning_rate alpha_t g_t / sqrt(1 + Q_{t-1}))
        Q_t = Q_{t-1} + alpha_t^2 |g_t - m_t|^2

    The parameters are the point where m_t is taken; `gk.eval_params(state, params)` is the average, which every loop
    evaluates.

    Args:
      learning_rate: D, the diameter of the set in units of the parameters, >= 0, or a schedule.
      project: tree like the parameters -> its projection on the set. Default None: no constraint.

    Returns:
      A transformation that needs `params` and `grad_fn`. State: 2 words per parameter and numbers. Collectives: those
      of a gradient, and one scalar.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `grad_fn` or `params` missing.

    Example:
      >>> tx = unixgrad(0.5)
      >>> x = jnp.array([1.0, 2.0])
      >>> u, state = tx.update(x, tx.init(x), x, grad_fn=lambda x: x)
      >>> print(u_dog_eval_params(state, x + u))  # x - 2 D m
      [0. 0.]

    Reference: Kavis et al. UniXGrad: A Universal, Adaptive Algorithm with Optimal Guarantees for Constrained
    Optimization. 2019, arXiv 1910.13857.
    """
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    _check_projection(project)

    def init(params: Any) -> ExtrapolationState:
        rate = _published(_rate("unixgrad", learning_rate, jnp.zeros((), jnp.int32)))
        weight, differences = _zeros(params, 2)
        count = jnp.zeros((), jnp.int32)
        return ExtrapolationState(count, copied(params), copied(params), weight, differences, rate)

    def update(m: Any, state: ExtrapolationState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        check_fit("unixgrad", params, state.y)
        count, dtype = increment(state.count), state.weight.dtype
        alpha = count.astype(dtype)
        D = jnp.asarray(_rate("unixgrad", learning_rate, state.count)).astype(dtype)
        size = 2 * alpha * D / jnp.sqrt(1 + state.own)
        x = _step(state.y, size, m, project)
        weight = state.weight + alpha
        average = _toward(state.average, x, alpha / weight)
        g = _gradient("unixgrad", extra, average, params)
        (apart,) = squared_sums(m, jax.tree.map(jnp.subtract, g, m))
        y = _step(state.y, size, g, project)
        there = _toward(average, y, (alpha + 1) / (weight + alpha + 1))
        own = state.own + jnp.square(alpha) * apart.astype(dtype)
        new = ExtrapolationState(count, y, average, weight, own, _published(D))
        return jax.tree.map(jnp.subtract, there, params), new

    return _ready(Method("unixgrad", learning_rate), init, update)


def a_dog(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    init_step: tuple[str, Any] = DEFAULT,
    average_scale: Scalar = 0.5,
    eps: Scalar = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """A-DoG: accelerated and without a learning rate, with one gradient per step.

    Equations, with the gradient g at the parameters x, from w = x_0, r = R = r_eps and G = 0; alpha_t is the alpha of
    the step before, at first max(1, average_scale):

        G = G + alpha_t^2 |g|^2,   eta = learning_rate r / (sqrt(G) + eps)
        w = w - alpha_t eta g,     y = x - eta g
        r = max(r, |w - x_0|),     R = R + r
        alpha_{t+1} = max(1, average_scale R / r)
        x = (1 - 1 / alpha_{t+1}) y + w / alpha_{t+1}

    Args:
      learning_rate: factor >= 0 of both moves, or a schedule. Default 1.
      init_step: (kind, value > 0): "heuristic", r_eps = value (1 + |x_0|); "distance", r_eps = value. Default
        ("heuristic", 1e-6).
      average_scale: how fast alpha grows, > 0. Default 0.5.
      eps: added to the root, >= 0. Default 1e-8.

    Returns:
      A transformation that needs `params`; `init` must get the initial parameters, of which it keeps a copy. State: 2
      words per parameter and numbers. Collectives: three scalars in two all-reduces.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `params` missing.

    Example:
      >>> tx = a_dog(init_step=("distance", 5.0))
      >>> x = jnp.array([3.0, 4.0])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))  # a first move of length 5
      [-3. -4.]

    Reference: Kreisler et al. Accelerated Parameter-Free Stochastic Optimization. 2024, arXiv 2404.00666. AcceleGrad's
    form with the step sizes of DoG; the constant average_scale is that of public code.
    """
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    checks.real("average_scale", average_scale, "(0, inf)")
    checks.real("eps", eps, "[0, inf)")
    init_step = check_init_step("a_dog", init_step, KINDS)

    def init(params: Any) -> ADogState:
        count, (distances, total, alpha) = jnp.zeros((), jnp.int32), _zeros(params, 3)
        rate = _published(_rate("a_dog", learning_rate, count))
        distance = distance_from_start("a_dog", params)
        return ADogState(count, distance, copied(params), distances, total, alpha, rate)

    def update(g: Any, state: ADogState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        check_fit("a_dog", params, state.w)
        anchor, first, dtype = state.distance, state.count == 0, state.total.dtype
        rate = jnp.asarray(_rate("a_dog", learning_rate, state.count)).astype(dtype)
        square, size = (x.astype(dtype) for x in squared_sums(g, g, anchor.start))
        r = jnp.where(first, first_distance(init_step, size), anchor.farthest)
        distances = jnp.where(first, r, state.sum_of_distances)
        scale = scalar(average_scale, r)
        alpha = jnp.where(first, jnp.maximum(scale * jnp.ones_like(r), 1), state.alpha)
        total = state.total + jnp.square(alpha) * square
        eta = rate * divide(r, root_of(total) + scalar(eps, r))
        w, y = _step(state.w, alpha * eta, g, None), _step(params, eta, g, None)

        (moved,) = squared_sums(g, offsets(anchor, w))
        r = jnp.maximum(r, root_of(moved).astype(dtype))
        distances = distances + r
        alpha = jnp.maximum(scale * divide(distances, r), 1)
        there = _toward(y, w, 1 / alpha)
        distance = DistanceFromStart(anchor.start, r)
        new = ADogState(increment(state.count), distance, w, distances, total, alpha, _published(rate))
        return jax.tree.map(jnp.subtract, there, params), new

    return _ready(Method("a_dog", learning_rate), init, update)


COMMON: dict[str, Any] = {"form": "optimizer", "collectives": "norms"}
# With the default of 1e-6 the first steps would only find the scale.
FAR = {"init_step": ("heuristic", 1e-2)}
FREE = Race(None, schedule=None)
register(u_dog, **COMMON, paper=PAPER, words=3, needs=("grad_fn",), example=FAR, race=FREE)
register(a_dog, **COMMON, paper=PAPER, words=2, example=FAR, race=FREE)
register(unixgrad, **COMMON, paper=UNIXGRAD, words=2, needs=("grad_fn",), race=Race(1.0, schedule=None))
