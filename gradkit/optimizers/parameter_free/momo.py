"""MoMo: the step to where a model of the loss, from running means of losses and gradients, meets a lower bound."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, ema_of_square, root
from gradkit.engine.anchors import scalar_dtype
from gradkit.engine.core import (
    at_count,
    bias_corrections,
    cast,
    divide,
    increment,
    optimizer,
    transformation,
    zeros,
)
from gradkit.engine.core import (
    bias_correction as correction,
)
from gradkit.engine.norms import global_sums
from gradkit.leaves import Method
from gradkit.transforms.measured import loss_of
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper("MoMo: Momentum Models for Adaptive Learning Rates", "Schaipp et al.", 2023, "2305.07583")


class ScaleByMomoState(NamedTuple):
    """Number of updates; d and, for MoMo-Adam, v; f, gamma and the lower bound; the step size as a metric."""

    count: jax.Array
    mu: Any
    nu: Any
    loss: jax.Array
    inner_product: jax.Array
    bound: jax.Array
    metrics: dict[str, jax.Array]


class _Rule(NamedTuple):
    """The hyperparameters of a method of this family; b2 is None for MoMo."""

    learning_rate: Any
    b1: Any
    b2: Any
    eps: Any
    lower_bound: Any
    weight_decay: Any
    adapt_lower_bound: bool
    bias_correction: bool
    proximal_decay: bool


def _scale(method: str, rule: _Rule) -> optax.GradientTransformationExtraArgs:
    checks.real("learning_rate", rule.learning_rate, "[0, inf)", schedule=True)
    checks.real("b1", rule.b1, "[0, 1)")
    checks.real("lower_bound", rule.lower_bound)
    checks.real("weight_decay", rule.weight_decay, "[0, inf)")
    checks.switch(adapt_lower_bound=rule.adapt_lower_bound)
    with_second = rule.b2 is not None
    RATE = f"{method}: learning_rate"

    def published(rate: Any, step: jax.Array, bound: jax.Array) -> dict[str, jax.Array]:
        # Copies, because donating the state would delete the caller's arrays.
        rate, step, bound = (jnp.array(x, jnp.float32, copy=True) for x in (rate, step, bound))
        return {"last_learning_rate": rate, "momo_step_size": step, "last_lower_bound": bound}

    def init(params: optax.Params) -> ScaleByMomoState:
        zero = jnp.zeros((), scalar_dtype(params))
        least = jnp.array(rule.lower_bound, zero.dtype, copy=True)
        second = zeros(params) if with_second else None
        metrics = published(at_count(rule.learning_rate, jnp.zeros((), jnp.int32), RATE), zero, least)
        # Separate arrays, because a donated state must not contain an array twice.
        return ScaleByMomoState(
            jnp.zeros((), jnp.int32), zeros(params), second, zero, jnp.zeros_like(zero), least, metrics
        )

    def update(g: Any, state: ScaleByMomoState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        value = loss_of(method, extra).astype(state.loss.dtype)
        count, first = increment(state.count), state.count == 0
        from_zero = rule.bias_correction

        def mean(m: jax.Array, x: jax.Array) -> jax.Array:
            new = ema(m, x, rule.b1)
            return new if from_zero else jnp.where(first, x, new)

        d = jax.tree.map(mean, state.mu, g)
        v = jax.tree.map(lambda v, g: ema_of_square(v, g, rule.b2), state.nu, g) if with_second else None
        if with_second:
            of_v = bias_corrections(rule.b2, count)
            direction = jax.tree.map(lambda d, v: divide(d, root(v / of_v(v), rule.eps)), d, v)
        else:
            direction = d
        products = (
            jax.tree.map(jnp.multiply, g, params),
            jax.tree.map(jnp.multiply, d, params),
            jax.tree.map(jnp.multiply, d, direction),
        )
        gx, dx, n = (x.astype(value.dtype) for x in global_sums(*products))
        f, gamma = mean(state.loss, value), mean(state.inner_product, gx)
        rho = correction(rule.b1, count, value) if from_zero else jnp.ones_like(value)
        alpha = jnp.asarray(at_count(rule.learning_rate, state.count, RATE)).astype(value.dtype)
        decay = alpha * jnp.asarray(rule.weight_decay).astype(value.dtype)
        a, least = 1 + decay, jnp.asarray(rule.lower_bound).astype(value.dtype)

        bound = state.bound if rule.adapt_lower_bound else least
        if rule.adapt_lower_bound:
            model = a * (f - gamma) + dx
            bound = jnp.where(model < a * rho * bound, jnp.maximum(model / (2 * a * rho), least), bound)
        gap = jnp.maximum(a * (f - rho * bound - gamma) + dx, 0)
        tau = jnp.where(n > 0, jnp.minimum(alpha / rho, divide(gap, n)), jnp.zeros_like(n))
        if rule.adapt_lower_bound:
            bound = jnp.maximum((f + dx - gamma - tau * n / 2) / rho, least)

        def moved(u: jax.Array, x: jax.Array) -> jax.Array:
            step, lam, by = cast(tau, u.dtype), cast(decay, u.dtype), cast(a, u.dtype)
            return (step * u + lam * x) / by if rule.proximal_decay else step * u + lam * x

        updates = jax.tree.map(moved, direction, params)
        metrics = published(alpha, tau, bound)
        # A bound that does not adapt would be the caller's array, so the state's copy is kept.
        kept = bound if rule.adapt_lower_bound else state.bound
        return updates, ScaleByMomoState(count, d, v, f, gamma, kept, metrics)

    return transformation(method, init, update, needs_params=True)


def scale_by_momo(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    b1: Scalar = 0.9,
    lower_bound: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    adapt_lower_bound: bool = False,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The step x_t - x_{t+1} of MoMo as a link, without the sign.

    Equations: those of `momo`. The learning rate is an argument of a minimum, and the decay is a division, so neither
    can be a later link.

    Args:
      learning_rate: alpha, the largest step size, >= 0, or a schedule. Default 1 (official code).
      b1: decay of the means, in [0, 1). Default 0.9 (paper).
      lower_bound: lb, of the loss, any finite number. Default 0.
      weight_decay: lambda, proximal, >= 0. Default 0.
      adapt_lower_bound: whether the bound follows the losses (MoMo*). Default False.
      bias_correction: whether the means start at 0 and are corrected. Default False (official code): they start at
        their first terms.

    Returns:
      A transformation that needs `params` and `value`. State: 1 word per parameter and numbers. Metrics:
      `momo_step_size`, `last_lower_bound`, `last_learning_rate`. Collectives: three scalars, in one all-reduce.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `value` missing or not a scalar, `params` missing.

    Example:
      >>> tx = scale_by_momo()
      >>> x = jnp.array([1.0, 2.0, 3.0])  # the loss is |x|^2: half of the way
      >>> tx.update(2 * x, tx.init(x), x, value=jnp.sum(x**2))[0].tolist()
      [0.5, 1.0, 1.5]

    Reference: Schaipp et al. MoMo: Momentum Models for Adaptive Learning Rates. 2023, arXiv 2305.07583.
    """
    checks.switch(bias_correction=bias_correction)
    rule = _Rule(
        learning_rate, b1, None, 0.0, lower_bound, weight_decay, adapt_lower_bound, bias_correction, proximal_decay=True
    )
    return _scale("scale_by_momo", rule)


