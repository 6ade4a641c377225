"""Projection for scale-invariant weights (AdamP, SGDP): a weight whose length has no effect (one followed by
a normalisation) is not lengthened by its own momentum.

With the raw gradient g, the parameters w and the direction p of an inner transformation, for blocks c of
a leaf (its K-entry output channels; else the whole tensor):

    test       max over the blocks of |<g_c, w_c>| / (|g_c| |w_c|)  <  delta / sqrt(K)
    project    p_c <- p_c - w^_c <w^_c, p_c>,   w^_c = w_c / (|w_c| + eps)
    decay      d = p + weight_decay * (wd_ratio where projected, else 1) * w

The channel test comes first; only where it fails is the whole tensor tried. Leaves of rank < 2 are left
as they are.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.leaves import Layout, default_layout, names, resolve_mask, tensor_axes
from gradkit.transforms.core import divide, scalar, transformation
from gradkit.transforms.norms import block_axes, block_norm


def _inner(a: jax.Array, b: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sum(a * b, axis=axes, keepdims=True)


def project_radial(p: jax.Array, w: jax.Array, axes: tuple[int, ...], eps: Any) -> jax.Array:
    """p without its component along w, per block over `axes`."""
    unit = w / (block_norm(w, axes) + scalar(eps, w))
    return p - unit * _inner(unit, p, axes)


def _orthogonal(g: jax.Array, w: jax.Array, blocks: tuple[int, ...], tensor: tuple[int, ...], delta: Any) -> jax.Array:
    """Whether every block's gradient is nearly orthogonal to its weights: one boolean per tensor."""
    cosine = divide(jnp.abs(_inner(g, w, blocks)), block_norm(g, blocks) * block_norm(w, blocks))
    size = math.prod(g.shape[a] for a in blocks)
    return jnp.max(cosine, axis=tensor, keepdims=True) < scalar(delta, g) / math.sqrt(size)


def project_scale_invariant(
    inner: optax.GradientTransformation,
    *,
    delta: Any = 0.1,
    wd_ratio: Any = 0.1,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
    eps: Any = 1e-8,
    layout: Layout = default_layout,
) -> optax.GradientTransformationExtraArgs:
    """Removes the radial part of an inner direction where weights look scale-invariant, and adds decay.

    Equations: at the head of this file.

    Args:
      inner: gives the direction p from the gradient; without learning rate and decay.
      delta: threshold of the cosine test, >= 0. Default 0.1 (paper). 0 never projects; infinity always
        projects channels.
      wd_ratio: factor of the decay where a tensor was projected, in [0, 1]. Default 0.1 (paper).
      weight_decay: decay coefficient, >= 0. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      eps: added to |w|, >= 0. Default 1e-8 (official code).
      layout: which axes are stacks and output channels (for kernels the last axis).

    Returns:
      A transformation that needs `params`. State: the inner one. Collectives: three scalars per channel
      and three per tensor where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = project_scale_invariant(optax.identity(), delta=jnp.inf)
      >>> w, g = jnp.eye(2), jnp.ones((2, 2))
      >>> tx.update(g, tx.init(w), w)[0].tolist()  # columns orthogonal to those of w
      [[0.0, 1.0], [1.0, 0.0]]

    Reference: Heo et al. AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant
    Weights. 2020, arXiv 2006.08217. The official code for torch has channels in the first axis; here the
    layout says where they are.
    """
    checks.real("delta", delta, "[0, inf]")
    checks.real("wd_ratio", wd_ratio, "[0, 1]")
    checks.real("weight_decay", weight_decay, "[0, inf)")
    checks.real("eps", eps, "[0, inf)")
    without_decay = isinstance(weight_decay, int | float) and weight_decay == 0
    inner = optax.with_extra_args_support(inner)

    def kernel(name: str, p: jax.Array, g: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        tensor = tensor_axes(layout(name, g.shape), g.shape)
        channels = block_axes(name, g.shape, "unit", layout)
        by_channel = _orthogonal(g, w, channels, tensor, delta)
        by_tensor = _orthogonal(g, w, tensor, tensor, delta)
        whole = jnp.where(by_tensor, project_radial(p, w, tensor, eps), p)
        return jnp.where(by_channel, project_radial(p, w, channels, eps), whole), by_channel | by_tensor

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        direction, state = inner.update(updates, state, params, **extra)
        leaves, structure = jax.tree.flatten(direction)
        decayed = jax.tree.leaves(resolve_mask(weight_decay_mask, updates))
        columns = (jax.tree.leaves(updates), jax.tree.leaves(params), decayed)
        results = []
        for name, p, g, w, decays in zip(names(updates), leaves, *columns, strict=True):
            decay = scalar(weight_decay, p)
            if len(tensor_axes(layout(name, g.shape), g.shape)) >= 2 and g.size:
                p, projected = kernel(name, p, g, w)
                decay = jnp.where(projected, scalar(wd_ratio, p) * jnp.ones((), p.dtype), jnp.ones((), p.dtype)) * decay
            results.append(p if without_decay or not decays else p + decay * w)
        return structure.unflatten(results), state

    return transformation("project_scale_invariant", inner.init, update, needs_params=True)


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
