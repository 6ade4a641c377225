"""Grams: the magnitude of Adam's update with the sign of the gradient."""

import optax

from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import optimizer
from gradkit.leaves import Method
from gradkit.transforms import (
    add_decayed_weights,
    direction_from_gradient,
    scale_by_adam,
    scale_by_learning_rate,
)
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule


def grams(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam's update, whose magnitude is kept and whose sign is that of the gradient.

    Equations:

        m_t = b1 m_{t-1} + (1 - b1) g_t            v_t = b2 v_{t-1} + (1 - b2) g_t^2
        u_t = sign(g_t) |m_t / (1 - b1^t)| / (sqrt(v_t / (1 - b2^t)) + eps)
        x_t = x_{t-1} - learning_rate (u_t + weight_decay x_{t-1})

    Args:
      learning_rate: step size >= 0, or a schedule. The official code has 1e-3.
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root, >= 0. Default 1e-6 (official code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which the first moment is kept. Default float32.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = grams(0.5)
      >>> x = jnp.array([2.0, -0.5])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.5  0.5]

    Reference: Cao, Li, Song. Grams: Gradient Descent with Adaptive Momentum Scaling. 2024, arXiv 2412.17107.
    eps is added after bias correction; the official code adds it before.
    """
    return optimizer(
        Method("grams", learning_rate, weight_decay, weight_decay_mask),
        direction_from_gradient(scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype)),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


register(
    grams,
    form="optimizer",
    paper=Paper("Grams: Gradient Descent with Adaptive Momentum Scaling", "Cao, Li, Song", 2024, "2412.17107"),
    words=2,
    golden=("adaptive/grams",),
    race=Race(5e-3),
)
