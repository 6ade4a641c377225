"""A second moment in the memory of its rows and columns: what Adafactor and CAME keep of the squares of a matrix.

With I and O the input and output axes of a leaf, and every other axis enumerating matrices of their own:

    R <- b R + (1 - b) mean_O(s)        C <- b C + (1 - b) mean_I(s)        M <- b M + (1 - b) mean_{I, O}(s)
    V = R C / M                         the estimate of the running mean of s; exact where it has rank one

M is the mean of R (and of C); as a running mean of its own it needs no sum over devices of what is kept of R. Where a
leaf is not factored, the running mean of s itself is kept.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit.engine.accumulators import plus
from gradkit.engine.core import cast, real_dtype, scalar, weights, wide_dtype, zeros
from gradkit.engine.sums import block_sums, own_parts, whole_shape, zeros_along
from gradkit.leaves import Layout, axes_of, names


class Factored(NamedTuple):
    """R, C and M of the leaves that are factored, the running mean of squares of the others; each a tree of the
    parameters, with `optax.MaskedNode` where a leaf has none."""

    rows: Any
    columns: Any
    mean: Any
    nu: Any


def start(params: Any, layout: Layout | None, *, min_dim: int, others: bool = True) -> Factored:
    """The moments at the start.

    Args:
      params: arrays or shapes.
      layout: which axes are inputs and outputs.
      min_dim: leaves with fewer inputs or outputs are not factored, nor are those with one.
      others: whether leaves that are not factored have a moment.
    """
    leaves, structure = jax.tree.flatten(params)
    nothing = optax.MaskedNode()
    rows: list[tuple[Any, ...]] = []
    for name, x in zip(names(params), leaves, strict=True):
        axes = axes_of(layout, name, x.shape)
        inputs, outputs = axes.inputs, axes.outputs
        if min(math.prod(x.shape[a] for a in side) for side in (inputs, outputs)) < max(min_dim, 2):
            rows.append((nothing, nothing, nothing, zeros(x, real=True) if others else nothing))
            continue
        dtype = real_dtype(wide_dtype(x.dtype))
        kept = [zeros_along(x, summed, dtype) for summed in (outputs, inputs, (*inputs, *outputs))]
        rows.append((*kept, nothing))
    return (
        Factored(*(structure.unflatten(field) for field in zip(*rows, strict=True)))
        if rows
        else (Factored(params, params, params, params))
    )


@functools.partial(jax.jit, inline=True)
def _ema(m: jax.Array, x: jax.Array, decay: tuple[Any, Any], eps: Any) -> jax.Array:
    b, rest = weights(decay, x)
    return cast(b * cast(m, x.dtype) + rest * plus(x, eps), m.dtype)


@jax.jit
def _factors(kept: tuple, sums: tuple, sizes: tuple, decay: tuple[Any, Any], eps: Any) -> tuple[jax.Array, ...]:
    """R, C and M after a step, from the sums over outputs, over inputs and over both."""
    return tuple(_ema(m, s / scalar(n, s), decay, eps) for m, s, n in zip(kept, sums, sizes, strict=True))


@jax.jit
def _whole(x: jax.Array, s: jax.Array, decay: tuple[Any, Any], eps: Any) -> jax.Array:
    return _ema(x, s, decay, eps)


@jax.jit
def _over_factors(x: jax.Array, R: jax.Array, C: jax.Array, M: jax.Array) -> jax.Array:
    of_row = _inverse_root(R / jnp.where(M == 0, jnp.ones_like(M), M))
    return x * cast(of_row, x.dtype) * cast(_inverse_root(C), x.dtype)


@jax.jit
def _over_whole(x: jax.Array, v: jax.Array) -> jax.Array:
    return x * cast(_inverse_root(v), x.dtype)


def _inverse_root(v: jax.Array) -> jax.Array:
    """1 / sqrt(v), and 0 where v is 0."""
    none = v == 0
    return jnp.where(none, jnp.zeros_like(v), jax.lax.rsqrt(jnp.where(none, jnp.ones_like(v), v)))


def accumulate(
    moment: Factored,
    like: Any,
    squares: Sequence[Any],
    layout: Layout | None,
    decay: tuple[Any, Any],
    eps: Any = None,
) -> Factored:
    """The moments after a step; one exchange between devices for all leaves.

    Args:
      moment: those before it.
      like: a tree of the parameters, whose leaves say how these are sharded.
      squares: per leaf what is averaged, >= 0; not read of a leaf that has no moment.
      layout: that of `start`.
      decay: b and 1 - b, as `gradkit.engine.core.pair` makes them.
      eps: added to every entry. Default None: nothing.
    """
    leaves, structure = jax.tree.flatten(like)
    known = names(like)
    kept = [list(structure.flatten_up_to(field)) for field in moment]
    chosen = [i for i, x in enumerate(kept[0]) if not isinstance(x, optax.MaskedNode)]
    own = [known[i] for i in chosen]
    sides = [axes_of(layout, name, leaves[i].shape) for name, i in zip(own, chosen, strict=True)]
    shapes = [whole_shape(name, leaves[i].shape) for name, i in zip(own, chosen, strict=True)]
    inputs, outputs = ([getattr(axes, side) for axes in sides] for side in ("inputs", "outputs"))
    taken, n = [squares[i] for i in chosen], len(chosen)
    sums = block_sums(own * 2, taken * 2, [*outputs, *inputs])
    both = [jnp.sum(s, axis=side, keepdims=True) for s, side in zip(sums[:n], inputs, strict=True)]
    parts = own_parts(own * 3, [leaves[i] for i in chosen] * 3, [*sums, *both])
    for j, i in enumerate(chosen):
        of_outputs, of_inputs = (math.prod(shapes[j][a] for a in side[j]) for side in (outputs, inputs))
        sizes = (of_outputs, of_inputs, of_outputs * of_inputs)
        new = _factors(tuple(field[i] for field in kept[:3]), tuple(parts[j::n]), sizes, decay, eps)
        for field, value in zip(kept, new, strict=False):
            field[i] = value
    for i, v in enumerate(kept[3]):
        if not isinstance(v, optax.MaskedNode):
            kept[3][i] = _whole(v, squares[i], decay, eps)
    return Factored(*(structure.unflatten(field) for field in kept))


def whitened(moment: Factored, tree: Any) -> list[Any]:
    """Per leaf, the entries over the roots of the moments; the leaf itself where it has none; 0 where a moment is 0."""
    leaves, structure = jax.tree.flatten(tree)
    out = []
    for x, R, C, M, v in zip(leaves, *(structure.flatten_up_to(field) for field in moment), strict=True):
        if not isinstance(R, optax.MaskedNode):
            out.append(_over_factors(x, R, C, M))
        else:
            out.append(x if isinstance(v, optax.MaskedNode) else _over_whole(x, v))
    return out
