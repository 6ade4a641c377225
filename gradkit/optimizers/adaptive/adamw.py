"""AdamW: Adam with decoupled weight decay."""

import optax

from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import optimizer
from gradkit.leaves import Method
from gradkit.transforms import (
    add_decayed_weights,
    scale_by_adam,
    scale_by_learning_rate,
)
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule


def adamw(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 1e-2,
    weight_decay_mask: Mask | None = None,
    nesterov: bool = False,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam with decoupled weight decay, which is scaled by the learning rate and not by the second moment.

    Equations:

        m_t = b1 m_{t-1} + (1 - b1) g_t            v_t = b2 v_{t-1} + (1 - b2) |g_t|^2
        u_t = (m_t / (1 - b1^t)) / (sqrt(v_t / (1 - b2^t) + eps_root) + eps)
        x_t = x_{t-1} - learning_rate (u_t + weight_decay x_{t-1})

    With `nesterov` the numerator is b1 m_t / (1 - b1^(t+1)) + (1 - b1) g_t / (1 - b1^t).

    Args:
      learning_rate: step size >= 0, or a schedule, which scales the decay too.
      b1: decay of the first moment, in [0, 1). Default 0.9 (paper).
      b2: decay of the second moment, in [0, 1). Default 0.999 (paper).
      eps: added to the root, >= 0. Default 1e-8 (paper).
      eps_root: added under the root, >= 0. Default 0.
      weight_decay: coefficient >= 0, or a schedule. Default 1e-2 (torch; optax has 1e-4; the paper tunes it).
      weight_decay_mask: which leaves decay, such as `gk.leaves.no_decay()` to spare biases and scales.
        Default all (paper).
      nesterov: whether the first moment looks one step ahead. Default False.
      mu_dtype: dtype in which the first moment is kept between steps. Default float32.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adamw(0.1, weight_decay=0.5)
      >>> x = jnp.array(2.0)
      >>> round(float(tx.update(0 * x, tx.init(x), x)[0]), 4)  # no gradient: decay alone
      -0.1

    Reference: Loshchilov, Hutter. Decoupled Weight Decay Regularization. 2017, arXiv 1711.05101.
    """
    return optimizer(
        Method("adamw", learning_rate, weight_decay, weight_decay_mask),
        scale_by_adam(b1=b1, b2=b2, eps=eps, eps_root=eps_root, nesterov=nesterov, mu_dtype=mu_dtype),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


register(
    adamw,
    form="optimizer",
    paper=Paper("Decoupled Weight Decay Regularization", "Loshchilov, Hutter", 2017, "1711.05101"),
    words=2,
    race=Race(5e-3),
)
