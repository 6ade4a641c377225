"""Complex momentum: a heavy ball whose decay is a complex number, for games and minimization alike."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import bias_corrections, increment, optimizer, scalar, transformation, zeros
from gradkit.leaves import Method
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("Scalable Nested Optimization for Deep Learning", "Lorraine", 2024, "2407.01526")


class ScaleByComplexMomentumState(NamedTuple):
    """The real and the imaginary part of the momentum, in the sign of the gradient."""

    real: Any
    imaginary: Any


class ScaleByComplexAdamState(NamedTuple):
    """Number of updates made, both parts of the momentum, and the second moment."""

    count: jax.Array
    real: Any
    imaginary: Any
    nu: Any


@functools.partial(jax.jit, inline=True)
def _followed(r: jax.Array, i: jax.Array, g: jax.Array, decay: Any, angle: Any) -> tuple[jax.Array, jax.Array]:
    """The parts of decay e^{i angle} (r + i imaginary) + g."""
    decay, angle = jnp.asarray(decay, g.dtype), jnp.asarray(angle, g.dtype)
    cos, sin = decay * jnp.cos(angle), decay * jnp.sin(angle)
    r, i = r.astype(g.dtype), i.astype(g.dtype)
    return cos * r - sin * i + g, sin * r + cos * i


def _check(decay: Any, angle: Any) -> None:
    checks.real("decay", decay, "[0, 1)")
    checks.real("angle", angle, f"[0, {math.pi}]")


def _parts(state: Any, g: Any, decay: Any, angle: Any, mu_dtype: Any) -> tuple[Any, Any, Any]:
    """The real part in the dtype of the gradient, and both parts in that of the state."""
    pairs = jax.tree.map(lambda r, i, g: _followed(r, i, g, decay, angle), state.real, state.imaginary, g)
    pick = lambda k: jax.tree.map(lambda _, pair: pair[k], g, pairs)  # noqa: E731
    real, imaginary = pick(0), pick(1)
    kept = (lambda x: x.astype(mu_dtype)) if mu_dtype is not None else (lambda x: x)
    return real, jax.tree.map(kept, real), jax.tree.map(kept, imaginary)


def scale_by_complex_momentum(
    *, decay: Scalar = 0.9, angle: Scalar = math.pi / 8, mu_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Replaces updates by the real part of their complex momentum.

    Equations, with mu_0 = 0:

        mu_t = decay e^{i angle} mu_{t-1} + g_t                      complex
        u_t  = Re(mu_t) = sum_k decay^k cos(k angle) g_{t-k}

    Args:
      decay: absolute value of the complex decay, in [0, 1). Default 0.9 (the paper has 0.8 to 0.9).
      angle: angle of the complex decay, in [0, pi], radians: 0 is the heavy ball, pi negative momentum. Default pi / 8
        (paper).
      mu_dtype: dtype in which both parts are kept between steps. Default float32, or float64 for float64 parameters.

    Returns:
      A transformation. State: 2 words per parameter, two real trees. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> tx = scale_by_complex_momentum(decay=0.5, angle=math.pi)  # negative momentum
      >>> state = tx.init(jnp.array(0.0))
      >>> for _ in range(2):
      ...     u, state = tx.update(jnp.array(1.0), state)
      >>> round(float(u), 4)
      0.5

    Reference: Lorraine. Scalable Nested Optimization for Deep Learning. 2024, arXiv 2407.01526; Lorraine, Acuna, Vicol,
    Duvenaud. Complex Momentum for Optimization in Games. 2021, arXiv 2102.08431. The paper's momentum is -mu_t;
    here it has the sign of the gradient, so that the learning rate is the link behind it.
    """
    _check(decay, angle)
    checks.floating_dtype(mu_dtype=mu_dtype)

    def init(params: optax.Params) -> ScaleByComplexMomentumState:
        return ScaleByComplexMomentumState(zeros(params, mu_dtype), zeros(params, mu_dtype))

    def update(updates: Any, state: ScaleByComplexMomentumState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        used, real, imaginary = _parts(state, updates, decay, angle, mu_dtype)
        return used, ScaleByComplexMomentumState(real, imaginary)

    return transformation("scale_by_complex_momentum", init, update)


def scale_by_complex_adam(
    *,
    decay: Scalar = 0.9,
    angle: Scalar = math.pi / 8,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The real part of complex momentum over the root of the second moment.

    Equations, with mu_0 = 0:

        mu_t = decay e^{i angle} mu_{t-1} + (1 - decay) g_t          complex
        v_t  = b2 v_{t-1} + (1 - b2) g_t^2
        u_t  = Re(mu_t) / (sqrt(v_t / (1 - b2^t)) + eps)

    Args:
      decay: absolute value of the complex decay, in [0, 1). Default 0.9.
      angle: angle of the complex decay, in [0, pi], radians; 0 is Adam without bias correction of the first moment.
        Default pi / 8 (paper).
      b2: decay of the second moment, in [0, 1). Default 0.999 (Adam).
      eps: added to the root, >= 0. Default 1e-8 (Adam).
      mu_dtype: dtype in which both parts are kept between steps. Default float32.

    Returns:
      A transformation. State: 3 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> tx = scale_by_complex_adam(decay=0.75)
      >>> print(tx.update(jnp.array([2.0, -3.0]), tx.init(jnp.zeros(2)))[0].round(4))
      [ 0.25 -0.25]

    Reference: Lorraine. Scalable Nested Optimization for Deep Learning. 2024, arXiv 2407.01526. The place of eps
    and a correction of the first moment could not be looked up in the paper: here the first moment is not corrected.
    """
    _check(decay, angle)
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    checks.floating_dtype(mu_dtype=mu_dtype)

    def init(params: optax.Params) -> ScaleByComplexAdamState:
        count, real, imaginary = jnp.zeros((), jnp.int32), zeros(params, mu_dtype), zeros(params, mu_dtype)
        return ScaleByComplexAdamState(count, real, imaginary, zeros(params))

    def update(updates: Any, state: ScaleByComplexAdamState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        count = increment(state.count)
        shares = jax.tree.map(lambda g: (1 - scalar(decay, g)) * g, updates)
        used, real, imaginary = _parts(state, shares, decay, angle, mu_dtype)
        nu = jax.tree.map(lambda v, g: ema(v, jnp.square(g), b2), state.nu, updates)
        correction = bias_corrections(b2, count)

        def leaf(r: jax.Array, v: jax.Array) -> jax.Array:
            root = jnp.sqrt(v / correction(v)) + scalar(eps, v)
            return jnp.where(root > 0, r / jnp.where(root > 0, root, jnp.ones_like(root)), jnp.zeros_like(r))

        return jax.tree.map(leaf, used, nu), ScaleByComplexAdamState(count, real, imaginary, nu)

    return transformation("scale_by_complex_adam", init, update)


def complex_momentum(
    learning_rate: ScalarOrSchedule,
    *,
    decay: Scalar = 0.9,
    angle: Scalar = math.pi / 8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with complex momentum, which converges in games where real momentum circles around the solution.

    Equations, with mu_0 = 0:

        mu_t = decay e^{i angle} mu_{t-1} + g_t                      complex
        x_t  = x_{t-1} - learning_rate (Re(mu_t) + weight_decay x_{t-1})

    Without decay the step is -learning_rate sum_k decay^k cos(k angle) g_{t-k}. In a game every player has one of its
    own, updated at the same time or alternately; an angle between those of the heavy ball and of negative momentum
    suits both minimization and games.

    Args:
      learning_rate: step size >= 0, or a schedule.
      decay: absolute value of the complex decay, in [0, 1). Default 0.9 (the paper has 0.8 to 0.9).
      angle: angle of the complex decay, in [0, pi], radians: 0 is the heavy ball, pi negative momentum. Default pi / 8
        (paper).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which both parts are kept between steps. Default float32.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> tx, x = complex_momentum(1.0, decay=0.5, angle=math.pi / 2), jnp.array(0.0)
      >>> state = tx.init(x)
      >>> for g in (1.0, 0.0, 0.0):  # the gradient of two steps ago returns with the opposite sign
      ...     u, state = tx.update(jnp.array(g), state, x)
      ...     print(round(float(u), 4) + 0.0)
      -1.0
      0.0
      0.25

    Reference: Lorraine. Scalable Nested Optimization for Deep Learning. 2024, arXiv 2407.01526; Lorraine, Acuna, Vicol,
    Duvenaud. Complex Momentum for Optimization in Games. 2021, arXiv 2102.08431.
    """
    return optimizer(
        Method("complex_momentum", learning_rate, weight_decay, weight_decay_mask),
        scale_by_complex_momentum(decay=decay, angle=angle, mu_dtype=mu_dtype),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


def complex_adam(
    learning_rate: ScalarOrSchedule,
    *,
    decay: Scalar = 0.9,
    angle: Scalar = math.pi / 8,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam with complex momentum for its first moment.

    Equations, with mu_0 = 0:

        mu_t = decay e^{i angle} mu_{t-1} + (1 - decay) g_t          complex
        v_t  = b2 v_{t-1} + (1 - b2) g_t^2
        x_t  = x_{t-1} - learning_rate (Re(mu_t) / (sqrt(v_t / (1 - b2^t)) + eps) + weight_decay x_{t-1})

    Args:
      learning_rate: step size >= 0, or a schedule.
      decay: absolute value of the complex decay, in [0, 1). Default 0.9.
      angle: angle of the complex decay, in [0, pi], radians; 0 is Adam without bias correction of the first moment.
        Default pi / 8 (paper).
      b2: decay of the second moment, in [0, 1). Default 0.999 (Adam).
      eps: added to the root, >= 0. Default 1e-8 (Adam).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which both parts of the momentum are kept between steps. Default float32.

    Returns:
      A transformation that needs `params`. State: 3 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> tx, x = complex_adam(0.5, decay=0.75), jnp.array([2.0, -3.0])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.125  0.125]

    Reference: Lorraine. Scalable Nested Optimization for Deep Learning. 2024, arXiv 2407.01526. Departures: those of
    `scale_by_complex_adam`.
    """
    return optimizer(
        Method("complex_adam", learning_rate, weight_decay, weight_decay_mask),
        scale_by_complex_adam(decay=decay, angle=angle, b2=b2, eps=eps, mu_dtype=mu_dtype),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


register(scale_by_complex_momentum, form="primitive", paper=PAPER, words=2)
register(complex_momentum, form="optimizer", paper=PAPER, words=2, race=Race(1e-2))
register(scale_by_complex_adam, form="primitive", paper=PAPER, words=3)
register(complex_adam, form="optimizer", paper=PAPER, words=3, race=Race(2e-3))
