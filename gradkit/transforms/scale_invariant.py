"""Projection for scale-invariant weights (AdamP, SGDP): a weight whose length has no effect (one followed by
a normalisation) is not lengthened by its own momentum."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import abs_sq, check_decay_mask, divide, inside, scalar, transformation
from gradkit.engine.norms import entries, packed_sums
from gradkit.leaves import Layout, axes_of, check_mask_form, names, resolve_layout, resolve_mask, tensor_axes
from gradkit.leaves.scopes import decay_here
from gradkit.types import Mask, Scalar


class _Sums(NamedTuple):
    """The inner products of gradient g, weights w and direction p, per block."""

    gw: jax.Array
    gg: jax.Array
    ww: jax.Array
    wp: jax.Array

    def over(self, axes: tuple[int, ...]) -> "_Sums":
        """The inner products of larger blocks."""
        return _Sums(*(jnp.sum(s, axis=axes, keepdims=True) for s in self))

    def cosine(self) -> jax.Array:
        """|<g, w>| / (|g| |w|)."""
        return divide(jnp.abs(self.gw), jnp.sqrt(self.gg) * jnp.sqrt(self.ww))

    def radial(self, eps: Any) -> jax.Array:
        """The r for which p - r w has no component along w."""
        length = jnp.sqrt(self.ww) + scalar(eps, self.ww)
        return self.wp / length / length


def _radial(channel: _Sums, tensor: tuple[int, ...], size: int, whole: int, delta: Any, eps: Any) -> Any:
    """Per channel the multiple of w to subtract from p, and per tensor 1 where any is subtracted, else 0.

    Args:
      channel: the sums of one leaf's channels.
      tensor: the axes of one tensor.
      size: entries of a channel.
      whole: entries of a tensor.
      delta: threshold of the test.
      eps: added to |w|.
    """
    together = channel.over(tensor)
    limit = scalar(delta, channel.gw)
    by_channel = jnp.max(channel.cosine(), axis=tensor, keepdims=True) < limit / math.sqrt(size)
    by_tensor = together.cosine() < limit / math.sqrt(whole)
    r = jnp.where(by_tensor, together.radial(eps), jnp.zeros_like(together.gw))
    return jnp.where(by_channel, channel.radial(eps), r), (by_channel | by_tensor).astype(r.dtype)


def project_scale_invariant(
    inner: optax.GradientTransformation,
    *,
    delta: Scalar = 0.1,
    wd_ratio: Scalar = 0.1,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Mask | None = None,
    eps: Scalar = 1e-8,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Removes the radial part of an inner direction where weights look scale-invariant, and adds decay.

    Equations, with the raw gradient g, the parameters w and the direction p of an inner transformation, for blocks c of
    a leaf with K entries each (its output channels, else the tensor as one block):

        test:      max over the blocks of |<g_c, w_c>| / (|g_c| |w_c|) < delta / sqrt(K)
        project:   p_c <- p_c - w^_c <w^_c, p_c>,   w^_c = w_c / (|w_c| + eps)
        decay:     d = p + weight_decay (wd_ratio where projected, else 1) w

    The channels are tested first, and the tensor as one block only where that test fails. Leaves of rank < 2 are not
    projected.

    Args:
      inner: computes the direction p from the gradient; without learning rate and decay.
      delta: threshold of the cosine test, >= 0. Default 0.1 (official code). 0 never projects; infinity always
        projects channels.
      wd_ratio: factor of the decay where a tensor was projected, in [0, 1]. Default 0.1 (official code).
      weight_decay: decay coefficient, >= 0. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      eps: added to |w|, >= 0. Default 1e-8 (official code).
      layout: which axes are stacks and output channels (for kernels the last axis).

    Returns:
      A transformation that needs `params`. State: the inner one. Collectives: one all-reduce of four scalars
      per channel.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = project_scale_invariant(optax.identity(), delta=jnp.inf)
      >>> w, g = jnp.eye(2), jnp.ones((2, 2))
      >>> tx.update(g, tx.init(w), w)[0].tolist()  # columns orthogonal to those of w
      [[0.0, 1.0], [1.0, 0.0]]

    Reference: Heo et al. AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant
    Weights. 2020, arXiv 2006.08217. In the official code for torch channels are the first axis; here the layout
    decides.
    """
    checks.layout(layout)
    checks.real("delta", delta, "[0, inf]")
    checks.real("wd_ratio", wd_ratio, "[0, 1]")
    checks.real("weight_decay", weight_decay, "[0, inf)")
    checks.real("eps", eps, "[0, inf)")
    without_decay = isinstance(weight_decay, int | float) and weight_decay == 0
    inner = inside(inner)
    check_mask_form(weight_decay_mask=weight_decay_mask)

    def init(params: optax.Params) -> Any:
        resolve_layout(layout, params, method="project_scale_invariant", matters=True)
        check_decay_mask("project_scale_invariant", weight_decay_mask, params)
        return inner.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        direction, state = inner.update(updates, state, params, **extra)
        p, structure = jax.tree.flatten(direction)
        g, w, known = jax.tree.leaves(updates), jax.tree.leaves(params), names(updates)
        decayed = jax.tree.leaves(resolve_mask(weight_decay_mask, updates))
        tensors = [tensor_axes(axes_of(layout, name, x.shape), x.shape) for name, x in zip(known, g, strict=True)]
        chosen = [i for i, x in enumerate(g) if len(tensors[i]) >= 2 and x.size]
        products = [[g[i] * w[i] for i in chosen], [abs_sq(g[i]) for i in chosen]]
        products += [[abs_sq(w[i]) for i in chosen], [w[i] * p[i] for i in chosen]]
        sums = packed_sums([known[i] for i in chosen], "unit", layout, *products, like=[g[i] for i in chosen])
        channels = [_Sums(*row) for row in zip(*sums.parts, strict=True)]

        found = []
        for i, channel in zip(chosen, channels, strict=True):
            size, whole = entries(known[i], "unit", layout, g[i].shape), entries(known[i], "tensor", layout, g[i].shape)
            found.append(_radial(channel, tensors[i], size, whole, delta, eps))
        radial, projected = sums.own([r for r, _ in found]), sums.own([on for _, on in found])

        own_decay = decay_here(weight_decay)
        decay = dict.fromkeys(range(len(p)), own_decay)
        for i, r, on in zip(chosen, radial, projected, strict=True):
            p[i] = p[i] - r * w[i]
            one = jnp.ones((), p[i].dtype)
            decay[i] = jnp.where(on > 0, scalar(wd_ratio, one) * one, one) * scalar(own_decay, one)
        if not without_decay:
            p = [p + scalar(decay[i], p) * w[i] if decayed[i] else p for i, p in enumerate(p)]
        return structure.unflatten(p), state

    return transformation("project_scale_invariant", init, update, needs_params=True)


register(
    project_scale_invariant,
    form="wrapper",
    paper=Paper(
        "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
        "Heo et al.",
        2020,
        "2006.08217",
    ),
    collectives="norms",
    wraps="direction",
    example={"delta": 1.0},
)
