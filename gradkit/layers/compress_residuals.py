"""Mesa: layers that compute exactly and remember their inputs in eight bits for the backward pass.

Of every group h of channels, or head, with a range [beta_h, beta_h + alpha_h] and L = 2^bits - 1:

    code = floor(clip((x - beta) L / alpha, 0, L) + u),  u ~ U[0, 1) per entry        one byte is kept
    x^ = code alpha / L + beta                                                        E[x^] = x inside the range
    alpha = max x - min x,  beta = min x          exactly of this batch; or running: r <- decay r + (1 - decay) r_now
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.keys import as_key
from gradkit.layers.axes import floating, wide
from gradkit.types import Scalar

PAPER = Paper("Mesa: A Memory-saving Training Framework for Transformers", "Pan et al.", 2021, "2111.11124")


class ResidualRanges(NamedTuple):
    """The widths alpha and the minima beta of the groups, (groups,) each, in float32 or wider."""

    alpha: jax.Array
    beta: jax.Array


def _grouped(x: jax.Array, axis: int, num_groups: int | None) -> tuple[jax.Array, int]:
    """x as (groups, everything else), and the size of a group along the axis."""
    checks.integer("axis", axis, -x.ndim)
    if axis >= x.ndim:
        raise ValueError(f"axis must be one of the {x.ndim} axes of x, got {axis}; write axis=-1 for the last")
    size = x.shape[axis]
    groups = size if num_groups is None else num_groups
    if size % groups or not x.size:
        raise ValueError(
            f"num_groups must divide axis {axis} of x, of shape {x.shape}, got {groups}; write the number of heads"
        )
    return jnp.moveaxis(x, axis, 0).reshape(groups, -1), size // groups


def _exact(x: jax.Array, axis: int, num_groups: int | None) -> ResidualRanges:
    rows, _ = _grouped(jax.lax.stop_gradient(wide(x)), axis, num_groups)
    low = jnp.min(rows, axis=1)
    return ResidualRanges(jnp.max(rows, axis=1) - low, low)


def running_ranges(
    x: Any, ranges: ResidualRanges | None, *, decay: Scalar = 0.9, axis: int = -1, num_groups: int | None = 1
) -> ResidualRanges:
    """The ranges of the next call of `compress_residuals`, from this batch and those before it.

        alpha <- decay alpha + (1 - decay) (max x - min x),    beta <- decay beta + (1 - decay) min x

    What is outside a running range is clipped in the backward pass.

    Args:
      x: what is compressed.
      ranges: of the batches before; None for the first, whose own ranges are taken.
      decay: in [0, 1). Default 0.9 (paper).
      axis: as in `compress_residuals`. Default -1.
      num_groups: as in `compress_residuals`. Default 1.

    Returns:
      `ResidualRanges`, 2 numbers per group.

    Raises:
      ValueError: an argument outside its range; ranges of another number of groups.

    Example:
      >>> first = running_ranges(jnp.array([0.0, 1.0]), None)
      >>> second = running_ranges(jnp.array([2.0, 4.0]), first, decay=0.5)
      >>> second.alpha.tolist(), second.beta.tolist()
      ([1.5], [1.0])

    Reference: Pan et al. Mesa: A Memory-saving Training Framework for Transformers. 2021, arXiv 2111.11124.
    """
    if ranges is not None:
        checks.instance("ranges", ranges, ResidualRanges)
    checks.arrays(x=x)
    checks.real("decay", decay, "[0, 1)")
    checks.integer("num_groups", num_groups, 1, optional=True)
    now = _exact(floating("x", x), axis, num_groups)
    if ranges is None:
        return now
    _check_ranges(ranges, now)
    share = jnp.asarray(decay).astype(now.alpha.dtype)
    return ResidualRanges(*(share * old + (1 - share) * new for old, new in zip(ranges, now, strict=True)))


def _check_ranges(ranges: Any, like: ResidualRanges) -> None:
    found = [jnp.shape(r) for r in ranges]
    if found != [like.alpha.shape] * 2:
        raise ValueError(f"ranges must have one alpha and one beta per group, {like.alpha.shape}, got {found}")


def _codes(x: jax.Array, key: Any, ranges: ResidualRanges, top: int, axis: int, groups: int | None) -> jax.Array:
    """(groups, entries) in uint8."""
    rows, _ = _grouped(wide(x), axis, groups)
    alpha = ranges.alpha[:, None]
    some = alpha > 0
    scaled = jnp.where(some, (rows - ranges.beta[:, None]) * top / jnp.where(some, alpha, jnp.ones_like(alpha)), 0.0)
    noise = jax.random.uniform(key, rows.shape, rows.dtype)
    return jnp.clip(jnp.floor(jnp.clip(scaled, 0, top) + noise), 0, top).astype(jnp.uint8)


Setting = tuple[Callable[..., Any], int, int, int | None]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _call(setting: Setting, x: jax.Array, rest: Any, key: Any, ranges: ResidualRanges) -> Any:
    return setting[0](x, *rest)


def _forward(setting: Setting, x: jax.Array, rest: Any, key: Any, ranges: ResidualRanges) -> tuple[Any, Any]:
    fn, top, axis, groups = setting
    codes = _codes(x, key, ranges, top, axis, groups)
    # Of x only its shape and dtype are needed besides: an array without entries has them.
    like = jnp.zeros((0, *jnp.moveaxis(x, axis, 0).shape[1:]), x.dtype)
    return fn(x, *rest), (codes, rest, ranges, like)


def _backward(setting: Setting, kept: Any, cotangent: Any) -> tuple[Any, ...]:
    fn, top, axis, _ = setting
    codes, rest, ranges, like = kept
    near = codes.astype(ranges.alpha.dtype) * (ranges.alpha / top)[:, None] + ranges.beta[:, None]
    near = jnp.moveaxis(near.reshape(-1, *like.shape[1:]), 0, axis).astype(like.dtype)
    _, back = jax.vjp(fn, near, *rest)
    dx, *others = back(cotangent)
    return dx, tuple(others), None, None


_call.defvjp(_forward, _backward)


def compress_residuals(
    fn: Callable[..., Any], *, bits: int = 8, axis: int = -1, num_groups: int | None = 1
) -> Callable[..., Any]:
    """A layer that keeps its first argument in eight bits for the backward pass, and is exact in the forward pass.

        y = fn(x, *rest)
        dx, drest = the cotangents of fn at x^:
        x^ = code alpha / L + beta,   code = floor(clip((x - beta) L / alpha, 0, L) + u),   L = 2^bits - 1
        alpha = max x - min x, beta = min x of every group;   u ~ U[0, 1) per entry

    Where the gradient is linear in x, as of the weights of a dense layer, it is unbiased; of a softmax or GELU slightly
    biased. `jax.checkpoint` is the exact alternative, which computes again.

    Args:
      fn: (x, *rest) -> y: a dense layer, GELU, a softmax, a layer normalization. All that it is to be differentiated in
        are its arguments: it must not close over traced values.
      bits: of a code, from 1 to 8; a code takes a byte whatever they are. Default 8 (paper).
      axis: whose groups have ranges of their own: of the heads, or the channels. Default -1.
      num_groups: contiguous groups along the axis, which they divide; None: one per entry, as for an axis of heads.
        Default 1: one range for all of x.

    Returns:
      layer(x, *rest, key=..., ranges=None) -> y, with a random key of its own for every layer and step; `ranges` of
      `running_ranges` in the place of those of this batch. Kept are a byte per entry of x, two numbers per group, and
      the rest as it is. Reverse mode, once.

    Raises:
      ValueError: an argument outside its range; groups that do not divide the axis; x that is not floating point.

    Example:
      >>> dense = compress_residuals(lambda x, w: x @ w)
      >>> x, w = jnp.array([[0.0, 255.0]]), jnp.ones((2, 1))
      >>> jax.grad(lambda w: jnp.sum(dense(x, w, key=0)))(w).tolist()  # both ends of the range are exact
      [[0.0], [255.0]]

    Reference: Pan et al. Mesa: A Memory-saving Training Framework for Transformers. 2021, arXiv 2111.11124. The paper
    has running ranges; those of the batch clip nothing, and cost a minimum and a maximum. Its softmax keeps outputs,
    here as everywhere the input is kept.
    """
    checks.function("fn", fn)
    bits = checks.integer("bits", bits, 1, maximum=8)
    checks.integer("axis", axis, -(2**31))
    groups = checks.integer("num_groups", num_groups, 1, optional=True)

    def layer(x: Any, *rest: Any, key: Any, ranges: ResidualRanges | None = None) -> Any:
        x = floating("x", x)
        exact = _exact(x, axis, groups)
        if ranges is not None:
            _check_ranges(ranges, exact)
            exact = jax.tree.map(lambda r, e: jax.lax.stop_gradient(jnp.asarray(r).astype(e.dtype)), ranges, exact)
        rest = jax.tree.map(jnp.asarray, rest)
        return _call((fn, 2**bits - 1, axis, groups), x, rest, as_key(key), ResidualRanges(*exact))

    return layer


register(compress_residuals, form="program", paper=PAPER)
register(
    running_ranges,
    form="function",
    paper=PAPER,
    example={"x": jax.ShapeDtypeStruct((8, 4), "float32"), "ranges": None},
)
