"""Schedule-free learning: at every step as good as with a schedule that ends there."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema_of_square, over_root
from gradkit.engine.core import (
    at_count,
    bias_corrections,
    cast,
    check_decay_mask,
    increment,
    transformation,
    zeros,
)
from gradkit.engine.core import bias_correction as correction
from gradkit.leaves import Method, check_mask_form
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate
from gradkit.transforms.interpolated_averaging import interpolate
from gradkit.transforms.schedule_free import shares, warmed
from gradkit.types import Mask, Scalar, ScalarOrSchedule

PAPER = Paper("The Road Less Scheduled", "Defazio et al.", 2024, "2405.15682")


def _ready(
    method: Method, base: tuple[Any, ...], rate: Any, b1: Any, weight_lr_power: Any, weight_power: Any
) -> optax.GradientTransformationExtraArgs:
    share, first = shares(rate, weight_lr_power, weight_power)
    chain = optax.chain(*base)
    check_mask_form(weight_decay_mask=method.weight_decay_mask)

    def init(params: Any) -> Any:
        check_decay_mask(method.name, method.weight_decay_mask, params)
        return chain.init(params)

    checked = optax.GradientTransformationExtraArgs(init, chain.update)
    return interpolate(method.name, checked, share, first, b1, described=method)


def schedule_free_sgd(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    warmup_steps: int = 0,
    b1: Scalar = 0.9,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Mask | None = None,
    weight_lr_power: Scalar = 2.0,
    weight_power: Scalar = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """SGD that needs no schedule: its iterates are averaged, and gradients are taken near the average.

    Equations, with t = 1, 2, ..., y_t the user's parameters, where g_t is taken, z the iterate, and x the average,
    which is evaluated:

        gamma_t = learning_rate min(1, t / warmup_steps)        in the step of z and in the weights
        z_{t+1} = z_t - gamma_t (g_t + weight_decay y_t)
        w_t = t^weight_power max(gamma_1, ..., gamma_t)^weight_lr_power
        c_t = w_t / (w_1 + ... + w_t)
        x_{t+1} = (1 - c_t) x_t + c_t z_{t+1}
        y_{t+1} = b1 x_{t+1} + (1 - b1) z_{t+1}

    Evaluate `gk.eval_params(state, params)`: every loop does. Running statistics of a model (BatchNorm) belong to y:
    compute them anew at x before an evaluation.

    Args:
      learning_rate: step size >= 0. A constant, as a schedule is not needed. Default 1 (official code).
      warmup_steps: steps over which the learning rate rises linearly, >= 0. Default 0. The first step has learning_rate
        / warmup_steps.
      b1: weight of the average in the point of the gradient, in [0, 1]. Default 0.9 (paper).
      weight_decay: decay of y, times the learning rate, >= 0. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      weight_lr_power: power of the largest learning rate in the weights, >= 0. Default 2 (official code).
      weight_power: power of the step in the weights, >= 0. Default 0 (official code).

    Returns:
      A transformation that needs `params`. State: 1 word per parameter and numbers. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, missing `params`.

    Example:
      >>> tx, y = schedule_free_sgd(0.5), jnp.array(1.0)
      >>> state = tx.init(y)
      >>> for _ in range(2):
      ...     u, state = tx.update(y, state, y)
      ...     y = y + u
      >>> from gradkit.transforms import schedule_free_eval_params
      >>> round(y.item(), 4), round(schedule_free_eval_params(state, y).item(), 4)  # z is 0.5, then 0.25
      (0.3625, 0.375)

    Reference: Defazio et al. The Road Less Scheduled. 2024, arXiv 2405.15682; official code schedulefree 1.4.1.
    """
    rate = warmed(learning_rate, warmup_steps)
    base = (add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask), scale_by_learning_rate(rate))
    method = Method("schedule_free_sgd", learning_rate, weight_decay, weight_decay_mask)
    return _ready(method, base, rate, b1, weight_lr_power, weight_power)


class TimesState(NamedTuple):
    """Number of updates made."""

    count: jax.Array


def _times(method: str, factor: Any) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by a factor that depends on the step, in front of the learning rate."""

    def update(updates: Any, state: TimesState, params: Any = None, **extra: Any) -> tuple[Any, TimesState]:
        del params, extra
        count = increment(state.count)
        return jax.tree.map(lambda u: u * cast(factor(count), u.dtype), updates), TimesState(count)

    return transformation(method, lambda params: TimesState(jnp.zeros((), jnp.int32)), update, complex_leaves=True)


def _factored(rate: Any, factor: Any) -> Any:
    """The schedule gamma_t: a learning rate times a factor that depends on the step."""

    def both(count: jax.Array) -> jax.Array:
        by = factor(increment(count))
        return jnp.asarray(at_count(rate, count, "learning_rate")).astype(by.dtype) * by

    return both


