"""StableAdamW: AdamW whose learning rate falls, per tensor, where a gradient is far above its second moment."""

import optax

from gradkit.catalogue import Race, register
from gradkit.engine.core import optimizer
from gradkit.leaves import Layout, Method
from gradkit.transforms import add_decayed_weights, clip_by_update_rms, scale_by_adam, scale_by_learning_rate
from gradkit.transforms.update_rms import PAPER
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule


def stable_adamw(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-6,
    weight_decay: ScalarOrSchedule = 1e-2,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW with update clipping: it needs no clipping of gradients.

    Equations:

        m_t = b1 m_{t-1} + (1 - b1) g_t,  v_t = b2 v_{t-1} + (1 - b2) g_t^2,  hats: divided by 1 - b^t
        rms_t = sqrt(mean(g_t^2 / max(v^_t, eps^2)))                          of a tensor
        x_t = x_{t-1} - learning_rate / max(1, rms_t) (m^_t / (sqrt(v^_t) + eps) + weight_decay x_{t-1})

    rms_t is at most sqrt((1 - b2^t) / (1 - b2)), 10 for b2 = 0.99: a spike makes a step at most ten times shorter.

    Args:
      learning_rate: step size >= 0, or a schedule, which scales the decay too.
      b1: decay of the first moment, in [0, 1). Default 0.9 (code of optimi).
      b2: decay of the second moment, in [0, 1). Default 0.99 (code of optimi).
      eps: added to the root, and lower bound of it in the RMS, >= 0. Default 1e-6 (code of optimi).
      weight_decay: decoupled decay >= 0, or a schedule. Default 1e-2 (code of optimi).
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which the first moment is kept. Default float32.
      layout: which axes are stacks: every layer of a scan has its own RMS.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter. Collectives: one scalar per tensor where
      leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = stable_adamw(0.5, weight_decay=0.0)
      >>> x = jnp.array([2.0, -0.5])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))  # the first step is that of AdamW
      [-0.5  0.5]

    Reference: Wortsman et al. Stable and low-precision training for large-scale vision-language models. 2023, arXiv
    2304.13013. As in the code of optimi, the clipped learning rate multiplies the decay too, and the second moment in
    the RMS contains the gradient of this step; some copies use that of the step before.
    """
    return optimizer(
        Method("stable_adamw", learning_rate, weight_decay, weight_decay_mask),
        clip_by_update_rms(
            optax.chain(
                scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype),
                add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
            ),
            b2=b2,
            eps=eps,
            layout=layout,
        ),
        scale_by_learning_rate(learning_rate),
    )


register(
    stable_adamw,
    form="optimizer",
    paper=PAPER,
    words=2,
    collectives="norms",
    golden=("modern/stable_adamw",),
    race=Race(5e-3),
)
