"""XGrad: gradients at the weights that are predicted for after the step."""

from typing import Any

import jax
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import at_count, counter, optimizer, scalar, transformation
from gradkit.engine.presets import called, preset
from gradkit.leaves import Method
from gradkit.transforms import (
    AddDecayedWeightsState,
    add_decayed_weights,
    scale_by_adam,
    scale_by_learning_rate,
    shifted_parameters,
    trace,
)
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("XGrad: Boosting Gradient-Based Optimizers With Weight Prediction", "Guan, Li et al.", 2023, "2305.18240")


def xgrad(
    inner: optax.GradientTransformation,
    *,
    prediction_steps: Scalar = 1,
    after: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Weight prediction around any optimizer: the next gradient is taken where another step like the last would lead.

    Equations, with x the true parameters, y the predicted ones, which the user holds, and u_t what `inner` makes of the
    gradient at y_t:

        x_{t+1} = x_t + u_t                               and what `after` adds, such as -learning_rate weight_decay x_t
        y_{t+1} = x_{t+1} + prediction_steps u_t

    The next gradient is taken at y_{t+1}; moments and decay are those of x_{t+1}. The first gradient is at y_0 = x_0.

    Args:
      inner: a complete optimizer without decoupled decay; its last update gives the prediction.
      prediction_steps: how many steps ahead, >= 0. Default 1.
      after: a transformation that changes the step of the true parameters and is no part of the prediction, such as
        decoupled decay. Default None.

    Returns:
      A transformation that needs `params`, the predicted parameters; the true ones are `gk.eval_params(state, params)`.
      State: 1 word per parameter and the inner state.

    Raises:
      ValueError: `prediction_steps` negative or NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = xgrad(optax.sgd(0.1), prediction_steps=2)
      >>> y = jnp.array(1.0)
      >>> round(float(tx.update(jnp.array(1.0), tx.init(y), y)[0]), 4)  # one step and two predicted ones
      -0.3

    Reference: Guan, Li et al. XGrad: Boosting Gradient-Based Optimizers With Weight Prediction. 2023, arXiv
    2305.18240. With SGD, a constant learning rate and prediction_steps = momentum this is Nesterov's method.
    """
    checks.real("prediction_steps", prediction_steps, "[0, inf)")
    return shifted_parameters(inner, lambda u: jax.tree.map(lambda x: scalar(prediction_steps, x) * x, u), after=after)


def _decay(learning_rate: Any, weight_decay: Any, weight_decay_mask: Any) -> optax.GradientTransformation:
    """u - learning_rate * weight_decay * x, for an update u that includes the learning rate."""
    link = add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask)

    def init(params: optax.Params) -> AddDecayedWeightsState:
        link.init(params)  # checks the mask
        return AddDecayedWeightsState(counter(callable(learning_rate) or callable(weight_decay)))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        zero = jax.tree.map(lambda u: 0 * u, updates)
        decayed, new = link.update(zero, state, params, **extra)
        rate = at_count(learning_rate, state.count, "xgrad: learning_rate")
        return jax.tree.map(lambda u, d: u - scalar(rate, u) * d, updates, decayed), new

    return transformation("xgrad", init, update, needs_params=True, complex_leaves=True)


def xgrad_sgd(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: Scalar = 0.9,
    dampening: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Mask | None = None,
    prediction_steps: Scalar = 1,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD with momentum at predicted weights; the decay is an L2 penalty at the true parameters.

    This is `gk.xgrad` around SGD with momentum:

        v_t = momentum v_{t-1} + (1 - dampening) (g_t + weight_decay x_t)
        u_t = -learning_rate v_t,   x_{t+1} = x_t + u_t,   y_{t+1} = x_{t+1} + prediction_steps u_t

    Args:
      learning_rate: step size >= 0, or a schedule.
      momentum: decay of the momentum, in [0, 1]. Default 0.9 (official code).
      dampening: share of every gradient, the first included, that is left out, in [0, 1). Default 0.
      weight_decay: coefficient of the penalty, >= 0. Default 0.
      weight_decay_mask: which leaves are penalised. Default all.
      prediction_steps: how many steps ahead, >= 0. Default 1.
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = xgrad_sgd(0.1)
      >>> y = jnp.array(1.0)
      >>> round(float(tx.update(y, tx.init(y), y)[0]), 4)
      -0.2

    Reference: Guan, Li et al. 2023, arXiv 2305.18240.
    """
    inner = optax.chain(
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        trace(momentum, dampening=dampening, dampen_first=True, mu_dtype=mu_dtype),
        scale_by_learning_rate(learning_rate),
    )
    described = Method("xgrad_sgd", learning_rate, weight_decay, weight_decay_mask)
    return optimizer(described, xgrad(inner, prediction_steps=prediction_steps))


def xgrad_adamw(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    prediction_steps: Scalar = 1,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW at predicted weights; the prediction has no decay in it.

    This is `gk.xgrad` around Adam, with decoupled weight decay of the true parameters:

        u_t = -learning_rate (m_t / (1 - b1^t)) / (sqrt(v_t / (1 - b2^t)) + eps)
        x_{t+1} = x_t + u_t - learning_rate weight_decay x_t,   y_{t+1} = x_{t+1} + prediction_steps u_t

    Args:
      learning_rate: step size >= 0, or a schedule.
      b1: decay of the first moment, in [0, 1). Default 0.9.
      b2: decay of the second moment, in [0, 1). Default 0.999.
      eps: added to the root, >= 0. Default 1e-8.
      weight_decay: decoupled decay >= 0, at the true parameters, or a schedule. Default 0; None, as in `xgrad_adam`,
        leaves the link out.
      weight_decay_mask: which leaves decay. Default all.
      prediction_steps: how many steps ahead, >= 0. Default 1.
      mu_dtype: dtype in which the first moment is kept. Default float32.

    Returns:
      A transformation that needs `params`. State: 3 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = xgrad_adamw(0.1)
      >>> y = jnp.array(1.0)
      >>> round(float(tx.update(y, tx.init(y), y)[0]), 4)
      -0.2

    Reference: Guan, Li et al. 2023, arXiv 2305.18240.
    """
    inner = optax.chain(scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype), scale_by_learning_rate(learning_rate))
    after = None if weight_decay is None else _decay(learning_rate, weight_decay, weight_decay_mask)
    described = Method(called("xgrad_adamw"), learning_rate, weight_decay, weight_decay_mask)
    return optimizer(described, xgrad(inner, prediction_steps=prediction_steps, after=after))


xgrad_adam = preset(
    xgrad_adamw,
    "xgrad_adam",
    "Adam at predicted weights: `xgrad_adamw` without decay.",
    fixed={"weight_decay": None, "weight_decay_mask": None},
)

register(xgrad, form="wrapper", paper=PAPER, words=1)
register(xgrad_sgd, form="optimizer", paper=PAPER, words=2, golden=("adaptive/xgrad_sgd",))
register(xgrad_adam, form="optimizer", paper=PAPER, words=3)
register(xgrad_adamw, form="optimizer", paper=PAPER, words=3, golden=("adaptive/xgrad_adamw",))