class ScaleBySecondMomentState(NamedTuple):
    """Number of updates made, and the second moment."""

    count: jax.Array
    nu: Any


def _rectified(b2: Any, count: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rectification r_t of RAdam, and whether it is defined, at step t = count."""
    dtype = like.dtype
    b2, t = jnp.asarray(b2).astype(dtype), count.astype(dtype)
    long = 2 / (1 - b2) - 1
    length = long - 2 * t * jnp.power(b2, t) / correction(b2, count, like)
    defined = length > 4
    length = jnp.where(defined, length, jnp.full_like(length, 5))
    square = (length - 4) * (length - 2) * long / ((long - 4) * (long - 2) * length)
    return jnp.sqrt(jnp.maximum(square, 0)), defined


def _scale_by_second_moment(
    method: str, b2: Any, eps: Any, *, corrected: bool = True, rectified: bool = False
) -> optax.GradientTransformationExtraArgs:
    """g / (sqrt(v) + eps); `rectified`: the gradient itself while the rectification is not defined."""
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")

    def init(params: Any) -> ScaleBySecondMomentState:
        return ScaleBySecondMomentState(jnp.zeros((), jnp.int32), zeros(params, real=True))

    def update(g: Any, state: ScaleBySecondMomentState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        count = increment(state.count)
        of_v = bias_corrections(b2, count)
        v = jax.tree.map(lambda v, g: ema_of_square(v, g, b2), state.nu, g)

        def direction(v: jax.Array, g: jax.Array) -> jax.Array:
            d = over_root(g, v, eps, 0.0, v_by=of_v(v) if corrected else None)
            return jnp.where(_rectified(b2, count, v)[1], d, g) if rectified else d

        return jax.tree.map(direction, v, g), ScaleBySecondMomentState(count, v)

    return transformation(method, init, update, complex_leaves=True)


def schedule_free_adamw(
    learning_rate: ScalarOrSchedule = 0.0025,
    *,
    warmup_steps: int = 0,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Mask | None = None,
    weight_lr_power: Scalar = 2.0,
    weight_power: Scalar = 0.0,
    bias_correction: str = "second_moment",
) -> optax.GradientTransformationExtraArgs:
    """AdamW that needs no schedule: its iterates are averaged, and gradients are taken near the average.

    Equations, with t = 1, 2, ..., y_t the user's parameters, where g_t is taken, z the iterate, and x the average,
    which is evaluated:

        gamma_t = learning_rate min(1, t / warmup_steps)        in the step of z and in the weights
        v_t = b2 v_{t-1} + (1 - b2) |g_t|^2
        z_{t+1} = z_t - gamma_t (g_t / (sqrt(v_t / (1 - b2^t)) + eps) + weight_decay y_t)
        w_t = t^weight_power max(gamma_1, ..., gamma_t)^weight_lr_power
        c_t = w_t / (w_1 + ... + w_t)
        x_{t+1} = (1 - c_t) x_t + c_t z_{t+1}
        y_{t+1} = b1 x_{t+1} + (1 - b1) z_{t+1}

    Evaluate `gk.eval_params(state, params)`: every loop does. Running statistics of a model (BatchNorm) belong to y:
    compute them anew at x before an evaluation.

    Args:
      learning_rate: step size >= 0. A constant, as a schedule is not needed. Default 0.0025 (official code).
      warmup_steps: steps over which the learning rate rises linearly, >= 0. Default 0. The first step has learning_rate
        / warmup_steps.
      b1: weight of the average in the point of the gradient, in [0, 1]. Default 0.9 (paper); it takes the place of the
        first moment.
      b2: decay of the second moment, in [0, 1). Default 0.999.
      eps: added to the root, >= 0. Default 1e-8.
      weight_decay: decay of y, times the learning rate, >= 0. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      weight_lr_power: power of the largest learning rate in the weights, >= 0. Default 2 (official code).
      weight_power: power of the step in the weights, >= 0. Default 0 (official code).
      bias_correction: "second_moment" (official code): v is divided by 1 - b2^t; or "learning_rate" (the published
        paper): gamma_t is multiplied by sqrt(1 - b2^t), also in the weights, and v is not corrected, which can be
        unstable. Default "second_moment".

    Returns:
      A transformation that needs `params`. State: 2 words per parameter and numbers. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, missing `params`.

    Example:
      >>> tx, y = schedule_free_adamw(0.5, eps=0.0), jnp.array([3.0, -0.1])
      >>> print(tx.update(y, tx.init(y), y)[0].round(4))  # the first step is the sign of the gradient
      [-0.5  0.5]

    Reference: Defazio et al. The Road Less Scheduled. 2024, arXiv 2405.15682; official code schedulefree 1.4.1.
    """
    checks.choice("bias_correction", bias_correction, ("second_moment", "learning_rate"))
    rate, name = warmed(learning_rate, warmup_steps), "schedule_free_adamw"
    direction = add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask)
    if bias_correction == "second_moment":
        base = (_scale_by_second_moment(name, b2, eps), direction, scale_by_learning_rate(rate))
    else:
        second = _scale_by_second_moment(name, b2, eps, corrected=False)
        root = lambda t: jnp.sqrt(correction(b2, t, jnp.zeros(())))  # noqa: E731
        base = (second, direction, _times(name, root), scale_by_learning_rate(rate))
        rate = _factored(rate, root)
    method = Method("schedule_free_adamw", learning_rate, weight_decay, weight_decay_mask)
    return _ready(method, base, rate, b1, weight_lr_power, weight_power)


def schedule_free_radam(
    learning_rate: ScalarOrSchedule = 0.0025,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Mask | None = None,
    weight_lr_power: Scalar = 2.0,
    weight_power: Scalar = 0.0,
    silent_sgd_phase: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free RAdam: the rectification takes the place of a warm-up.

    This is `gk.schedule_free_adamw` with a rectified learning rate in the place of a warm-up, with
    l = 2 / (1 - b2) - 1 and l_t = l - 2 t b2^t / (1 - b2^t):

        gamma_t = learning_rate r_t
        l_t > 4:   r_t = sqrt((l_t - 4) (l_t - 2) l / ((l - 4) (l - 2) l_t))
        else:      r_t = 0, or 1 without `silent_sgd_phase`
                   z_{t+1} = z_t - gamma_t (g_t + weight_decay y_t)

    While r_t = 0 the parameters do not move. Evaluate `gk.eval_params(state, params)`: every loop does.

    Args:
      learning_rate: step size >= 0. A constant, as a schedule is not needed. Default 0.0025 (official code).
      b1: weight of the average in the point of the gradient, in [0, 1]. Default 0.9 (paper).
      b2: decay of the second moment, in [0, 1). Default 0.999.
      eps: added to the root, >= 0. Default 1e-8.
      weight_decay: decay of y, times the learning rate, >= 0. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      weight_lr_power: power of the largest learning rate in the weights, >= 0. Default 2 (official code).
      weight_power: power of the step in the weights, >= 0. Default 0 (official code).
      silent_sgd_phase: whether the parameters do not move while r_t is not defined. Default True (official code).

    Returns:
      A transformation that needs `params`. State: 2 words per parameter and numbers. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, missing `params`.

    Example:
      >>> tx, y = schedule_free_radam(0.5, silent_sgd_phase=False), jnp.array([3.0, -0.1])
      >>> print(tx.update(y, tx.init(y), y)[0].round(4))  # l_1 = 1: a step of SGD
      [-1.5   0.05]

    Reference: Defazio et al. The Road Less Scheduled. 2024, arXiv 2405.15682; official code schedulefree 1.4.1.
    """
    checks.switch(silent_sgd_phase=silent_sgd_phase)
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)

    name = "schedule_free_radam"

    def rectification(t: jax.Array) -> jax.Array:
        r, defined = _rectified(b2, t, jnp.zeros(()))
        return jnp.where(defined, r, jnp.zeros_like(r) if silent_sgd_phase else jnp.ones_like(r))

    base = (
        _scale_by_second_moment(name, b2, eps, rectified=True),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        _times(name, rectification),
        scale_by_learning_rate(learning_rate),
    )
    rate = _factored(learning_rate, rectification)
    method = Method("schedule_free_radam", learning_rate, weight_decay, weight_decay_mask)
    return _ready(method, base, rate, b1, weight_lr_power, weight_power)


register(
    schedule_free_sgd,
    form="optimizer",
    paper=PAPER,
    words=1,
    golden=("step_size/schedule_free_sgd",),
    race=Race(0.3, schedule=None),
    variants={"default_schedule_free_sgd": Race(None, {"learning_rate": 1.0}, schedule=None)},
)
register(
    schedule_free_adamw,
    form="optimizer",
    paper=PAPER,
    words=2,
    golden=("step_size/schedule_free_adamw", "step_size/schedule_free_adamw_paper"),
    race=Race(5e-3, {"warmup_steps": 20}, schedule=None),
    variants={"default_schedule_free_adamw": Race(None, {"learning_rate": 0.0025}, schedule=None)},
)
register(
    schedule_free_radam,
    form="optimizer",
    paper=PAPER,
    words=2,
    golden=("step_size/schedule_free_radam",),
    # In the silent phase, which is the default, the first steps do not move the parameters.
    example={"silent_sgd_phase": False},
    race=Race(5e-3, schedule=None),
    variants={"default_schedule_free_radam": Race(None, {"learning_rate": 0.0025}, schedule=None)},
)
