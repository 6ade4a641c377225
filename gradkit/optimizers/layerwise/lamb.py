"""LAMB: Adam's direction, rescaled per layer to the norm of its weights."""

import math
from typing import Any

import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import optimizer
from gradkit.engine.presets import called, preset
from gradkit.leaves import Layout, Method
from gradkit.transforms import (
    add_decayed_weights,
    clip_by_global_norm,
    scale_by_adam,
    scale_by_learning_rate,
    scale_by_trust_ratio,
)
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", "You et al.", 2019, "1904.00962"
)


def lamb(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    eps_root: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    trust_ratio_mask: Mask | None = None,
    bias_correction: bool = True,
    nesterov: bool = False,
    param_norm_min: Scalar = 0.0,
    param_norm_max: Any = math.inf,
    ratio_max: Any = math.inf,
    max_norm: Scalar | None = None,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Layer-wise adaptive moments for large batches (LAMB).

    Equations, with the norms over all leaves in the first line, and over a layer elsewhere:

        g_t <- g_t / max(1, |g_t| / max_norm)                       where max_norm is given
        m_t = b1 m_{t-1} + (1 - b1) g_t            v_t = b2 v_{t-1} + (1 - b2) |g_t|^2
        r_t = (m_t / (1 - b1^t)) / (sqrt(v_t / (1 - b2^t) + eps_root) + eps)
        u_t = r_t + weight_decay w_{t-1}
        w_t = w_{t-1} - learning_rate min(phi(|w_{t-1}|) / |u_t|, ratio_max) u_t
        phi(z) = clip(z, param_norm_min, param_norm_max)

    The ratio is 1 where a norm is 0. With `nesterov` (N-LAMB) the numerator of r_t is
    b1 m_t / (1 - b1^(t+1)) + (1 - b1) g_t / (1 - b1^t); LAMBC has ratio_max = 1. Without
    `bias_correction` nothing is divided by 1 - b^t.

    Args:
      learning_rate: relative size of a step, >= 0, or a schedule.
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root, >= 0. Default 1e-6 (official code).
      eps_root: added under the root, >= 0. Default 0.
      weight_decay: part of the direction, before its norm is taken, >= 0, or a schedule. Default 0; the
        paper uses 0.01.
      weight_decay_mask: which leaves decay. Default all; the authors' code spares biases and norms.
      trust_ratio_mask: which leaves are rescaled. Default all; in the authors' code those that decay.
      bias_correction: whether moments are bias-corrected. Default True (published version and authors' code; the
        arXiv version 3 does not).
      nesterov: whether the first moment looks ahead (N-LAMB). Default False.
      param_norm_min: lower clamp of the weights' norm, >= 0. Default 0.
      param_norm_max: upper clamp of the weights' norm. Default inf (authors' code); a common port has 10.
      ratio_max: upper clamp of the ratio. Default inf; 1 is LAMBC.
      max_norm: global norm that gradients are clipped to first. Default None; MLPerf's code has 1.
      mu_dtype: dtype in which the first moment is kept. Default float32.
      layout: which axes are stacks: every layer of a scan has its own ratio.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter; metrics `learning_rate`,
      `trust_ratio` (and `gradient_norm`, `clipped`). Collectives: two scalars per tensor where leaves are
      sharded.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = lamb(0.1)
      >>> w = jnp.array([3.0, 4.0])
      >>> u = tx.update(jnp.array([1.0, 100.0]), tx.init(w), w)[0]
      >>> round(float(jnp.linalg.norm(u)), 4)  # 0.1 |w|, whatever the gradient
      0.5

    Reference: You et al. Large Batch Optimization for Deep Learning: Training BERT in 76 minutes. 2019, arXiv
    1904.00962.
    """
    checks.real("max_norm", max_norm, "(0, inf]", optional=True)
    return optimizer(
        Method(called("lamb"), learning_rate, weight_decay, weight_decay_mask),
        *([] if max_norm is None else [clip_by_global_norm(max_norm)]),
        scale_by_adam(
            b1=b1,
            b2=b2,
            eps=eps,
            eps_root=eps_root,
            bias_correction=bias_correction,
            nesterov=nesterov,
            mu_dtype=mu_dtype,
        ),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_trust_ratio(
            param_norm_min=param_norm_min,
            param_norm_max=param_norm_max,
            ratio_max=ratio_max,
            trust_ratio_mask=trust_ratio_mask,
            layout=layout,
        ),
        scale_by_learning_rate(learning_rate),
    )


nlamb = preset(lamb, "nlamb", "LAMB whose first moment looks one step ahead, as in Nesterov's Adam.", nesterov=True)
lambc = preset(lamb, "lambc", "LAMB whose ratio is at most 1: no leaf steps further than Adam would.", ratio_max=1.0)


register(
    lamb,
    form="optimizer",
    paper=PAPER,
    words=2,
    collectives="norms",
    golden=("large_batch/lamb", "large_batch/lamb_clipped", "large_batch/lamb_no_debias"),
    race=Race(3e-2),
)
register(
    nlamb,
    form="optimizer",
    paper=PAPER,
    words=2,
    collectives="norms",
    race=Race(3e-2),
)
register(
    lambc,
    form="optimizer",
    paper=PAPER,
    words=2,
    collectives="norms",
    race=Race(3e-2),
)
