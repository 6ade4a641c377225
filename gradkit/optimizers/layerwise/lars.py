"""LARS and LARC: every layer moves in proportion to the norm of its weights."""

from typing import Any

import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import optimizer
from gradkit.leaves import Layout, Method, matrices_by_default
from gradkit.transforms import (
    add_decayed_weights,
    scale_by_learning_rate,
    scale_by_trust_ratio,
    trace,
)
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("Large Batch Training of Convolutional Networks", "You, Gitman, Ginsburg", 2017, "1708.03888")

# Masks whose default depends on the layout: a stack of biases is left out as a single bias is.
MATRICES = "matrices"


def _rescaled(
    name: str,
    learning_rate: Any,
    momentum: optax.GradientTransformation,
    *,
    rate_inside: bool,
    weight_decay: Any,
    denominator: str,
    weight_decay_mask: Any,
    trust_ratio_mask: Any,
    layout: Layout | None,
    **ratio: Any,
) -> optax.GradientTransformationExtraArgs:
    """The ratio, then the momentum, with the learning rate inside the momentum or behind it."""
    spared = matrices_by_default(layout)
    decay_mask, ratio_mask = (spared if mask is MATRICES else mask for mask in (weight_decay_mask, trust_ratio_mask))
    checks.choice("denominator", denominator, ("separate", "joint"))
    ratio |= {"denominator": denominator, "trust_ratio_mask": ratio_mask, "layout": layout}
    if denominator == "separate":
        links = [scale_by_trust_ratio(weight_decay=weight_decay, weight_decay_mask=decay_mask, **ratio)]
    else:
        links = [add_decayed_weights(weight_decay, weight_decay_mask=decay_mask), scale_by_trust_ratio(**ratio)]
    rate = scale_by_learning_rate(learning_rate)
    links += [rate, momentum] if rate_inside else [momentum, rate]
    return optimizer(Method(name, learning_rate, weight_decay, decay_mask), *links)


