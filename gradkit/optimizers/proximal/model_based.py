"""Model-based steps: each minimises a model of the loss of the batch plus the squared distance from the parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import at_count, divide, increment, inside, need, optimizer, scalar, transformation, widen
from gradkit.engine.lazy_gradients import inner_products
from gradkit.engine.norms import global_square
from gradkit.leaves import Method
from gradkit.transforms import scale_by_learning_rate
from gradkit.transforms.minimise_inner import descended
from gradkit.types import ScalarOrSchedule

PAPER = Paper(
    "Stochastic model-based minimization of weakly convex functions", "Davis, Drusvyatskiy", 2018, "1803.06523"
)
OUTER = ("abs", "hinge", "square")


class ModelState(NamedTuple):
    """Number of updates made, and the learning rate of the last one as a metric."""

    count: jax.Array
    metrics: dict[str, jax.Array]


class ProximalState(NamedTuple):
    """Number of updates made, and the inner state."""

    count: jax.Array
    inner: Any


def _started(name: str, learning_rate: Any) -> ModelState:
    count = jnp.zeros((), jnp.int32)
    return ModelState(count, _published(at_count(learning_rate, count, f"{name}: learning_rate")))


def _published(rate: Any) -> dict[str, jax.Array]:
    # A copy, because donating the state would delete the caller's array.
    return {"last_learning_rate": jnp.array(rate, jnp.float32, copy=True)}


def proximal(
    inner: optax.GradientTransformation, prox_fn: Callable[[Any, Any], Any], *, learning_rate: ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    """Follows the step of any optimizer by the proximal operator of a penalty.

    Equations, with the inner update u_t, the penalty r and the learning rate alpha_t:

        x_{t+1} = prox(x_t + u_t, alpha_t)
        prox(x, alpha) = argmin_y  r(y) + |y - x|^2 / (2 alpha)

    Args:
      inner: any optimizer; its updates include its learning rate.
      prox_fn: (parameters, alpha) -> parameters: argmin_y r(y) + |y - x|^2 / (2 alpha) on the tree. For the lasso
        `lambda x, alpha: jax.tree.map(lambda x: gk.linalg.prox_l1(x, 0.1 * alpha), x)`.
      learning_rate: alpha >= 0, or a schedule: usually that of `inner`.

    Returns:
      A transformation that needs `params`, and must be the last of a chain. State: a counter, and that of `inner`.
      Elementwise where `prox_fn` is.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> shrink = lambda x, alpha: jnp.sign(x) * jnp.maximum(jnp.abs(x) - alpha, 0)
      >>> tx, x = proximal(optax.sgd(0.5), shrink, learning_rate=0.5), jnp.array([2.0, 0.5])
      >>> print(x + tx.update(x, tx.init(x), x)[0])
      [0.5 0. ]

    Reference: Davis, Drusvyatskiy. Stochastic model-based minimization of weakly convex functions. 2018, arXiv
    1803.06523.
    """
    inner = inside(inner)
    checks.function("prox_fn", prox_fn)
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)

    def init(params: optax.Params) -> ProximalState:
        return ProximalState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(g: Any, state: ProximalState, params: Any = None, **extra: Any) -> tuple[Any, ProximalState]:
        updates, kept = inner.update(g, state.inner, params, **extra)
        alpha = at_count(learning_rate, state.count, "proximal: learning_rate")
        new = widen(prox_fn(jax.tree.map(jnp.add, params, updates), alpha))
        return jax.tree.map(jnp.subtract, new, params), ProximalState(increment(state.count), kept)

    return transformation("proximal", init, update, needs_params=True, complex_leaves=True)


def proximal_sgd(
    learning_rate: ScalarOrSchedule, prox_fn: Callable[[Any, Any], Any]
) -> optax.GradientTransformationExtraArgs:
    """Stochastic proximal gradients, for a penalty that is not smooth: `proximal` around SGD.

    Equations, with alpha = learning_rate:

        x_{t+1} = prox(x_t - alpha g_t, alpha)

    Args:
      learning_rate: alpha >= 0, or a schedule; the paper's falls with the root of the step.
      prox_fn: (parameters, alpha) -> parameters, as for `proximal`.

    Returns:
      A transformation that needs `params`. State: two counters. Elementwise where `prox_fn` is.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> box = lambda x, alpha: jnp.clip(x, 0, 1)  # the proximal operator of an indicator is the projection
      >>> tx, x = proximal_sgd(1.0, box), jnp.array([0.5, 0.5])
      >>> print(x + tx.update(jnp.array([2.0, -0.25]), tx.init(x), x)[0])
      [0.   0.75]

    Reference: Davis, Drusvyatskiy. Stochastic model-based minimization of weakly convex functions. 2018, arXiv
    1803.06523. The guarantee is for an iterate drawn at random.
    """
    step = scale_by_learning_rate(learning_rate)
    return optimizer(Method("proximal_sgd", learning_rate), proximal(step, prox_fn, learning_rate=learning_rate))


def truncated_model(
    learning_rate: ScalarOrSchedule, *, lower_bound: Any = 0.0
) -> optax.GradientTransformationExtraArgs:
    """Steps on the linear model of the loss, truncated at a lower bound: never longer than Polyak's step.

    Equations, with the loss f_t and alpha = learning_rate: the model is max(f_t + <g_t, y - x_t>, lower_bound),

        x_{t+1} = x_t - min(alpha, max(f_t - lower_bound, 0) / |g_t|^2) g_t

    Args:
      learning_rate: alpha >= 0, or a schedule; infinity gives Polyak's step.
      lower_bound: of the loss of a minibatch, finite. Default 0.

    Returns:
      A transformation that needs `value`. The updates are complete: no learning rate follows. State: a counter and the
      metric `last_learning_rate`, alpha. Collectives: one scalar.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `value` missing.

    Example:
      >>> tx, x = truncated_model(10.0), jnp.array(2.0)  # the loss is x^2
      >>> float(tx.update(2 * x, tx.init(x), x, value=x**2)[0])
      -1.0

    Reference: Davis, Drusvyatskiy. Stochastic model-based minimization of weakly convex functions. 2018, arXiv
    1803.06523. The same step as `optax.polyak_sgd(max_learning_rate=alpha, variant="sps+")`.
    """
    checks.real("learning_rate", learning_rate, "[0, inf]", schedule=True)
    checks.real("lower_bound", lower_bound, "(-inf, inf)")
    name = "truncated_model"

    def update(g: Any, state: ModelState, params: Any = None, **extra: Any) -> tuple[Any, ModelState]:
        del params
        value, square = jnp.asarray(need(name, extra, "value")), global_square(g)
        alpha = at_count(learning_rate, state.count, f"{name}: learning_rate")
        gap = jnp.maximum(value.astype(square.dtype) - scalar(lower_bound, square), 0)
        # A gradient of zeros gives no step, whatever alpha.
        step = jnp.where(square > 0, jnp.minimum(scalar(alpha, square), divide(gap, square)), 0)
        moved = jax.tree.map(lambda g: -step.astype(g.dtype) * g, g)
        return moved, ModelState(increment(state.count), _published(alpha))

    link = transformation(name, lambda params: _started(name, learning_rate), update)
    return optimizer(Method(name, learning_rate), link)


def _rows(c: jax.Array, back: Callable[..., Any]) -> Any:
    """The Jacobian J, with the residuals along a leading axis."""
    return jax.vmap(lambda e: widen(back(e)[0]))(jnp.eye(c.size, dtype=c.dtype))


def _least_squares(c: jax.Array, J: Any, alpha: Any) -> jax.Array:
    """alpha (alpha J J^T + I)^{-1} c."""
    gram = inner_products(J, J)
    a = jnp.asarray(alpha).astype(gram.dtype)
    system = a * gram + jnp.eye(c.size, dtype=gram.dtype)
    return a * jax.scipy.linalg.solve(system, c.astype(gram.dtype), assume_a="pos")


def _combined(weights: jax.Array, J: Any) -> Any:
    """- J^T weights, without a collective where J is sharded."""

    def leaf(j: jax.Array) -> jax.Array:
        return -jnp.sum(weights.astype(j.dtype).reshape(-1, *[1] * (j.ndim - 1)) * j, axis=0)

    return jax.tree.map(leaf, J)


def prox_linear(learning_rate: ScalarOrSchedule, *, outer: str = "square") -> optax.GradientTransformationExtraArgs:
    """Prox-linear steps: the loss is a convex function of residuals, and only the residuals are linearised.

    Equations, of a loss h(c(x)) with residuals c, their derivative J (c' of one residual) and alpha = learning_rate:

        x_{t+1} = argmin_y  h(c + J (y - x_t)) + |y - x_t|^2 / (2 alpha)
                = x_t - clip(c / |c'|^2, -alpha, alpha) c'              "abs", h = |c|
                = x_t - clip(c / |c'|^2, 0, alpha) c'                   "hinge", h = max(c, 0)
                = x_t - J^T (J J^T + I / alpha)^{-1} c                  "square", h = |c|^2 / 2

    Args:
      learning_rate: alpha >= 0, or a schedule.
      outer: h, the function of the residuals c that is the loss: "abs", |c|, or "hinge", max(c, 0), of one residual;
        "square", half the sum of squares, of any number: a damped Gauss-Newton step. Default "square".

    Returns:
      A transformation that needs `params` and `residual_fn`, parameters -> the residuals of this minibatch. The
      gradient itself is not read. The updates are complete: no learning rate follows. State: a counter and the metric
      `last_learning_rate`. It costs a backward pass per residual, and a linear system with one equation per residual.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `residual_fn` missing, or several residuals where
        `outer` needs one.

    Example:
      >>> c = lambda x: x**2 - 1.0  # the loss is |x^2 - 1|
      >>> tx, x = prox_linear(10.0, outer="abs"), jnp.array(2.0)
      >>> float(tx.update(2 * x, tx.init(x), x, residual_fn=c)[0])  # to the root of 3 + 4 d
      -0.75

    Reference: Davis, Drusvyatskiy. Stochastic model-based minimization of weakly convex functions. 2018, arXiv
    1803.06523.
    """
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    checks.choice("outer", outer, OUTER)
    name = "prox_linear"

    def update(g: Any, state: ModelState, params: Any = None, **extra: Any) -> tuple[Any, ModelState]:
        residual_fn = need(name, extra, "residual_fn")
        if not jax.tree.leaves(g):
            return g, state
        alpha = at_count(learning_rate, state.count, f"{name}: learning_rate")
        c, back = jax.vjp(lambda x: jnp.asarray(residual_fn(x)).reshape(-1), params)
        if outer == "square":
            J = _rows(c, back)
            moved = _combined(_least_squares(c, J, alpha), J)
        else:
            if c.size != 1:
                raise ValueError(
                    f"prox_linear: residual_fn must return one number with outer={outer!r}, got {c.size}; "
                    'give outer="square", or batches of one example'
                )
            slope = widen(back(jnp.ones_like(c))[0])
            square = global_square(slope)
            a = scalar(alpha, square)
            least = -a if outer == "abs" else jnp.zeros_like(square)
            step = jnp.clip(divide(c[0].astype(square.dtype), square), least, a)
            moved = jax.tree.map(lambda s: -step.astype(s.dtype) * s, slope)
        moved = jax.tree.map(lambda m, g: m.astype(g.dtype), moved, g)
        return moved, ModelState(increment(state.count), _published(alpha))

    link = transformation(name, lambda params: _started(name, learning_rate), update, needs_params=True)
    return optimizer(Method(name, learning_rate), link)


def stochastic_proximal_point(
    learning_rate: ScalarOrSchedule, *, inner: optax.GradientTransformation, inner_steps: int
) -> optax.GradientTransformationExtraArgs:
    """The stochastic proximal point method: the loss of the batch itself is the model.

    Equations, with the loss f_t of the batch and alpha = learning_rate, minimised approximately by an inner loop:

        x_{t+1} = argmin_y  f_t(y) + |y - x_t|^2 / (2 alpha)

    Args:
      learning_rate: alpha > 0, or a schedule.
      inner: the optimizer of the inner loop, learning rate included; its state is initialised in every step.
      inner_steps: steps of the inner loop, >= 1.

    Returns:
      A transformation that needs `params` and `grad_fn`. The updates are complete: no learning rate follows. State: a
      counter and the metric `last_learning_rate`. It costs `inner_steps` - 1 more gradients; the first one is the
      incoming gradient. Collectives: those of the gradients.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `grad_fn` missing.

    Example:
      >>> tx = stochastic_proximal_point(1.0, inner=optax.sgd(0.1), inner_steps=200)
      >>> x = jnp.array(3.0)  # the loss is x^2, whose proximal point is x / (1 + 2 alpha)
      >>> print((x + tx.update(2 * x, tx.init(x), x, grad_fn=lambda x: 2 * x)[0]).round(4))
      1.0

    Reference: Davis, Drusvyatskiy. Stochastic model-based minimization of weakly convex functions. 2018, arXiv
    1803.06523.
    """
    inner = inside(inner)
    checks.real("learning_rate", learning_rate, "(0, inf)", schedule=True)
    inner_steps = checks.integer("inner_steps", inner_steps, 1)
    name = "stochastic_proximal_point"

    def update(g: Any, state: ModelState, params: Any = None, **extra: Any) -> tuple[Any, ModelState]:
        grad_fn = need(name, extra, "grad_fn")
        alpha = at_count(learning_rate, state.count, f"{name}: learning_rate")

        def pulled(y: Any) -> Any:
            return jax.tree.map(lambda g, y, x: g + (y - x) / scalar(alpha, y), widen(grad_fn(y)), y, params)

        # At y = x the gradient of the squared distance is 0.
        updates, kept = inner.update(g, inner.init(params), params)
        y = jax.tree.map(jnp.add, params, updates)
        y, _ = descended(lambda y: (None, pulled(y)), inner, inner_steps - 1, y, kept)
        return jax.tree.map(jnp.subtract, y, params), ModelState(increment(state.count), _published(alpha))

    link = transformation(name, lambda params: _started(name, learning_rate), update, needs_params=True)
    return optimizer(Method(name, learning_rate), link)


def _shrunk(x: Any, alpha: Any) -> Any:
    """The proximal operator of |x|^2 / 20, as the example of the cards."""
    return jax.tree.map(lambda x: x / (1 + scalar(alpha, x) * 0.1), x)


register(
    proximal, form="wrapper", paper=PAPER, example={"prox_fn": _shrunk, "learning_rate": 0.1}, notes="the last link"
)
register(
    proximal_sgd, form="optimizer", paper=PAPER, example={"prox_fn": _shrunk}, race=Race(0.1, {"prox_fn": _shrunk})
)
register(
    truncated_model, form="optimizer", paper=PAPER, needs=("value",), collectives="norms", race=Race(1.0, schedule=None)
)
register(
    prox_linear,
    form="optimizer",
    paper=PAPER,
    needs=("residual_fn",),
    collectives="matrices",
    opt_outs={
        "descends": "no loop knows the residuals of a loss; tests/papers has it descend",
        "race": "no loop knows the residuals of a loss",
    },
    notes="a backward pass per residual; it reads residual_fn, and not the gradient",
)
register(
    stochastic_proximal_point,
    form="optimizer",
    paper=PAPER,
    needs=("grad_fn",),
    example={"inner": optax.sgd(0.1), "inner_steps": 3},
    race=Race(1.0, {"inner": optax.sgd(0.1), "inner_steps": 3}, schedule=None),
)
