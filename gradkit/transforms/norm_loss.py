"""Two weight decays of Ranger21: towards norm 1 per output unit, and with the scale of adaptive steps."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import (
    abs_sq,
    at_count,
    bias_corrections,
    check_decay_mask,
    divide,
    increment,
    inside,
    scalar,
    transformation,
    wide_dtype,
)
from gradkit.engine.norms import entries, global_square, packed_norms, packed_sums
from gradkit.engine.sums import whole_shape
from gradkit.leaves import (
    Layout,
    axes_of,
    check_mask,
    check_mask_form,
    map_named,
    names,
    resolve_layout,
    resolve_mask,
    tensor_axes,
)
from gradkit.leaves.scopes import decay_here
from gradkit.types import Mask, Scalar, ScalarOrSchedule

PAPER = Paper("Ranger21: a synergistic deep learning optimizer", "Wright, Demeure", 2021, "2106.13731")


def _radial(params: Any, mask: Any, layout: Layout | None, eps: Any) -> Any:
    """(1 - 1 / (|x_j| + eps)) x_j, and 0 on leaves outside the mask."""
    x, structure = jax.tree.flatten(params)
    known, chosen = names(params), jax.tree.leaves(resolve_mask(mask, params))
    own = [i for i, leaf in enumerate(x) if chosen[i] and leaf.size]
    norms = packed_norms([known[i] for i in own], "unit", layout, [x[i] for i in own])
    shares = norms.each(lambda n: 1 - divide(jnp.ones_like(n), n + scalar(eps, n)))
    out = [jnp.zeros_like(leaf) for leaf in x]
    for i, share in zip(own, shares, strict=True):
        out[i] = share * x[i]
    return structure.unflatten(out)


def norm_loss(
    factor: Scalar = 1e-4, *, eps: Scalar = 1e-8, mask: Mask | None = None, layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Decays the weights of every output unit towards norm 1 instead of 0.

    Equations, with the weights x_j of an output unit, their norm |x_j|, and the direction d:

        d_j <- d_j + 2 factor (1 - 1 / (|x_j| + eps)) x_j

    The decay is the gradient of factor sum_j (|x_j| - 1)^2. Put it before the learning rate, like
    `add_decayed_weights`.

    Args:
      factor: of the penalty, >= 0. Default 1e-4 (official code).
      eps: added to the norm, >= 0. Default 1e-8, the default eps of the optimizer, which the codes of Ranger21 add.
      mask: which leaves it acts on. Default all.
      layout: what a unit is: a column of a dense kernel (inputs, outputs), a filter of a convolution (HWIO), all
        entries of a vector; every layer of a stack has its own units.

    Returns:
      A transformation that needs `params`. No state. Collectives: one all-reduce of a scalar per unit.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = norm_loss(0.5, eps=0.0)
      >>> x = jnp.array([[2.0, 0.0], [0.0, 0.5]])  # columns of norm 2 and 1/2
      >>> tx.update(jnp.zeros_like(x), tx.init(x), x)[0].tolist()
      [[1.0, 0.0], [0.0, -0.5]]

    Reference: A component of Ranger21: Wright, Demeure. Ranger21: a synergistic deep learning optimizer. 2021, arXiv
    2106.13731; from Georgiou et al. Norm Loss: An efficient yet effective regularization method for deep neural
    networks. 2021, arXiv 2103.06583. The official torch code applies it only to the last parameter of a model.
    """
    checks.layout(layout)
    checks.real("factor", factor, "[0, inf)")
    checks.real("eps", eps, "[0, inf)")
    check_mask_form(mask=mask)

    def init(params: optax.Params) -> optax.EmptyState:
        resolve_layout(layout, params, method="norm_loss", matters=True)
        check_mask(mask, params, method="norm_loss", argument="mask", instead="factor=0 and no mask")
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, optax.EmptyState]:
        del extra
        radial = _radial(params, mask, layout, eps)
        return jax.tree.map(lambda d, r: d + 2 * scalar(factor, r) * r.astype(d.dtype), updates, radial), state

    return transformation("norm_loss", init, update, needs_params=True)


class StableWeightDecayState(NamedTuple):
    """Number of updates made, the running mean of squared gradients (one number, or one per tensor), and the inner
    state."""

    count: jax.Array
    mean_square: Any
    inner: Any