def lars(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: Scalar = 0.9,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: Scalar = 0.001,
    eps: Scalar = 0.0,
    nesterov: bool = False,
    denominator: str = "separate",
    weight_decay_mask: Mask = MATRICES,
    trust_ratio_mask: Mask = MATRICES,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Layer-wise adaptive rate scaling for SGD with momentum (LARS).

    Equations, with the norms over a layer, and the ratio 1 where one of them is 0:

        ratio = trust_coefficient |w| / (|g| + weight_decay |w| + eps)        denominator="separate" (paper)
        ratio = trust_coefficient |w| / (|g + weight_decay w| + eps)          denominator="joint"
        d = g + weight_decay w
        v_t = momentum v_{t-1} + learning_rate(t) ratio d                     the learning rate inside the momentum
        w_t = w_{t-1} - v_t,   or with nesterov  learning_rate(t) ratio d + momentum v_t for v_t

    Args:
      learning_rate: global learning rate >= 0, or a schedule; the paper has a warm-up and then a quadratic decay.
      momentum: decay of the momentum, in [0, 1]. Default 0.9 (the paper's runs).
      weight_decay: decay inside the ratio, >= 0, or a schedule. Default 0; the paper uses 5e-4.
      trust_coefficient: relative size of a step, > 0. Default 0.001 (paper).
      eps: added to the denominator, >= 0. Default 0.
      nesterov: whether to look ahead. Default False.
      denominator: "separate" (paper, and the first public codes) or "joint" (optax, later codes).
      weight_decay_mask: which leaves decay. Default: those of rank 2 and more, not counting stack axes
        (all later users spare biases and normalisation; the paper does not say so).
      trust_ratio_mask: which leaves are rescaled; the others take plain momentum steps. Default: those that decay.
      mu_dtype: dtype in which the momentum is kept. Default float32.
      layout: which axes are stacks: every layer of a scan has its own ratio.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter; metrics `learning_rate` and
      `trust_ratio`. Collectives: two scalars per tensor where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = lars(1.0, trust_coefficient=0.5)
      >>> w = jnp.eye(2)
      >>> print(tx.update(7 * w, tx.init(w), w)[0].round(4))  # |update| = |w| / 2, whatever the gradient
      [[-0.5  0. ]
       [ 0.  -0.5]]

    Reference: You, Gitman, Ginsburg. Large Batch Training of Convolutional Networks. 2017, arXiv 1708.03888.
    Codes in torch have the learning rate outside the momentum: the same while it is constant.
    """
    checks.real("momentum", momentum, "[0, 1]")
    if nesterov and isinstance(momentum, int | float) and momentum == 0:
        raise ValueError(
            f"momentum must be in (0, 1] with nesterov=True, got {momentum}; write momentum=0.9, or nesterov=False"
        )
    return _rescaled(
        "lars",
        learning_rate,
        trace(momentum, nesterov=nesterov, mu_dtype=mu_dtype),
        rate_inside=True,
        weight_decay=weight_decay,
        denominator=denominator,
        weight_decay_mask=weight_decay_mask,
        trust_ratio_mask=trust_ratio_mask,
        layout=layout,
        trust_coefficient=trust_coefficient,
        eps=eps,
    )


def larc(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: Scalar = 0.9,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: Scalar = 0.001,
    eps: Scalar = 0.0,
    nesterov: bool = False,
    denominator: str = "separate",
    weight_decay_mask: Mask = MATRICES,
    trust_ratio_mask: Mask = MATRICES,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LARS with the ratio as an upper bound: no layer has a larger learning rate than the one that is given (LARC).

    Equations, with the norms over a layer, and the ratio 1 where one of them is 0:

        ratio = trust_coefficient |w| / (|g| + weight_decay |w| + eps)        denominator="separate" (paper)
        ratio = trust_coefficient |w| / (|g + weight_decay w| + eps)          denominator="joint"
        d = g + weight_decay w
        c = min(ratio / learning_rate(t), 1)
        v_t = momentum v_{t-1} + c d
        w_t = w_{t-1} - learning_rate(t) v_t,   or with nesterov  c d + momentum v_t for v_t

    Args:
      learning_rate: global learning rate >= 0, or a schedule; the upper bound for every layer.
      momentum: decay of the momentum, in [0, 1]. Default 0.9.
      weight_decay: decay inside the ratio, >= 0, or a schedule. Default 0.
      trust_coefficient: relative size of a step, > 0. Default 0.001.
      eps: added to the denominator, >= 0. Default 0.
      nesterov: whether to look ahead. Default False.
      denominator: "separate" or "joint", as in `lars`.
      weight_decay_mask: which leaves decay. Default: rank 2 and more.
      trust_ratio_mask: which leaves are rescaled. Default: rank 2 and more.
      mu_dtype: dtype in which the momentum is kept. Default float32.
      layout: which axes are stacks.

    Returns:
      A transformation that needs `params`. State and collectives: those of `lars`.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = larc(0.25, trust_coefficient=0.5)
      >>> w = jnp.eye(2)
      >>> print(tx.update(w, tx.init(w), w)[0].round(4))  # the ratio 0.5 is above the learning rate
      [[-0.25 -0.  ]
       [-0.   -0.25]]

    Reference: You, Gitman, Ginsburg. 2017, arXiv 1708.03888, as in NVIDIA's apex and timm (clipped ratio).
    """
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    checks.real("momentum", momentum, "[0, 1]")
    return _rescaled(
        "larc",
        learning_rate,
        trace(momentum, nesterov=nesterov, mu_dtype=mu_dtype),
        rate_inside=False,
        weight_decay=weight_decay,
        denominator=denominator,
        weight_decay_mask=weight_decay_mask,
        trust_ratio_mask=trust_ratio_mask,
        layout=layout,
        trust_coefficient=trust_coefficient,
        eps=eps,
        relative_to=learning_rate,
        ratio_max=1.0,
    )


GOLDEN = ("large_batch/lars", "large_batch/lars_joint", "large_batch/lars_schedule")
register(
    lars,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="norms",
    golden=GOLDEN,
    # Vectors have the learning rate itself: one that suits matrices with the default coefficient is too large for them.
    race=Race(5e-1, {"trust_coefficient": 0.02}),
)
register(
    larc,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="norms",
    golden=("large_batch/lars_clipped",),
    example={"trust_coefficient": 0.1},
    race=Race(1.0),
)
