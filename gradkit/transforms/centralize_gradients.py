"""Standardised gradients: their mean taken away, and their spread divided out.

centralize   g_j <- g_j - mean(g_j)      for every output unit j of a tensor with two axes or more
normalize    g <- g / (std(g) + eps)     for every tensor of more than two entries; std with n - 1
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, scalar, stateless, transformation
from gradkit.engine.norms import entries, packed_sums
from gradkit.engine.sums import block_sums, own_parts, whole_shape
from gradkit.leaves import Layout, axes_of, names, tensor_axes
from gradkit.types import Scalar

PAPER = Paper("Ranger21: a synergistic deep learning optimizer", "Wright, Demeure", 2021, "2106.13731")


@functools.partial(jax.jit, inline=True)
def _less_mean(x: jax.Array, total: jax.Array, count: Any) -> jax.Array:
    return x - total / count


@functools.partial(jax.jit, inline=True)
def _square_off(x: jax.Array, total: jax.Array, count: Any) -> jax.Array:
    return jnp.square(x - total / count)


@functools.partial(jax.jit, inline=True)
def _over_deviation(x: jax.Array, square: jax.Array, count: Any, eps: Any) -> jax.Array:
    root = jnp.sqrt(square / count) + scalar(eps, square)
    return x * divide(jnp.ones_like(root), root)


def centralize_gradients(
    *, axis: int | Sequence[int] | None = None, layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Subtracts from the gradient of every output unit its mean.

    The gradient is projected onto the plane where the weights of a unit keep their sum; vectors are left alone.
    Put it first, on raw gradients: `optax.chain(gk.centralize_gradients(), gk.sgd(0.1, momentum=0.9))`.

    Args:
      axis: the axes the mean runs over, in every tensor of two axes or more; counted within one tensor, stacks left
        out. Default None: all but the outputs of the layout, so of a dense kernel (inputs, outputs) the first,
        of a convolution (HWIO) the first three.
      layout: which axes are outputs and stacks.

    Returns:
      A transformation. No state. Collectives: one all-reduce of a scalar per unit.

    Raises:
      ValueError: an `axis` that is no integers; at use, one that a tensor does not have, or has twice.

    Example:
      >>> tx = centralize_gradients()
      >>> g = jnp.array([[1.0, 5.0], [3.0, 5.0]])
      >>> tx.update(g, tx.init(g))[0].tolist()
      [[-1.0, 0.0], [1.0, 0.0]]

    Reference: a component of Ranger21: Wright, Demeure. Ranger21: a synergistic deep learning optimizer. 2021, arXiv
    2106.13731; from Yong et al. Gradient Centralization. 2020, arXiv 2004.01461. optax's `centralize` averages over
    all axes but the first, which in kernels (inputs, outputs) are the outputs of one input. A unit of one entry is
    left as it is here: it equals its mean, and would never move again.
    """
    checks.axes(axis=axis)
    checks.layout(layout)
    given = tuple(axis) if isinstance(axis, Sequence) else None if axis is None else (axis,)
    for a in given or ():
        checks.integer("axis", a, -(2**31))

    def mean_axes(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        axes = axes_of(layout, name, shape)
        own = tensor_axes(axes, shape)
        if len(own) < 2:
            return ()
        if given is None:
            return tuple(a for a in own if a not in axes.outputs)
        if any(not -len(own) <= a < len(own) for a in given) or len({a % len(own) for a in given}) != len(given):
            raise ValueError(f"centralize_gradients: {name!r} has {len(own)} axes, axis={axis!r} does not fit")
        return tuple(sorted(own[a] for a in given))

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, optax.EmptyState]:
        del params, extra
        g, structure = jax.tree.flatten(updates)
        known = names(updates)
        axes = [mean_axes(name, x.shape) for name, x in zip(known, g, strict=True)]
        sizes = [
            math.prod(whole_shape(name, x.shape)[a] for a in own) for name, x, own in zip(known, g, axes, strict=True)
        ]
        chosen = [i for i, x in enumerate(g) if x.size and sizes[i] > 1]
        of = lambda items: [items[i] for i in chosen]  # noqa: E731
        sums = block_sums(of(known), of(g), of(axes))
        for i, total in zip(chosen, own_parts(of(known), of(g), sums), strict=True):
            g[i] = _less_mean(g[i], total, float(sizes[i]))
        return structure.unflatten(g), state

    return transformation("centralize_gradients", stateless("centralize_gradients", layout), update)


def normalize_gradients(*, eps: Scalar = 1e-8, layout: Layout | None = None) -> optax.GradientTransformationExtraArgs:
    """Divides the gradient of every tensor by the standard deviation of its entries.

    Put it behind `centralize_gradients`. Tensors of one or two entries are left alone.

    Args:
      eps: added to the deviation, in the gradient's units, >= 0. Default 1e-8 (official code). With 0, a tensor whose
        entries are all equal gets the gradient 0.
      layout: which axes are stacks: every layer of a scan has its own deviation.

    Returns:
      A transformation. No state. Collectives: two all-reduces of one scalar per tensor.

    Raises:
      ValueError: a negative `eps`, or NaN.

    Example:
      >>> tx = normalize_gradients()
      >>> g = jnp.array([-2.0, 0.0, 2.0])
      >>> tx.update(g, tx.init(g))[0].round(4).tolist()
      [-1.0, 0.0, 1.0]

    Reference: added to the official code of Ranger21: Wright, Demeure. Ranger21: a synergistic deep learning
    optimizer. 2021, arXiv 2106.13731.
    """
    checks.layout(layout)
    checks.real("eps", eps, "[0, inf)")

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, optax.EmptyState]:
        del params, extra
        g, structure = jax.tree.flatten(updates)
        all_names = names(updates)
        counts = [entries(name, "tensor", layout, x.shape) for name, x in zip(all_names, g, strict=True)]
        chosen = [i for i, x in enumerate(g) if x.size and counts[i] > 2]
        known, large, n = [all_names[i] for i in chosen], [g[i] for i in chosen], [counts[i] for i in chosen]

        # The mean first: sums of squares alone cancel where it is far from 0.
        sums = packed_sums(known, "tensor", layout, large, like=large)
        totals = sums.own(sums.parts[0])
        squares = [_square_off(x, total, float(k)) for x, total, k in zip(large, totals, n, strict=True)]
        sums = packed_sums(known, "tensor", layout, squares, like=large)
        for i, square, k in zip(chosen, sums.own(sums.parts[0]), n, strict=True):
            g[i] = _over_deviation(g[i], square, float(k - 1), eps)
        return structure.unflatten(g), state

    return transformation("normalize_gradients", stateless("normalize_gradients", layout), update)


register(centralize_gradients, form="primitive", paper=PAPER, collectives="norms", golden=("adaptive/ranger21",))
register(normalize_gradients, form="primitive", paper=PAPER, collectives="norms")