def stable_weight_decay(
    inner: optax.GradientTransformation,
    *,
    weight_decay: ScalarOrSchedule = 1e-4,
    b2: Scalar = 0.999,
    per_tensor: bool = False,
    toward_unit_norm: bool = False,
    eps: Scalar = 1e-8,
    weight_decay_mask: Mask | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adds to a direction a weight decay that has the scale of adaptive steps.

    Equations, with the direction d of `inner` and the parameters x:

        s_t = (1 - b2) sum_i b2^(t-i) mean(|g_i|^2) / (1 - b2^t)
        d <- d + weight_decay / sqrt(s_t) x

    s_t is the mean over all coordinates of Adam's corrected second moment. Steps of Adam have the length
    learning_rate / sqrt(v); here the decay scales in the same way. Write
    `optax.chain(gk.stable_weight_decay(gk.scale_by_adam()), gk.scale_by_learning_rate(1e-3))`.

    Args:
      inner: gradient -> direction; a learning rate follows.
      weight_decay: coefficient >= 0, or a schedule. Default 1e-4 (official code).
      b2: decay of the running mean, in [0, 1); take that of the inner second moment. Default 0.999.
      per_tensor: whether every tensor has its own mean (a co-author's port to Flax) rather than one mean over all
        coordinates of all leaves (official code). Default False.
      toward_unit_norm: whether to decay like `norm_loss`, by (1 - 1 / |x_j|) x_j for every output unit: the paper's
        form, which combines the two. Default False, towards 0 (official code, which has the two separately).
      eps: added to the norm of a unit with `toward_unit_norm`, >= 0, as in `norm_loss`; not used without it. Default
        1e-8.
      weight_decay_mask: which leaves decay. Default all. The mean is over all leaves in any case.
      layout: which axes are stacks, and what a unit is.

    Returns:
      A transformation that needs `params`. State: one number, or one per tensor, and the inner state. Collectives:
      one all-reduce of one number per tensor, and one per unit with `toward_unit_norm`.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = stable_weight_decay(optax.identity(), weight_decay=0.5)
      >>> x = jnp.array([1.0, -1.0])
      >>> tx.update(jnp.array([2.0, 2.0]), tx.init(x), x)[0].round(4).tolist()  # decay 0.5 / 2
      [2.25, 1.75]

    Reference: A component of Ranger21: Wright, Demeure. Ranger21: a synergistic deep learning optimizer. 2021, arXiv
    2106.13731; from Xie et al. Understanding and Scheduling Weight Decay. 2020, arXiv 2011.11152. The official torch
    code decays only the last parameter of a model. As long as all gradients are 0 there is no decay.
    """
    checks.layout(layout)
    checks.switch(per_tensor=per_tensor, toward_unit_norm=toward_unit_norm)
    checks.real("weight_decay", weight_decay, "[0, inf)", schedule=True)
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    below = inside(inner)

    def real_dtype(x: Any) -> Any:
        return jnp.finfo(wide_dtype(x.dtype)).dtype

    check_mask_form(weight_decay_mask=weight_decay_mask)

    def init(params: optax.Params) -> StableWeightDecayState:
        resolve_layout(layout, params, method="stable_weight_decay", matters=True)
        check_decay_mask("stable_weight_decay", weight_decay_mask, params)

        def one(name: str, x: Any) -> jax.Array:
            own = tensor_axes(axes_of(layout, name, x.shape), x.shape)
            return jnp.zeros([1 if a in own else n for a, n in enumerate(x.shape)], real_dtype(x))

        widest = max(map(real_dtype, jax.tree.leaves(params)), key=lambda d: d.itemsize, default=jnp.dtype(jnp.float32))
        means = map_named(one, params) if per_tensor else jnp.zeros((), widest)
        return StableWeightDecayState(jnp.zeros((), jnp.int32), means, below.init(params))

    def mean_square(updates: Any) -> Any:
        g, structure = jax.tree.flatten(updates)
        known = names(updates)
        if not per_tensor:
            total = sum(math.prod(whole_shape(name, x.shape)) for name, x in zip(known, g, strict=True))
            return global_square(updates) / max(total, 1)
        sums = packed_sums(known, "tensor", layout, [abs_sq(x) for x in g], like=g)
        counts = [max(entries(name, "tensor", layout, x.shape), 1) for name, x in zip(known, g, strict=True)]
        return structure.unflatten([s / n for s, n in zip(sums.own(sums.parts[0]), counts, strict=True)])

    def update(updates: Any, state: StableWeightDecayState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        count = increment(state.count)
        c2 = bias_corrections(b2, count)

        def mean(v: jax.Array, new: jax.Array) -> jax.Array:
            return ema(v, new.astype(v.dtype), b2)

        def strength(v: jax.Array) -> jax.Array:
            root = jnp.sqrt(v / c2(v))
            decay = decay_here(at_count(weight_decay, state.count, "stable_weight_decay: weight_decay"))
            return scalar(decay, v) * divide(jnp.ones_like(root), root)

        means = jax.tree.map(mean, state.mean_square, mean_square(updates))
        direction, state_below = below.update(updates, state.inner, params, **extra)
        target = _radial(params, weight_decay_mask, layout, eps) if toward_unit_norm else params
        strengths = jax.tree.map(strength, means)
        strengths = strengths if per_tensor else jax.tree.map(lambda _: strengths, updates)
        direction = jax.tree.map(
            lambda d, c, x, on: d + c.astype(d.dtype) * x.astype(d.dtype) if on else d,
            direction,
            strengths,
            target,
            resolve_mask(weight_decay_mask, updates),
        )
        return direction, StableWeightDecayState(count, means, state_below)

    return transformation("stable_weight_decay", init, update, needs_params=True)


register(norm_loss, form="primitive", paper=PAPER, collectives="norms", golden=("adaptive/ranger21",))
register(
    stable_weight_decay,
    form="wrapper",
    paper=PAPER,
    collectives="norms",
    wraps="direction",
    example={"weight_decay": 0.1, "toward_unit_norm": True},
)
