"""Optimistic AMSGrad: AMSGrad with a second step on a prediction of the next gradient."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, over, root
from gradkit.engine.core import bias_correction as corrected
from gradkit.engine.core import (
    increment,
    optimizer,
    scalar,
    transformation,
    widen,
    zeros,
)
from gradkit.engine.matching import check_match
from gradkit.engine.norms import global_sums
from gradkit.leaves import Method
from gradkit.transforms import scale_by_learning_rate
from gradkit.types import DTypeLike, Scalar, ScalarOrSchedule

PAPER = Paper(
    "An Optimistic Acceleration of AMSGrad for Nonconvex Optimization", "Wang, Li, Karimi, Li", 2019, "1903.01435"
)


class OptimisticAmsgradState(NamedTuple):
    """Number of updates made; theta, v and V; the difference of the user's parameters from w_{t-1/2}; the prediction;
    the last gradients (for "rmpe"); the state of the learning rate."""

    count: jax.Array
    theta: Any
    nu: Any
    nu_max: Any
    shift: Any
    prediction: Any
    history: tuple[Any, ...]
    rate: Any


def extrapolate(history: Sequence[Any], filled: jax.Array, ridge: Scalar) -> Any:
    """Regularised minimal polynomial extrapolation of a sequence of trees, the newest last.

    Args:
      history: s_1, ..., s_r; only the last `filled` of them count.
      filled: number of trees seen so far, at least 1. One alone is its own extrapolation.
      ridge: > 0, added to the diagonal of D'D.
    """
    r = len(history)
    columns = [jax.tree.map(lambda a, b: b - a, *pair) for pair in itertools.pairwise(history)]
    dtypes = [x.dtype for x in jax.tree.leaves(history[0])]
    dtype = max(dtypes, key=lambda d: d.itemsize, default=jnp.dtype(jnp.float32))

    seen = (jnp.arange(r - 1, dtype=jnp.int32) >= r - filled).astype(dtype)
    pairs = [(i, j) for j in range(r - 1) for i in range(j + 1)]
    dots = global_sums(*(jax.tree.map(jnp.multiply, columns[i], columns[j]) for i, j in pairs))
    upper = {pair: dot.astype(dtype) for pair, dot in zip(pairs, dots, strict=True)}
    rows = [[upper[min(i, j), max(i, j)] for j in range(r - 1)] for i in range(r - 1)]
    gram = jnp.stack([jnp.stack(row) for row in rows])
    gram = gram * seen[:, None] * seen[None, :] + jnp.asarray(ridge).astype(dtype) * jnp.eye(r - 1, dtype=dtype)
    z = jnp.linalg.solve(gram, seen)
    alone = filled < 2
    c = z / jnp.where(alone, jnp.ones((), dtype), jnp.sum(z))
    weights = [*jnp.unstack(c), jnp.where(alone, jnp.ones((), dtype), jnp.zeros((), dtype))]

    def combined(*s: jax.Array) -> jax.Array:
        terms = [scalar(weight, x) * x for weight, x in zip(weights, s, strict=True)]
        return jnp.asarray(sum(terms[1:], terms[0]))

    return jax.tree.map(combined, *history)


def optimistic_amsgrad(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    predictor: str = "last",
    span: int = 5,
    ridge: Scalar = 1e-3,
    bias_correction: str = "none",
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AMSGrad with a second step on a predicted gradient.

    Equations, with w_t the user's parameters, where the gradient g_t is taken, and p_t the prediction of g_t that was
    made one step earlier, p_1 = 0 and w_{1/2} = w_1:

        theta_t   = b1 theta_{t-1} + (1 - b1) g_t
        v_t       = b2 v_{t-1} + (1 - b2) (g_t - p_t)^2         the error of the prediction
        V_t       = max(V_{t-1}, v_t)
        w_{t+1/2} = w_{t-1/2} - learning_rate theta_t / (sqrt(V_t) + eps)
        h_{t+1}   = b1 theta_{t-1} + (1 - b1) p_{t+1}
        w_{t+1}   = w_{t+1/2} - learning_rate h_{t+1} / (sqrt(V_t) + eps)

        "last"   p_{t+1} = g_t
        "rmpe"   p_{t+1} = sum_i c_i s_i over the last gradients s_1, ..., s_r,  c = z / sum(z),  (D'D + ridge I) z = 1,
                 the columns of D being s_2 - s_1, ..., s_r - s_{r-1}

    Args:
      learning_rate: step size >= 0, or a schedule. Default 1e-3.
      b1: decay of theta, in [0, 1). Default 0.9 (usual practice).
      b2: decay of the second moment, in [0, 1). Default 0.999 (usual practice).
      eps: added to the root, >= 0. Default 1e-8. With 0, coordinates that never had a gradient do not move.
      predictor: "last" (the next gradient is this one) or "rmpe" (extrapolation of the last `span`; the paper's).
        Default "last". The extra argument `predicted_grads` of `update`, a tree like the gradients, takes precedence
        over both.
      span: r, how many gradients "rmpe" keeps, >= 2. Default 5.
      ridge: its regularisation, in the square of the gradient's units, > 0: without it one constant gradient makes the
        system singular. Default 1e-3.
      bias_correction: "none", "after_max" or "before_max", as in `gk.amsgrad`, for theta, h and V. Default "none".
      mu_dtype: dtype in which theta is kept. Default float32.

    Returns:
      A transformation. State: 5 words per parameter, `span` more for "rmpe". Elementwise: no collective; "rmpe"
      all-reduces about span^2 / 2 scalars.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves, which have no maximum; at update,
        `predicted_grads` that do not match.

    Example:
      >>> tx = optimistic_amsgrad(0.5, b1=0.0, b2=0.75)
      >>> x = jnp.array([2.0, -0.01])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))  # two steps of 2 sign(g), in one
      [-2.  2.]

    Reference: Wang, Li, Karimi, Li. An Optimistic Acceleration of AMSGrad for Nonconvex Optimization. 2019, arXiv
    1903.01435. h holds theta_{t-1}, not theta_t. A public re-implementation corrects biases ("after_max" is the
    nearest here), starts v at eps, and extrapolates iterates and takes one more gradient there: `predicted_grads` is
    for such predictors. optax's optimistic link is 2 g_t - g_{t-1}, another method.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    for name, value in (("b1", b1), ("b2", b2)):
        checks.real(name, value, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    checks.real("ridge", ridge, "(0, inf)")
    checks.choice("predictor", predictor, ("last", "rmpe"))
    span = checks.integer("span", span, 2, maximum=checks.MOST_UNROLLED)
    checks.choice("bias_correction", bias_correction, ("none", "after_max", "before_max"))
    rate = scale_by_learning_rate(learning_rate)
    kept = span if predictor == "rmpe" else 0

    def init(params: optax.Params) -> OptimisticAmsgradState:
        history = tuple(zeros(params) for _ in range(kept))
        trees: Any = [zeros(params, mu_dtype), *(zeros(params) for _ in range(4)), history, rate.init(params)]
        return OptimisticAmsgradState(jnp.zeros((), jnp.int32), *trees)

    def predict(updates: Any, history: tuple[Any, ...], count: jax.Array, given: Any) -> Any:
        if given is not None:
            check_match("optimistic_amsgrad", given, updates)
            return jax.tree.map(lambda p, g: p.astype(g.dtype), widen(given), updates)
        return extrapolate(history, jnp.minimum(count, span), ridge) if history else updates

    def update(updates: Any, state: OptimisticAmsgradState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        count = increment(state.count)
        history = (*state.history[1:], updates) if state.history else ()
        prediction = predict(updates, history, count, extra.get("predicted_grads"))
        theta = jax.tree.map(lambda m, g: ema(m, g, b1), state.theta, updates)
        error = jax.tree.map(lambda g, p: jnp.square(g - p), updates, state.prediction)
        nu = jax.tree.map(lambda v, e: ema(v, e, b2), state.nu, error)

        def largest(w: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.maximum(w, v / corrected(b2, count, v) if bias_correction == "before_max" else v)

        nu_max = jax.tree.map(largest, state.nu_max, nu)

        def direction(m: jax.Array, w: jax.Array) -> jax.Array:
            m = m.astype(w.dtype)
            if bias_correction != "none":
                m = m / corrected(b1, count, m)
            if bias_correction == "after_max":
                w = w / corrected(b2, count, w)
            return over(m, root(w, eps))

        h = jax.tree.map(lambda m, p: ema(m.astype(p.dtype), p, b1), state.theta, prediction)
        steps = (jax.tree.map(direction, theta, nu_max), jax.tree.map(direction, h, nu_max))
        moved: Any = rate.update(steps, state.rate)
        (half, shift), new_rate = moved
        moves = jax.tree.map(lambda a, new, old: a + new - old, half, shift, state.shift)
        return moves, OptimisticAmsgradState(count, theta, nu, nu_max, shift, prediction, history, new_rate)

    tx = transformation("optimistic_amsgrad", init, update)
    return optimizer(Method("optimistic_amsgrad", learning_rate), tx)


register(
    optimistic_amsgrad,
    form="optimizer",
    paper=PAPER,
    words=5,
    race=Race(5e-3),
)
