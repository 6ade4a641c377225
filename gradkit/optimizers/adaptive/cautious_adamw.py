"""Cautious AdamW: entries of Adam's direction that oppose the gradient are left out."""

import optax

from gradkit.catalogue import Race, register
from gradkit.engine.core import optimizer
from gradkit.leaves import Layout, Method
from gradkit.transforms import add_decayed_weights, cautious, scale_by_adam, scale_by_learning_rate
from gradkit.transforms.cautious import PAPER
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule


def cautious_adamw(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    normalize: str | None = "mean",
    floor: Scalar = 1e-3,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW that moves no entry against its gradient; the decay is not masked.

    Equations, with n the number of entries of a tensor:

        m_t = b1 m_{t-1} + (1 - b1) g_t            v_t = b2 v_{t-1} + (1 - b2) g_t^2
        u_t = (m_t / (1 - b1^t)) / (sqrt(v_t / (1 - b2^t)) + eps)
        phi = 1[u_t g_t > 0]                                              entrywise
        d_t = u_t phi / max(mean(phi), floor)                             normalize="mean"
        d_t = u_t phi n / (sum(phi) + 1)                                  normalize="count"
        x_t = x_{t-1} - learning_rate (d_t + weight_decay x_{t-1})

    Args:
      learning_rate: step size >= 0, or a schedule.
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root, >= 0. Default 1e-8; the official code has 1e-6, before the bias correction.
      weight_decay: decoupled decay >= 0, or a schedule. Default 0 (official code).
      weight_decay_mask: which leaves decay. Default all.
      normalize: "mean" (default, official code), "count" (paper) or None, see `cautious`.
      floor: smallest mean of the mask that is divided by, in (0, 1]. Default 1e-3 (official code).
      mu_dtype: dtype in which the first moment is kept. Default float32.
      layout: which axes are stacks: every layer of a scan has its own mean.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter. Collectives: one scalar per tensor where
      leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = cautious_adamw(0.5)
      >>> x = jnp.array([2.0, -0.5])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.5  0.5]

    Reference: Liang et al. Cautious Optimizers: Improving Training with One Line of Code. 2024, arXiv 2411.16085. eps
    is added after bias correction; the official code adds it before.
    """
    return optimizer(
        Method("cautious_adamw", learning_rate, weight_decay, weight_decay_mask),
        cautious(
            scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype), normalize=normalize, floor=floor, layout=layout
        ),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


register(
    cautious_adamw,
    form="optimizer",
    paper=PAPER,
    words=2,
    collectives="norms",
    golden=("modern/cautious_adamw",),
    race=Race(5e-3),
)
