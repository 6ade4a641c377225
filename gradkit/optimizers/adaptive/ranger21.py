"""Ranger21: eight techniques in one chain, from the clipping of gradients to lookahead."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import at_count, bias_corrections, increment, optimizer, scalar, zeros
from gradkit.leaves import Layout, Method
from gradkit.schedules import ranger21_schedule
from gradkit.transforms import (
    adaptive_grad_clip,
    centralize_gradients,
    lookahead_in_chain,
    normalize_gradients,
    scale_by_learning_rate,
    scale_by_pnm,
    stable_weight_decay,
)
from gradkit.transforms import norm_loss as toward_unit_norm
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("Ranger21: a synergistic deep learning optimizer", "Wright, Demeure", 2021, "2106.13731")


class Ranger21DenominatorState(NamedTuple):
    """Number of updates made, the second moment, and its maximum."""

    count: jax.Array
    nu: Any
    nu_max: Any


def _denominator(b2: Any, eps: Any, beta: Any) -> optax.GradientTransformation:
    """The denominator d of the equations, from the gradient; without the softplus where `beta` is None."""

    def init(params: optax.Params) -> Ranger21DenominatorState:
        return Ranger21DenominatorState(jnp.zeros((), jnp.int32), zeros(params), zeros(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        count = increment(state.count)
        c2 = bias_corrections(b2, count)

        def second(v: jax.Array, g: jax.Array) -> jax.Array:
            return ema(v, jnp.square(g), b2)

        def root(v: jax.Array) -> jax.Array:
            d = jnp.sqrt(v / c2(v)) + scalar(eps, v)
            return d if beta is None else jax.nn.softplus(scalar(beta, d) * d) / scalar(beta, d)

        nu = jax.tree.map(second, state.nu, updates)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)
        return jax.tree.map(root, nu_max), Ranger21DenominatorState(count, nu, nu_max)

    return optax.GradientTransformation(init, update)


def ranger21(
    learning_rate: ScalarOrSchedule,
    *,
    total_steps: int,
    b0: Scalar = 0.9,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    clipping: Scalar = 1e-2,
    clipping_eps: Scalar = 1e-3,
    centralize: bool = True,
    normalize: bool = True,
    use_softplus: bool = True,
    softplus_beta: Scalar = 50.0,
    norm_loss: Scalar = 1e-4,
    weight_decay: Scalar = 1e-4,
    weight_decay_mask: Mask | None = None,
    sync_every: int = 5,
    slow_step_size: Scalar = 0.5,
    warmup_steps: int | None = None,
    warmdown_steps: int | None = None,
    min_learning_rate: Scalar = 3e-5,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Ranger21: Adam's second moment under positive-negative momentum, with clipping, two decays and lookahead.

    Equations, with t = 1, 2, ..., the learning rate rate_t of `gk.schedules.ranger21_schedule`, and x_j the
    weights of output unit j:

        g <- adaptive_grad_clip, centralize_gradients, normalize_gradients of g
        v <- b2 v + (1 - b2) g^2,   v_max <- max(v_max, v),   d = sqrt(v_max / (1 - b2^t)) + eps
        d <- log(1 + exp(softplus_beta d)) / softplus_beta
        m_t = b1^2 m_{t-2} + (1 - b1^2) g
        u = ((1 + b0) m_t - b0 m_{t-1}) / sqrt((1 + b0)^2 + b0^2) / (1 - b1^t) / d            scale_by_pnm
        x <- x (1 - rate_t weight_decay / sqrt(mean(v) / (1 - b2^t)))                         stable_weight_decay
        x_j <- x_j (1 - 2 rate_t norm_loss (1 - 1 / (|x_j| + eps)))                           norm_loss
        x <- x - rate_t u
        every sync_every steps   x <- x~ + slow_step_size (x - x~),  x~ <- x                  lookahead_in_chain

    Every part is a link that can be used alone. For the schedule of the paper instead of that of its code, for one
    joint decay as in the paper, or to leave a part out, write the chain: `gk.schedules.explore_exploit_schedule`,
    `gk.stable_weight_decay(..., toward_unit_norm=True)`.

    Args:
      learning_rate: the peak of the schedule, >= 0, or a schedule of peaks; see `gk.schedules.ranger21_schedule`.
      total_steps: number of steps of the run, >= 1. Afterwards the learning rate is `min_learning_rate`.
      b0: how much of the negative momentum is subtracted, > -1. Default 0.9 (a co-author's port to Flax; the
        official code has 1).
      b1: decay of the momenta per step, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root, and to the norm of a unit in the norm loss, >= 0. Default 1e-8 (official code).
      clipping: largest ratio of a unit's gradient to its weights, > 0. Default 1e-2 (official code).
      clipping_eps: lower bound of the norm of the weights in that ratio, > 0. Default 1e-3 (official code).
      centralize: whether the mean gradient of every unit is subtracted. Default True.
      normalize: whether gradients are divided by their standard deviation per tensor. Default True (code).
      use_softplus: whether the denominator goes through a softplus, which bounds it from below. Default True (code).
      softplus_beta: its sharpness, > 0: the least denominator is log(2) / softplus_beta. Default 50 (code). Not used
        without `use_softplus`.
      norm_loss: pull of units towards norm 1, >= 0. Default 1e-4 (code).
      weight_decay: stable decay >= 0. Default 1e-4 (code).
      weight_decay_mask: which leaves have the stable decay. Default all.
      sync_every: steps between two synchronisations of lookahead, >= 1. Default 5 (official code).
      slow_step_size: share of the fast steps that lookahead keeps, in [0, 1]. Default 0.5 (official code).
      warmup_steps: >= 0. Default None: 2 / (1 - b2), at most about a fifth of the run.
      warmdown_steps: >= 0. Default None: the last 28 percent of the run.
      min_learning_rate: smallest learning rate of the warm-down, >= 0. Default 3e-5 (code).
      mu_dtype: dtype in which both momenta are kept. Default float32.
      layout: which axes are stacks and outputs.

    Returns:
      A transformation that needs `params`. State: 5 words per parameter. Collectives: five all-reduces of a scalar per
      unit or per tensor.

    Raises:
      ValueError: a hyperparameter outside its range; a run shorter than warm-up and warm-down together.

    Example:
      >>> tx = ranger21(1.0, total_steps=100, warmup_steps=1, b0=0.0, b1=0.5, use_softplus=False, norm_loss=0.0)
      >>> x = jnp.array([1.0, -5.0, 2.0])
      >>> print(tx.update(x, tx.init(x), x)[0].round(2))  # (1 - b1^2) / (1 - b1) times the sign
      [-1.5  1.5 -1.5]

    Reference: Wright, Demeure. Ranger21: a synergistic deep learning optimizer. 2021, arXiv 2106.13731. Three
    departures from the official code, which contradicts its paper there: both decays act on all parameters, not on the
    last one alone; the maximum of second moments is kept from step to step; b0 is the number given. Bias correction is
    1 - b1^t as there, although the momenta decay by b1^2. The decays are applied one after the other, as there: that is
    the sum of both, with the stable decay smaller by its share 2 rate_t norm_loss (but for eps in the norm).
    """
    checks.switch(centralize=centralize, normalize=normalize, use_softplus=use_softplus)
    for name, value in (("b1", b1), ("b2", b2)):
        checks.real(name, value, "[0, 1)")
    for name, value in (("eps", eps), ("norm_loss", norm_loss), ("weight_decay", weight_decay)):
        checks.real(name, value, "[0, inf)")
    checks.real("min_learning_rate", min_learning_rate, "[0, inf)")
    for name, value in (("softplus_beta", softplus_beta), ("clipping_eps", clipping_eps)):
        checks.real(name, value, "(0, inf)")
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    total_steps = checks.integer("total_steps", total_steps, 1)

    def planned(peak: Any) -> Any:
        return ranger21_schedule(
            peak,
            total_steps=total_steps,
            b2=b2,
            warmup_steps=warmup_steps,
            warmdown_steps=warmdown_steps,
            min_value=min_learning_rate,
        )

    planned(0.0)  # raises where the steps do not fit

    def rate(count: Any) -> jax.Array:
        return planned(at_count(learning_rate, count, "ranger21: learning_rate"))(count)

    def decay(count: Any) -> jax.Array:
        now = rate(count)
        return scalar(weight_decay, now) * (1 - 2 * now * scalar(norm_loss, now))

    direction = scale_by_pnm(
        b0=b0,
        b1=b1,
        denominator=_denominator(b2, eps, softplus_beta if use_softplus else None),
        mu_dtype=mu_dtype,
    )
    return optimizer(
        Method("ranger21", learning_rate, weight_decay, weight_decay_mask),
        adaptive_grad_clip(clipping, eps=clipping_eps, layout=layout),
        centralize_gradients(layout=layout) if centralize else optax.identity(),
        normalize_gradients(layout=layout) if normalize else optax.identity(),
        stable_weight_decay(direction, weight_decay=decay, b2=b2, weight_decay_mask=weight_decay_mask),
        toward_unit_norm(norm_loss, eps=eps, layout=layout),
        scale_by_learning_rate(rate),
        lookahead_in_chain(sync_every=sync_every, slow_step_size=slow_step_size),
    )


register(
    ranger21,
    form="optimizer",
    paper=PAPER,
    words=5,
    collectives="norms",
    golden=("adaptive/ranger21",),
    example={"total_steps": 200, "warmup_steps": 1},
    # The race has a schedule of its own: with these numbers that of the method is constant.
    race=Race(3e-2, {"total_steps": 2**30, "warmup_steps": 0, "warmdown_steps": 0}),
)
