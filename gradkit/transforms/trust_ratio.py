"""The trust ratio: updates rescaled in proportion to the norm of the weights that they change."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import at_count, check_decay_mask, counter, increment, scalar, transformation
from gradkit.engine.norms import BLOCKS, mean_of_all, packed_norms
from gradkit.leaves import Layout, check_mask, check_mask_form, names, resolve_layout, resolve_mask
from gradkit.leaves.scopes import decay_here
from gradkit.types import Mask, Scalar, ScalarOrSchedule

NAME = "scale_by_trust_ratio"


@jax.jit
def _ratio(n_w: jax.Array, n_u: jax.Array, decay: Any, coefficient: Any, rate: Any, eps: Any, limits: tuple):
    """The ratio of every block of a leaf; `limits` are the lower and upper limit of |w|, and those of |u| and ratio."""
    n_w = jnp.clip(n_w, scalar(limits[0], n_w), scalar(limits[1], n_w))
    n_d = jnp.minimum(n_u, scalar(limits[2], n_u)) + scalar(decay, n_w) * n_w
    defined = (n_w > 0) & (n_d > 0)
    ratio = scalar(coefficient, n_w) * n_w / jnp.where(defined, n_d + scalar(eps, n_d), jnp.ones_like(n_d))
    ratio = jnp.where(defined, ratio, jnp.ones_like(ratio))
    if rate is not None:
        rate = scalar(rate, ratio)
        # With a learning rate of 0 there is no step: any finite ratio will do.
        ratio = ratio / jnp.where(rate > 0, rate, jnp.ones_like(rate))
    return jnp.minimum(ratio, scalar(limits[3], ratio))


class ScaleByTrustRatioState(NamedTuple):
    """Number of updates made (None where no argument is a schedule), and the mean ratio of the last one as a metric."""

    count: Any
    metrics: dict[str, jax.Array]


def scale_by_trust_ratio(
    *,
    trust_coefficient: ScalarOrSchedule = 1.0,
    eps: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    denominator: str = "joint",
    block: str = "tensor",
    param_norm_min: Scalar = 0.0,
    param_norm_max: Any = math.inf,
    update_norm_max: Any = math.inf,
    ratio_max: Any = math.inf,
    relative_to: ScalarOrSchedule | None = None,
    trust_ratio_mask: Mask | None = None,
    weight_decay_mask: Mask | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Rescales every block of the updates by the ratio of the norms of weights and updates.

    Equations, per block of a leaf (the tensor, one layer of a stack, or one output unit), with the update u and the
    parameters w:

        n_w = clip(|w|, param_norm_min, param_norm_max)        n_u = min(|u|, update_norm_max)
        ratio = trust_coefficient n_w / (n_u + eps)                            d = u                       "joint"
        ratio = trust_coefficient n_w / (n_u + weight_decay n_w + eps)         d = u + weight_decay w      "separate"
        u <- min(ratio, ratio_max) d

    The ratio is 1 where n_w, or the denominator without eps, is 0. With `relative_to` it is divided by that learning
    rate before it is limited by ratio_max.

    Args:
      trust_coefficient: the relative size of a step, > 0, or a schedule. Default 1 (LAMB); LARS uses 0.001.
      eps: added to the denominator, >= 0. Default 0.
      weight_decay: decay that is part of the update, >= 0; only with `denominator="separate"`, where its
        norm is added to the norm of the update. With "joint", put `add_decayed_weights` before.
      denominator: "joint" (the norm of the sum, as in LAMB) or "separate" (the sum of the norms, as in the
        paper of LARS).
      block: "tensor" (one ratio per tensor; every layer of a stack is one) or "unit" (one per output).
      param_norm_min: lower clamp of |w|, >= 0. Default 0.
      param_norm_max: upper clamp of |w|. Default inf.
      update_norm_max: upper clamp of |u|. Default inf.
      ratio_max: upper clamp of the ratio. Default inf; 1 is LAMBC.
      relative_to: a learning rate (or schedule) the ratio is divided by before the clamp: with
        `ratio_max=1` this is LARC, whose learning rate is multiplied later. Default None.
      trust_ratio_mask: which leaves are rescaled; the others pass (with their decay). Default all.
      weight_decay_mask: which leaves decay, in the separate form. Default all.
      layout: which axes are stacks and outputs.

    Returns:
      A transformation that needs `params`. State: the metric `trust_ratio`, the mean over all blocks, and
      a counter where an argument is a schedule. Collectives: one all-reduce of two scalars per block.

    Raises:
      ValueError: a hyperparameter outside its range; decay with the joint form.

    Example:
      >>> tx = scale_by_trust_ratio(trust_coefficient=0.1)
      >>> w, u = jnp.array([3.0, 4.0]), jnp.array([0.0, 7.0])
      >>> updates, state = tx.update(u, tx.init(w), w)
      >>> updates.tolist()  # |w| = 5
      [0.0, 0.5]

    Reference: You, Gitman, Ginsburg. Large Batch Training of Convolutional Networks. 2017, arXiv
    1708.03888; You et al. Large Batch Optimization for Deep Learning. 2019, arXiv 1904.00962. optax has the
    joint form with one block per leaf, and neither clamps nor masks. In the separate form a zero gradient
    gives the decay the ratio trust_coefficient / weight_decay, the limit of the formula; codes that set
    the ratio to 1 there let such a leaf decay at the full learning rate.
    """
    checks.layout(layout)
    checks.real("trust_coefficient", trust_coefficient, "(0, inf)", schedule=True)
    checks.real("eps", eps, "[0, inf)")
    checks.real("weight_decay", weight_decay, "[0, inf)", schedule=True)
    checks.choice("denominator", denominator, ("joint", "separate"))
    checks.choice("block", block, BLOCKS)
    checks.real("param_norm_min", param_norm_min, "[0, inf)")
    checks.real("param_norm_max", param_norm_max, "(0, inf]")
    checks.real("update_norm_max", update_norm_max, "(0, inf]")
    checks.real("ratio_max", ratio_max, "(0, inf]")
    checks.real("relative_to", relative_to, "[0, inf)", optional=True, schedule=True)
    low, high = checks.readable(param_norm_min), checks.readable(param_norm_max)
    if low is not None and high is not None and low > high:
        raise ValueError(
            f"{NAME}: param_norm_min must be in [0, param_norm_max], got {param_norm_min} > {param_norm_max}"
        )
    # A traced decay (an injected one) cannot be read; in the joint form it is added before the norms are taken.
    without_decay = checks.readable(weight_decay) == 0
    joint = denominator == "joint"
    if joint and not without_decay and not isinstance(weight_decay, Tracer):
        raise ValueError(
            f"{NAME}: weight_decay must be 0 with denominator='joint', got {weight_decay!r}; put add_decayed_weights "
            "before this link"
        )

    limits = param_norm_min, param_norm_max, update_norm_max, ratio_max
    check_mask_form(trust_ratio_mask=trust_ratio_mask, weight_decay_mask=weight_decay_mask)

    def init(params: optax.Params) -> ScaleByTrustRatioState:
        resolve_layout(layout, params, method="scale_by_trust_ratio", matters=True)
        own = {"method": "scale_by_trust_ratio", "argument": "trust_ratio_mask", "instead": "trust_ratio_mask=False"}
        check_mask(trust_ratio_mask, params, **own)
        check_decay_mask("scale_by_trust_ratio", weight_decay_mask, params)
        count = counter(any(map(callable, (trust_coefficient, weight_decay, relative_to))))
        return ScaleByTrustRatioState(count, {"trust_ratio": jnp.ones((), jnp.float32)})

    def update(updates: Any, state: ScaleByTrustRatioState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        results, structure = jax.tree.flatten(updates)
        w, known = jax.tree.leaves(params), names(updates)
        adapted, decayed = (jax.tree.leaves(resolve_mask(m, updates)) for m in (trust_ratio_mask, weight_decay_mask))
        chosen = [i for i, u in enumerate(results) if adapted[i] and u.size]
        decay = 0.0
        if not without_decay:
            decay = decay_here(at_count(weight_decay, state.count, f"{NAME}: weight_decay"))

        def with_decay() -> list[Any]:
            return [u + scalar(decay, u) * x if on else u for u, x, on in zip(results, w, decayed, strict=True)]

        if joint and not without_decay:
            results = with_decay()
        own_names = [known[i] for i in chosen]
        norms = packed_norms(own_names, block, layout, [results[i] for i in chosen], [w[i] for i in chosen])

        if not joint and not without_decay:
            results = with_decay()
        rate = None if relative_to is None else at_count(relative_to, state.count, f"{NAME}: relative_to")
        coefficient = at_count(trust_coefficient, state.count, f"{NAME}: trust_coefficient")

        def ratio(n_u: jax.Array, n_w: jax.Array, decay: Any) -> jax.Array:
            return _ratio(n_w, n_u, decay, coefficient, rate, eps, limits)

        ratios = norms.whole(ratio, [decay if decayed[i] and not joint else 0.0 for i in chosen])
        for i, own in zip(chosen, norms.own(ratios), strict=True):
            results[i] = own * results[i]
        own = {"trust_ratio": mean_of_all(ratios)}
        state = ScaleByTrustRatioState(increment(state.count), own)
        return structure.unflatten(results), state

    return transformation("scale_by_trust_ratio", init, update, needs_params=True)


register(
    scale_by_trust_ratio,
    form="primitive",
    paper=Paper("Large Batch Training of Convolutional Networks", "You, Gitman, Ginsburg", 2017, "1708.03888"),
    collectives="norms",
)
