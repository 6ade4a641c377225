"""Momenta of several timescales over one second moment: the update rule of MT-DAO."""

import math
from collections.abc import Sequence
from typing import Any

import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import at_count, optimizer
from gradkit.leaves import Method
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate
from gradkit.transforms.momenta import Mean, root_mean_square, weighted_momenta
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "MT-DAO: Multi-Timescale Distributed Adaptive Optimizers with Local Updates", "Iacob et al.", 2025, "2510.05361"
)


def scale_by_multi_momentum(
    b1s: Sequence[Any] = (0.999,),
    *,
    weights: Sequence[Any] = (0.95,),
    bias_correction: bool = False,
    denominator: optax.GradientTransformation | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A weighted mean of the gradient and of its running means, one per timescale.

    Equations, with b_j the decays, w_j their weights and d the denominator, 1 without one:

        u_j <- b_j u_j + (1 - b_j) g,   j = 1 .. N
        D = ((1 - sum_j w_j) g + sum_j w_j u_j) / d

    With `bias_correction` u_j is divided by 1 - b_j^t.

    Args:
      b1s: decays of the running means, each in [0, 1). Default one, 0.999; the paper tunes them (0.99 to 0.999).
      weights: weights of the running means, one per decay, each in [0, 1] or a schedule, with a sum of at most 1; the
        gradient has the rest. Default 0.95.
      bias_correction: whether running means are divided by 1 - b^t. Default False, as the paper is quoted.
      denominator: a transformation that makes of the gradient what the sum is divided by, such as
        `gk.transforms.root_mean_square()`. Default None: the sum is not divided.
      mu_dtype: dtype in which the running means are kept. Default float32.

    Returns:
      A transformation. State: one word per parameter and decay (`state.momenta`, a tuple with a tree for each decay),
      a counter, and the state of the denominator. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; more or fewer weights than decays; weights that add up to more
        than 1.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_multi_momentum((0.5, 0.9), weights=(0.4, 0.4))
      >>> g = jnp.array(1.0)
      >>> round(float(tx.update(g, tx.init(g))[0]), 4)  # 0.2 + 0.4 * 0.5 + 0.4 * 0.1
      0.44

    Reference: Iacob et al. MT-DAO: Multi-Timescale Distributed Adaptive Optimizers with Local Updates. 2025, arXiv
    2510.05361. This is the update rule only: the average of every momentum over replicas, with a period of its own, is
    not part of it.
    """
    checks.sequence(schedules=True, b1s=b1s, weights=weights)
    checks.switch(bias_correction=bias_correction)
    checks.floating_dtype(mu_dtype=mu_dtype)
    b1s, weights = tuple(b1s), tuple(weights)
    if len(b1s) != len(weights):
        raise ValueError(
            f"weights must be as many as b1s, got {len(weights)} weights and {len(b1s)} decays; write one per decay"
        )
    for j, (b1, weight) in enumerate(zip(b1s, weights, strict=True)):
        checks.real(f"b1s[{j}]", b1, "[0, 1)")
        checks.real(f"weights[{j}]", weight, "[0, 1]", schedule=True)
    numbers = [weight for weight in weights if isinstance(weight, int | float)]
    if math.fsum(numbers) > 1 + 1e-9:  # decimals that add up to 1 may not do so in binary
        raise ValueError(f"weights must add up to at most 1, got {weights}; divide them by their sum")

    def rest(count: Any) -> Any:
        return 1 - sum(at_count(weight, count, "multi_timescale_adam: a weight") for weight in weights)

    gradient_weight = rest if any(map(callable, weights)) else rest(None)
    means = [Mean(b1, weight, bias_correction) for b1, weight in zip(b1s, weights, strict=True)]
    return weighted_momenta(
        "scale_by_multi_momentum", means, gradient_weight, denominator=denominator, mu_dtype=mu_dtype
    )


def multi_timescale_adam(
    learning_rate: ScalarOrSchedule,
    *,
    b1s: Sequence[Any] = (0.999,),
    weights: Sequence[Any] = (0.95,),
    b2: Scalar = 0.9999,
    eps: Scalar = 1e-8,
    bias_correction: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam whose numerator is a weighted mean of the gradient and of several momenta.

    Equations, with b_j the decays and w_j their weights:

        u_j <- b_j u_j + (1 - b_j) g,   j = 1 .. N             v <- b2 v + (1 - b2) |g|^2
        D = ((1 - sum_j w_j) g + sum_j w_j u_j) / (sqrt(v) + eps)
        x <- x - learning_rate (D + weight_decay x)

    A running mean of decay b has a half-life of ln(1/2) / ln(b) steps: 7 for 0.9, 693 for 0.999. With `bias_correction`
    u_j and v are divided by 1 - b^t, with their own b.

    Args:
      learning_rate: step size >= 0, or a schedule. Without bias correction the first steps are long: v starts at
        (1 - b2) |g|^2, which multiplies the normalised gradient by 1 / sqrt(1 - b2), so give it a warm-up.
      b1s: decays of the momenta, each in [0, 1). Default one, 0.999; the paper tunes them (0.99 to 0.999).
      weights: weights of the momenta, one per decay, each in [0, 1] or a schedule, with a sum of at most 1. Default
        0.95; the paper tunes them.
      b2: decay of the second moment, in [0, 1). Default 0.9999, as the paper is quoted.
      eps: added to the root, >= 0. Default 1e-8.
      bias_correction: whether momenta and second moment are divided by 1 - b^t. Default False, as the paper is quoted.
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which the momenta are kept. Default float32.

    Returns:
      A transformation; with `weight_decay` it needs `params`. State: N + 1 words per parameter. Elementwise: no
      collective.

    Raises:
      ValueError: a hyperparameter outside its range; more or fewer weights than decays; weights that add up to more
        than 1.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = multi_timescale_adam(0.1, b1s=(0.9, 0.999), weights=(0.5, 0.4), bias_correction=True)
      >>> x = jnp.array([3.0, -0.2])
      >>> [round(float(u), 4) for u in tx.update(x, tx.init(x), x)[0]]  # corrected, the first step is the sign
      [-0.1, 0.1]

    Reference: Iacob et al. MT-DAO: Multi-Timescale Distributed Adaptive Optimizers with Local Updates. 2025, arXiv
    2510.05361. There is no public code; the formula has no bias correction, and none is the default. A base that
    divides by the second moment of the step before (ADOPT) is not offered.
    """
    checks.sequence(schedules=True, b1s=b1s, weights=weights)
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    link = scale_by_multi_momentum(
        b1s,
        weights=weights,
        bias_correction=bias_correction,
        denominator=root_mean_square(b2=b2, eps=eps, bias_correction=bias_correction),
        mu_dtype=mu_dtype,
    )
    return optimizer(
        Method("multi_timescale_adam", learning_rate, weight_decay, weight_decay_mask),
        link,
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


EXAMPLE = {"b1s": (0.9, 0.999), "weights": (0.3, 0.5)}
register(scale_by_multi_momentum, form="primitive", paper=PAPER, words=2, example=EXAMPLE)
register(
    multi_timescale_adam,
    form="optimizer",
    paper=PAPER,
    words=3,
    example=EXAMPLE,
    race=Race(1e-3),
)