def _descent(method: Method, link: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    return optimizer(method, link, optax.scale(-1.0))


def momo(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    b1: Scalar = 0.9,
    lower_bound: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    adapt_lower_bound: bool = False,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Momentum SGD whose step goes to where a model of the loss meets a lower bound (MoMo).

    Equations, with the gradient g_t and the loss f_t at x_t, alpha = learning_rate and a = 1 + alpha weight_decay:

        d = b1 d + (1 - b1) g_t,   f = b1 f + (1 - b1) f_t,   gamma = b1 gamma + (1 - b1) <g_t, x_t>
        tau = min(alpha, max(a (f - lower_bound - gamma) + <d, x_t>, 0) / |d|^2)
        x_{t+1} = (x_t - tau d) / a

    The means start at their first terms; with `bias_correction` they start at 0, and tau is as in `momo_adam`, with
    D = 1 and rho = 1 - b1^t. `adapt_lower_bound` is as in `momo_adam`.

    Args:
      learning_rate: the largest step size, >= 0, or a schedule. Default 1 (official code).
      b1: decay of the means, in [0, 1). Default 0.9 (paper).
      lower_bound: of the loss, any finite number. Default 0. Where the loss is below it there is no step.
      weight_decay: proximal, >= 0: the new parameters are divided by 1 + learning_rate * weight_decay. Default 0.
      adapt_lower_bound: whether the bound follows the losses (MoMo*), from `lower_bound` upwards. Default False.
      bias_correction: whether the means start at 0 and are corrected. Default False (official code): they start at
        their first terms.

    Returns:
      A transformation that needs `params` and `value`, the loss of the minibatch (on a mesh, of the global one). State:
      1 word per parameter and numbers. Metrics: `momo_step_size`, `last_lower_bound`, `last_learning_rate`.
      Collectives: three scalars, in one all-reduce.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `value` missing or not a scalar, `params` missing.

    Example:
      >>> tx = momo()
      >>> x = jnp.array([1.0, 2.0, 3.0])  # the loss is |x|^2
      >>> tx.update(2 * x, tx.init(x), x, value=jnp.sum(x**2))[0].tolist()
      [-0.5, -1.0, -1.5]

    Reference: Schaipp et al. MoMo: Momentum Models for Adaptive Learning Rates. 2023, arXiv 2305.07583. `optax.contrib.
    momo` does not divide the step of the gradient by a; its numbers have the lowest dtype of the parameters.
    """
    link = scale_by_momo(
        learning_rate,
        b1=b1,
        lower_bound=lower_bound,
        weight_decay=weight_decay,
        adapt_lower_bound=adapt_lower_bound,
        bias_correction=bias_correction,
    )
    return _descent(Method("momo", learning_rate, weight_decay), link)


def momo_adam(
    learning_rate: ScalarOrSchedule = 1e-2,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    lower_bound: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    adapt_lower_bound: bool = False,
    proximal_decay: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Adam whose step goes to where a model of the loss meets a lower bound (MoMo-Adam).

    Equations, with the gradient g_t and the loss f_t at x_t, the lower bound lb, alpha = learning_rate and
    a = 1 + alpha weight_decay; the means start at 0:

        d = b1 d + (1 - b1) g_t,   f = b1 f + (1 - b1) f_t,   gamma = b1 gamma + (1 - b1) <g_t, x_t>
        v = b2 v + (1 - b2) g_t^2,   D = eps + sqrt(v / (1 - b2^t))
        rho = 1 - b1^t,   n = sum of d^2 / D
        tau = min(alpha / rho, max(a (f - rho lb - gamma) + <d, x_t>, 0) / n)             0 where n = 0
        x_{t+1} = (x_t - tau d / D) / a

    With `adapt_lower_bound` (MoMo*), lb changes before the step, where the first line holds, and after it:

        if a (f - gamma) + <d, x_t> < a rho lb:   lb = max((a (f - gamma) + <d, x_t>) / (2 a rho), lower_bound)
        lb = max((f + <d, x_t> - gamma - tau n / 2) / rho, lower_bound)

    Args:
      learning_rate: the largest step size, >= 0, or a schedule. Default 1e-2 (official code).
      b1: decay of the means of losses and gradients, in [0, 1). Default 0.9 (paper).
      b2: decay of the second moment, in [0, 1). Default 0.999 (paper).
      eps: added to the root, >= 0. Default 1e-8.
      lower_bound: of the loss, any finite number. Default 0.
      weight_decay: >= 0. Default 0.
      adapt_lower_bound: whether the bound follows the losses (MoMo*). Default False.
      proximal_decay: whether the new parameters are divided by a = 1 + learning_rate * weight_decay; otherwise
        x_{t+1} = (1 - learning_rate weight_decay) x_t - tau d / D. Default True (paper).

    Returns:
      A transformation that needs `params` and `value`, the loss of the minibatch (on a mesh, of the global one). State:
      2 words per parameter and numbers. Metrics: `momo_step_size`, `last_lower_bound`, `last_learning_rate`.
      Collectives: three scalars, in one all-reduce.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `value` missing or not a scalar, `params` missing.

    Example:
      >>> tx = momo_adam(eps=0.0)
      >>> x = jnp.array([1.0, 2.0])
      >>> print(tx.update(2 * x, tx.init(x), x, value=jnp.sum(x**2))[0].round(4))  # the cap: Adam's first step
      [-0.01 -0.01]

    Reference: Schaipp et al. MoMo: Momentum Models for Adaptive Learning Rates. 2023, arXiv 2305.07583.
    """
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    checks.switch(proximal_decay=proximal_decay)
    rule = _Rule(
        learning_rate, b1, b2, eps, lower_bound, weight_decay, adapt_lower_bound, True, proximal_decay=proximal_decay
    )
    return _descent(Method("momo_adam", learning_rate, weight_decay), _scale("momo_adam", rule))


COMMON: dict[str, Any] = {"paper": PAPER, "needs": ("value",), "collectives": "norms"}
TRAJECTORIES = ("step_size/momo", "step_size/momo_star")
register(scale_by_momo, form="primitive", **COMMON, words=1, golden=TRAJECTORIES)
# The learning rate is an upper limit of the step size: a schedule of a race would override what the loss determines.
register(
    momo,
    form="optimizer",
    **COMMON,
    words=1,
    golden=TRAJECTORIES,
    race=Race(1.0, schedule=None),
    variants={"default_momo": Race(None, {"learning_rate": 1.0}, schedule=None)},
)
register(
    momo_adam,
    form="optimizer",
    **COMMON,
    words=2,
    golden=("step_size/momo_adam", "step_size/momo_adam_star"),
    race=Race(1e-2, schedule=None),
    variants={"default_momo_adam": Race(None, {"learning_rate": 1e-2}, schedule=None)},
)
