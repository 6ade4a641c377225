"""SANIA: Polyak's step size in a preconditioned space. No learning rate is tuned."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import (
    bias_corrections,
    divide,
    increment,
    inside,
    optimizer,
    scalar,
    transformation,
    zeros,
)
from gradkit.engine.norms import global_sums
from gradkit.leaves import Method
from gradkit.transforms import scale_by_diag_curvature, scale_by_learning_rate
from gradkit.transforms.measured import loss_of
from gradkit.transforms.with_curvature import hutchinson_estimator, supply_curvature
from gradkit.types import Key, Scalar, ScalarOrSchedule

PAPER = Paper(
    "SANIA: Polyak-type Optimization Framework Leads to Scale Invariant Stochastic Algorithms",
    "Abdukhakimov et al.",
    2023,
    "2312.17369",
)


def polyak_step(gap: jax.Array, gamma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """lambda from the gap f - f_min and Gamma, and whether the model has a zero."""
    c = 1 - 2 * divide(gap, gamma)
    return jnp.where(c > 0, 1 - jnp.sqrt(jnp.maximum(c, 0)), jnp.ones_like(c)), c >= 0


class ScaleByPreconditionedPolyakState(NamedTuple):
    """The inner state, and the last step size as a metric."""

    inner: Any
    metrics: dict[str, jax.Array]


def scale_by_preconditioned_polyak(
    preconditioner: optax.GradientTransformation | None = None,
    *,
    f_min: Scalar = 0.0,
    max_step: Scalar = 1.0,
    sqrt_guard: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Scales a preconditioned gradient by the first zero of the quadratic model of the loss.

    Equations: lambda_t d_t with Gamma_t, c_t and lambda_t of `sania`, for the direction d_t of the preconditioner.

    Args:
      preconditioner: any transformation gradient -> direction, not negated. Default None: the gradient itself.
      f_min: the smallest value of the loss, any number. Default 0: interpolation. With an L2 penalty or smoothed
        labels the loss does not reach 0; give the value that it reaches.
      max_step: largest lambda, > 0. Default 1, the largest value of the formula.
      sqrt_guard: whether lambda is 1 where the model has no zero. Default True; False: NaN, which
        `optax.apply_if_finite` skips.

    Returns:
      A transformation that needs the extra argument `value`, the loss of the minibatch (on a mesh, of the global one).
      State: the inner one, and the metric `polyak_step`. Collectives: one scalar.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `value` missing, not a scalar, or outside jit below
        f_min (inside jit such a value counts as f_min, which gives no step).

    Example:
      >>> tx = scale_by_preconditioned_polyak()
      >>> x = jnp.array([4.0])  # the loss is 4 x^2: c = 1 - 2 * 64 / 32^2
      >>> print(tx.update(8 * x, tx.init(x), x, value=jnp.sum(4 * x**2))[0].round(4))
      [2.0667]

    Reference: Abdukhakimov et al. SANIA: Polyak-type Optimization Framework Leads to Scale Invariant Stochastic
    Algorithms. 2023, arXiv 2312.17369. It wraps its preconditioner, because it needs the raw gradient too.
    """
    checks.real("f_min", f_min)
    checks.real("max_step", max_step, "(0, inf]")
    checks.choice("sqrt_guard", sqrt_guard, (True, False))
    inner = inside(optax.identity() if preconditioner is None else preconditioner, "preconditioner")

    def init(params: optax.Params) -> ScaleByPreconditionedPolyakState:
        return ScaleByPreconditionedPolyakState(inner.init(params), {"polyak_step": jnp.zeros((), jnp.float32)})

    def update(g: Any, state: ScaleByPreconditionedPolyakState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        value = loss_of("scale_by_preconditioned_polyak", extra)
        now, least = checks.readable(value), checks.readable(f_min)
        if now is not None and least is not None and now < least:
            raise ValueError(
                f"scale_by_preconditioned_polyak: the value {value} is below f_min, {f_min}; give a smaller f_min"
            )
        d, below = inner.update(g, state.inner, params, **extra)
        (gamma,) = global_sums(jax.tree.map(lambda g, d: g * d, g, d))
        gap = jnp.maximum(value.astype(gamma.dtype) - scalar(f_min, gamma), 0)
        step, real = polyak_step(gap, gamma)
        step = jnp.minimum(step, scalar(max_step, step))
        if not sqrt_guard:
            step = jnp.where(real, step, jnp.full_like(step, jnp.nan))
        d = jax.tree.map(lambda d: step.astype(d.dtype) * d, d)
        return d, ScaleByPreconditionedPolyakState(below, {"polyak_step": step.astype(jnp.float32)})

    return transformation("scale_by_preconditioned_polyak", init, update)


class SquaresState(NamedTuple):
    """Number of updates made, and the sum or mean of squared gradients."""

    count: jax.Array
    s: Any


def _squares(method: str, b2: Any, eps: Any, is_sqrt: bool) -> optax.GradientTransformationExtraArgs:
    """The direction g / B, with B from the sum of squares where b2 is None, else from their mean."""
    checks.real("b2", b2, "[0, 1)", optional=True)
    checks.real("eps", eps, "[0, inf)")
    checks.choice("is_sqrt", is_sqrt, (True, False))

    def update(updates: Any, state: SquaresState, params: Any = None, **extra: Any) -> tuple[Any, SquaresState]:
        del params, extra
        count = increment(state.count)
        c2 = bias_corrections(b2, count)

        def follow(s: jax.Array, g: jax.Array) -> jax.Array:
            return s + g * g if b2 is None else ema(s, g * g, b2)

        def direction(s: jax.Array, g: jax.Array) -> jax.Array:
            B = jnp.maximum(s if b2 is None else s / c2(s), scalar(eps, s))
            return divide(g, jnp.sqrt(B) if is_sqrt else B)

        s = jax.tree.map(follow, state.s, updates)
        return jax.tree.map(direction, s, updates), SquaresState(count, s)

    return transformation(method, lambda params: SquaresState(jnp.zeros((), jnp.int32), zeros(params)), update)


def _sania(
    method: str, learning_rate: Any, preconditioner: optax.GradientTransformation, f_min: Any, max_step: Any
) -> optax.GradientTransformationExtraArgs:
    link = scale_by_preconditioned_polyak(preconditioner, f_min=f_min, max_step=max_step)
    return optimizer(Method(method, learning_rate), link, scale_by_learning_rate(learning_rate))


def sania(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    preconditioner: optax.GradientTransformation | None = None,
    b2: Scalar = 0.0,
    eps: Scalar = 1e-8,
    f_min: Any = 0.0,
    max_step: Scalar = 1.0,
    num_samples: int = 1,
    key: Key | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SANIA: Polyak's step size in a space preconditioned by the curvature, or by any other preconditioner.

    Equations, with the loss f_t of the minibatch and an estimate h_t of the diagonal of the Hessian:

        s_t = b2 s_{t-1} + (1 - b2) h_t,    s_0 = 0
        d_t = g_t / max(eps, |s_t| / (1 - b2^t))              or the direction of `preconditioner`
        Gamma_t = <g_t, d_t> over all leaves
        c_t = 1 - 2 (f_t - f_min) / Gamma_t
        lambda_t = 1 - sqrt(c_t) where c_t > 0, else 1
        x_t = x_{t-1} - learning_rate min(lambda_t, max_step) d_t

    lambda is the first zero of the model f - f_min - lambda Gamma + lambda^2 Gamma / 2, or its minimum where it has no
    zero.

    Args:
      learning_rate: factor >= 0 of the step, or a schedule. Default 1 (official code).
      preconditioner: any transformation gradient -> direction, not negated. Default None: division by the running mean
        of the curvature.
      b2: decay of the mean of the curvature, in [0, 1). Default 0: only the curvature of this step.
      eps: smallest curvature, >= 0. Default 1e-8.
      f_min: the smallest value of the loss. Default 0: interpolation.
      max_step: largest lambda, > 0. Default 1.
      num_samples: random vectors per estimate of the curvature, >= 1. Default 1.
      key: a typed key or integer, from which the keys of all steps are derived. Default None: `update` needs `key=`
        where the curvature is estimated here.

    Returns:
      A transformation that needs `value`, and without `preconditioner` also `curvature`, or `hvp_fn` and a key.
      State: 1 word per parameter. Collectives: one scalar, and those of the estimate.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, no value, or neither `curvature` nor `hvp_fn`.

    Example:
      >>> tx = sania(key=jax.random.key(0))
      >>> x, a = jnp.array([2.0, 4.0]), jnp.array([1.0, 10.0])  # the loss is a x^2 / 2
      >>> value = jnp.sum(a * x**2) / 2
      >>> print(tx.update(a * x, tx.init(x), x, value=value, hvp_fn=lambda v: a * v)[0])
      [-2. -4.]

    Reference: Abdukhakimov et al. SANIA: Polyak-type Optimization Framework Leads to Scale Invariant Stochastic
    Algorithms. 2023, arXiv 2312.17369.
    """
    if preconditioner is not None:
        return _sania("sania", learning_rate, preconditioner, f_min, max_step)
    diagonal = scale_by_diag_curvature(b1=0.0, b2=b2, second="mean", floor="max", eps=eps)
    supplied = supply_curvature("sania", diagonal, hutchinson_estimator(num_samples=num_samples), key=key)
    return _sania("sania", learning_rate, supplied, f_min, max_step)


def sania_adagrad_sqr(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    eps: Scalar = 1e-8,
    is_sqrt: bool = False,
    f_min: Any = 0.0,
    max_step: Scalar = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """SANIA with the sum of squared gradients as preconditioner.

    Equations: those of `sania`, with another direction d_t:

        s_t = s_{t-1} + g_t^2
        d_t = g_t / max(eps, s_t)                             with is_sqrt the root of the maximum

    Without the root the trajectory does not change when coordinates are rescaled.

    Args:
      learning_rate: factor >= 0 of the step, or a schedule. Default 1 (official code).
      eps: smallest entry of the sum, >= 0. Default 1e-8 (official numpy code; the class in torch has 0.1, with which
        coordinates of small gradients take no long steps).
      is_sqrt: whether the divisor is the root, as in AdaGrad. Default False (official code): invariant to the scale of
        coordinates.
      f_min: the smallest value of the loss. Default 0: interpolation.
      max_step: largest lambda, > 0. Default 1.

    Returns:
      A transformation that needs `value`. State: 1 word per parameter. Collectives: one scalar.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, no value.

    Example:
      >>> tx = sania_adagrad_sqr()
      >>> x = jnp.array([1.0, 3.0])
      >>> print(tx.update(x, tx.init(x), x, value=jnp.sum(x**2) / 2)[0].round(4))  # c < 0: the full 1 / g
      [-1.     -0.3333]

    Reference: Abdukhakimov et al. SANIA: Polyak-type Optimization Framework Leads to Scale Invariant Stochastic
    Algorithms. 2023, arXiv 2312.17369. eps bounds the sum from below, as in the official torch code; the official numpy
    code adds it.
    """
    link = _squares("sania_adagrad_sqr", None, eps, is_sqrt)
    return _sania("sania_adagrad_sqr", learning_rate, link, f_min, max_step)


def sania_adam_sqr(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    is_sqrt: bool = False,
    f_min: Any = 0.0,
    max_step: Scalar = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """SANIA with the mean of squared gradients as preconditioner; no first moment, despite the name.

    Equations: those of `sania`, with another direction d_t:

        s_t = b2 s_{t-1} + (1 - b2) g_t^2
        d_t = g_t / max(eps, s_t / (1 - b2^t))                with is_sqrt the root of the maximum

    Without the root the trajectory does not change when coordinates are rescaled.

    Args:
      learning_rate: factor >= 0 of the step, or a schedule. Default 1 (official code).
      b2: decay of the mean, in [0, 1). Default 0.999 (official code).
      eps: smallest entry of the mean, >= 0. Default 1e-8 (official numpy code; the class in torch has 0.1, with
        which coordinates of small gradients take no long steps).
      is_sqrt: whether the divisor is the root, as in Adam. Default False (official code).
      f_min: the smallest value of the loss. Default 0: interpolation.
      max_step: largest lambda, > 0. Default 1.

    Returns:
      A transformation that needs `value`. State: 1 word per parameter and a counter. Collectives: one scalar.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, no value.

    Example:
      >>> tx = sania_adam_sqr()
      >>> x = jnp.array([1.0, 3.0])
      >>> print(tx.update(x, tx.init(x), x, value=jnp.sum(x**2) / 2)[0].round(4))
      [-1.     -0.3333]

    Reference: Abdukhakimov et al. SANIA: Polyak-type Optimization Framework Leads to Scale Invariant Stochastic
    Algorithms. 2023, arXiv 2312.17369.
    """
    if b2 is None:
        raise ValueError("sania_adam_sqr: b2 must be a number in [0, 1), got None; use sania_adagrad_sqr for a sum")
    link = _squares("sania_adam_sqr", b2, eps, is_sqrt)
    return _sania("sania_adam_sqr", learning_rate, link, f_min, max_step)


NORMS: dict[str, Any] = {"paper": PAPER, "collectives": "norms"}
register(
    scale_by_preconditioned_polyak,
    form="wrapper",
    **NORMS,
    needs=("value",),
    wraps="direction",
)
register(
    sania,
    form="optimizer",
    **NORMS,
    needs=("value", "curvature"),
    words=1,
    # It finds its step itself, of which the rate is a factor. Entries without gradient or curvature would take steps of
    # any length: a floor that is felt.
    race=Race(1.0, {"b2": 0.99, "eps": 1e-2}, schedule=None),
)
for function in (sania_adagrad_sqr, sania_adam_sqr):
    register(
        function,
        form="optimizer",
        **NORMS,
        needs=("value",),
        words=1,
        golden=(f"matrix/{function.__name__}",),
        # With a smaller one, coordinates whose first gradient is small take steps of one over it.
        example={"eps": 1e-1},
        race=Race(1.0, {"eps": 1e-1}, schedule=None),
    )
