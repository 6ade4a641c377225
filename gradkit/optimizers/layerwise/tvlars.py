"""TVLARS: LARS without a warm-up, whose ratio is largest at first and falls over time."""

import math

import jax
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import optimizer, scalar
from gradkit.leaves import Layout, Method, matrices_by_default
from gradkit.schedules import tvlars_schedule
from gradkit.transforms import (
    add_decayed_weights,
    scale_by_learning_rate,
    scale_by_trust_ratio,
    trace,
)
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule


def tvlars(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: Scalar = 0.9,
    weight_decay: ScalarOrSchedule = 5e-4,
    trust_coefficient: Scalar = 0.001,
    decay_rate: Scalar = 1e-3,
    delay: Scalar = 0,
    alpha: Scalar = 1.0,
    gamma_min: Scalar = 0.0,
    norm_max: Scalar = math.inf,
    weight_decay_mask: Mask = "matrices",
    trust_ratio_mask: Mask = "matrices",
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LARS whose ratio varies with time: large exploratory steps at first, in the place of a warm-up (TVLARS).

    Equations, with t = 1, 2, ..., the norms over a layer, and the ratio 1 where one of them is 0:

        phi_t = 1 / (alpha + exp(decay_rate (t - delay))) + gamma_min
        d     = g + weight_decay w
        ratio = trust_coefficient phi_t min(|w|, norm_max) / min(|d|, norm_max)
        v_t   = momentum v_{t-1} + learning_rate ratio d
        w_t   = w_{t-1} - v_t

    Args:
      learning_rate: global learning rate >= 0, or a schedule; phi takes the place of a warm-up and of a decay.
      momentum: decay of the momentum, in [0, 1]. Default 0.9.
      weight_decay: decay inside the ratio, >= 0, or a schedule. Default 5e-4.
      trust_coefficient: relative size of a step, > 0. Default 0.001.
      decay_rate: how fast phi falls, per step, >= 0. Default 1e-3. With 0 this is LARS with trust_coefficient
        (1 / (alpha + 1) + gamma_min).
      delay: the step at which phi bends, >= 0. Default 0.
      alpha: the summand alpha of phi, > 0. Default 1 (paper, from a second source); the official code has 0.1.
      gamma_min: limit of phi after many steps, >= 0. Default 0 (official code).
      norm_max: upper clamp of both norms, > 0. Default inf, as in the equations of the paper; the official code has 10.
      weight_decay_mask: which leaves decay. Default "matrices": rank 2 and more, not counting stack axes; the
        official code takes all.
      trust_ratio_mask: which leaves are rescaled; the others take plain momentum steps, without phi. Default: those
        that decay.
      mu_dtype: dtype in which the momentum is kept. Default float32.
      layout: which axes are stacks: every layer of a scan has its own ratio.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter; metrics `learning_rate` and `trust_ratio`.
      Collectives: two scalars per tensor where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx, w = tvlars(1.0, trust_coefficient=0.5, decay_rate=0.0), jnp.eye(2)
      >>> print(tx.update(7 * w, tx.init(w), w)[0].round(4))  # |update| = |w| / 4, whatever the gradient
      [[-0.25  0.  ]
       [ 0.   -0.25]]

    Reference: Do et al. Revisiting LARS for Large Batch Training Generalization of Neural Networks. 2024, arXiv
    2309.14053. The denominator is that of the official code, which ignores its delay and has no gamma_min; these two
    are as in the paper.
    """
    checks.real("trust_coefficient", trust_coefficient, "(0, inf)")
    checks.real("norm_max", norm_max, "(0, inf]")
    phi = tvlars_schedule(decay_rate, delay=delay, alpha=alpha, gamma_min=gamma_min)
    matrices = matrices_by_default(layout)
    decayed, adapted = (matrices if m == "matrices" else m for m in (weight_decay_mask, trust_ratio_mask))

    def coefficient(count: jax.Array) -> jax.Array:
        factor = phi(count)
        return scalar(trust_coefficient, factor) * factor

    return optimizer(
        Method("tvlars", learning_rate, weight_decay, decayed),
        add_decayed_weights(weight_decay, weight_decay_mask=decayed),
        scale_by_trust_ratio(
            trust_coefficient=coefficient,
            param_norm_max=norm_max,
            update_norm_max=norm_max,
            trust_ratio_mask=adapted,
            layout=layout,
        ),
        scale_by_learning_rate(learning_rate),
        trace(momentum, mu_dtype=mu_dtype),
    )


register(
    tvlars,
    form="optimizer",
    paper=Paper(
        "Revisiting LARS for Large Batch Training Generalization of Neural Networks", "Do et al.", 2024, "2309.14053"
    ),
    words=1,
    collectives="norms",
    golden=("large_batch/tvlars",),
    example={"trust_coefficient": 0.1},
    # Vectors have the learning rate itself, as in LARS.
    race=Race(5e-1, {"trust_coefficient": 0.02}),
)
