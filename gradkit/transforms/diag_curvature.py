"""A gradient divided by the diagonal of the Hessian: the link that AdaHessian, OASIS and SANIA share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import bias_correction as correction
from gradkit.engine.core import divide, increment, scalar, transformation, zeros
from gradkit.transforms.with_curvature import PAPER, curvature_of
from gradkit.types import DTypeLike, Scalar


class ScaleByDiagCurvatureState(NamedTuple):
    """Number of updates made, the mean of the gradients (None with b1 = 0) and that of the curvature."""

    count: jax.Array
    mu: Any
    nu: Any


def diag_curvature(
    method: str,
    *,
    b1: Scalar,
    b2: Scalar,
    second: str,
    floor: str,
    power: Any,
    eps: Scalar,
    bias_correction: bool,
    start: str,
    mu_dtype: DTypeLike | None,
) -> optax.GradientTransformationExtraArgs:
    """`scale_by_diag_curvature` under the name of a method, which checks its own arguments."""
    plain = isinstance(b1, int | float) and b1 == 0
    straight = isinstance(power, int | float) and power == 1

    def init(params: optax.Params) -> ScaleByDiagCurvatureState:
        mu = None if plain else zeros(params, mu_dtype)
        return ScaleByDiagCurvatureState(jnp.zeros((), jnp.int32), mu, zeros(params))

    def update(updates: Any, state: ScaleByDiagCurvatureState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        h = curvature_of(method, extra, updates)
        count = increment(state.count)

        def first(m: jax.Array, g: jax.Array) -> jax.Array:
            return ema(m, g, b1)

        def follow(v: jax.Array, h: jax.Array) -> jax.Array:
            new = jnp.square(h) if second == "rms" else h
            mean = ema(v, new, b2)
            return jnp.where(state.count == 0, new, mean) if start == "first" else mean

        def corrected(x: jax.Array, decay: Any) -> jax.Array:
            return x * (1 / correction(decay, count, x)) if bias_correction else x

        def direction(m: jax.Array, v: jax.Array, g: jax.Array) -> jax.Array:
            m, v = m if plain else corrected(m.astype(g.dtype), b1), corrected(v, b2)
            D = jnp.sqrt(v) if second == "rms" else jnp.abs(v)
            D = D if straight else D ** scalar(power, D)
            return divide(m, D + scalar(eps, D) if floor == "add" else jnp.maximum(D, scalar(eps, D)))

        mu = None if plain else jax.tree.map(first, state.mu, updates)
        nu = jax.tree.map(follow, state.nu, h)
        d = jax.tree.map(direction, updates if plain else mu, nu, updates)
        return d, ScaleByDiagCurvatureState(count, mu, nu)

    return transformation(method, init, update)


def scale_by_diag_curvature(
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    second: str = "rms",
    floor: str = "add",
    power: Scalar = 1.0,
    eps: Scalar = 1e-8,
    bias_correction: bool = True,
    start: str = "zero",
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides the running mean of the gradients by that of the diagonal of the Hessian.

    Equations, with the curvature h_t:

        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = b2 v_{t-1} + (1 - b2) h_t^2,   D_t = sqrt(v_t)               second="rms"
        v_t = b2 v_{t-1} + (1 - b2) h_t,     D_t = |v_t|                   second="mean"
        B_t = D_t^power + eps                                              floor="add"
        B_t = max(D_t^power, eps)                                          floor="max"
        d_t = m_t / B_t

    With bias correction m_t and v_t are divided by 1 - b1^t and 1 - b2^t; with start="first", v_1 is h_1^2 or h_1. With
    the gradient as `curvature`, "rms" and "add", this is Adam.

    Args:
      b1: decay of the mean of the gradients, in [0, 1). Default 0.9; 0: the gradient itself.
      b2: decay of the mean of the curvature, in [0, 1). Default 0.999.
      second: "rms", of the squares, or "mean". Default "rms".
      floor: how eps enters: "add" or "max". Default "add".
      power: of the curvature, in [0, 1]. Default 1; with 0 the direction is the momentum.
      eps: >= 0. Default 1e-8. Where the denominator is 0 the direction is 0.
      bias_correction: whether the means are corrected for their start at 0. Default True.
      start: "zero", or "first": the mean of the curvature starts with the first estimate, uncorrected. Default "zero".
      mu_dtype: dtype in which the mean of the gradients is kept. Default float32.

    Returns:
      A transformation that needs the extra argument `curvature`, a tree like the gradients: the diagonal of the
      Hessian, or an estimate (`gk.gradients.hutchinson_diag`); `gk.with_curvature` makes it. State: 2 words per
      parameter (1 with b1 = 0) and a counter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, curvature missing or of another structure.

    Example:
      >>> tx = scale_by_diag_curvature(eps=0.0)
      >>> g = jnp.array([3.0, 5.0])
      >>> print(tx.update(g, tx.init(g), curvature=jnp.array([-1.0, 10.0]))[0].round(4))
      [3.  0.5]

    Reference: Yao et al. ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning. 2020, arXiv 2006.00719.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("b1", b1, "[0, 1)")
    checks.real("b2", b2, "[0, 1)")
    checks.choice("second", second, ("rms", "mean"))
    checks.choice("floor", floor, ("add", "max"))
    checks.real("power", power, "[0, 1]")
    checks.real("eps", eps, "[0, inf)")
    checks.choice("bias_correction", bias_correction, (True, False))
    checks.choice("start", start, ("zero", "first"))
    if start == "first" and bias_correction:
        raise ValueError(
            "scale_by_diag_curvature: bias_correction must be False with start='first', which needs no correction, got "
            "True; write bias_correction=False, or start='zero'"
        )
    return diag_curvature(
        "scale_by_diag_curvature",
        b1=b1,
        b2=b2,
        second=second,
        floor=floor,
        power=power,
        eps=eps,
        bias_correction=bias_correction,
        start=start,
        mu_dtype=mu_dtype,
    )


register(scale_by_diag_curvature, form="primitive", paper=PAPER, needs=("curvature",), words=2)
