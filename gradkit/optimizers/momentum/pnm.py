"""Gradient descent with positive-negative momentum."""

import optax

from gradkit.catalogue import Race, register
from gradkit.engine.core import optimizer
from gradkit.leaves import Method
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate, scale_by_pnm
from gradkit.transforms.pnm import PAPER
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule


def positive_negative_momentum(
    learning_rate: ScalarOrSchedule,
    *,
    b0: Scalar = 0.9,
    b1: Scalar = 0.9,
    bias_correction: bool = True,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with the weighted difference of two running means, of odd and of even steps.

    Equations, with m_0 = m_{-1} = 0:

        m_t = b1^2 m_{t-2} + (1 - b1^2) g_t
        u_t = ((1 + b0) m_t - b0 m_{t-1}) / sqrt((1 + b0)^2 + b0^2) / (1 - b1^t)
        x_t = x_{t-1} - learning_rate (u_t + weight_decay x_{t-1})

    The two means share no gradient, so their noises are independent. The factor 1 / (1 - b1^t) is there with
    `bias_correction` only.

    Args:
      learning_rate: step size >= 0, or a schedule.
      b0: how much of the other mean is subtracted, > -1. Default 0.9 (Ranger21; the paper's code has 1).
      b1: decay per step, in [0, 1). Default 0.9 (official code).
      bias_correction: whether to divide by 1 - b1^t. Default True; the authors' code for SGD has False.
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which both means are kept. Default float32.

    Returns:
      A transformation; with `weight_decay` it needs `params`. State: 2 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = positive_negative_momentum(0.1, b0=0.0, b1=0.5)
      >>> x = jnp.array(1.0)
      >>> round(float(tx.update(x, tx.init(x), x)[0]), 4)  # (1 - b1^2) / (1 - b1)
      -0.15

    Reference: Xie et al. Positive-Negative Momentum: Manipulating Stochastic Gradient Noise to Improve Generalization.
    2021, arXiv 2103.17042.
    """
    return optimizer(
        Method("positive_negative_momentum", learning_rate, weight_decay, weight_decay_mask),
        scale_by_pnm(b0=b0, b1=b1, bias_correction=bias_correction, mu_dtype=mu_dtype),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


register(
    positive_negative_momentum,
    form="optimizer",
    paper=PAPER,
    words=2,
    race=Race(1e-1),
)
