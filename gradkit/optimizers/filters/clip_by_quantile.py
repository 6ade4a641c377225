"""Coordinate-wise clipping of a fixed share of the coordinates at every step."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import stateless, transformation
from gradkit.engine.norms import block_axes
from gradkit.leaves import Layout, map_named
from gradkit.transforms.clip_block import clip_coordinates
from gradkit.types import Scalar

DEFAULT = 0.1


def kth_largest(xs: Sequence[jax.Array], fraction: Scalar, axes: tuple[int, ...] | None = None) -> jax.Array:
    """The k-th largest of n non-negative numbers, exactly, by bisection on their bits; k is fraction * n, rounded.

    The bits of a non-negative float, read as an integer, are in the order of the floats: one count of the numbers
    above a threshold decides one bit. Nothing is sorted, and devices that have parts of the numbers all-reduce counts
    alone.

    Args:
      xs: arrays of one dtype, float32 or float64.
      fraction: in (0, 1).
      axes: the axes of the only array whose numbers are ranked together; they stay, with length 1. Default: all numbers
        of all arrays are ranked together, and one number is returned.

    >>> kth_largest([jnp.array([1.0, 5.0]), jnp.array([3.0])], 2 / 3).item()
    3.0
    """
    n = sum(x.size for x in xs) if axes is None else math.prod(xs[0].shape[a] for a in axes)
    counts = jnp.int32 if n < 2**31 else jnp.float32
    share = checks.readable(fraction)
    # A product in float32 may round to another integer than that of Python's floats.
    if share is None:
        wanted = jnp.clip(jnp.round(jnp.asarray(fraction).astype(jnp.result_type(float)) * n), 1, n)
    else:
        wanted = jnp.asarray(min(max(round(share * n), 1), n))
    k = wanted.astype(counts)
    width = jnp.finfo(xs[0].dtype).bits
    dtype = jnp.int32 if width == 32 else jnp.int64
    bits = [jax.lax.bitcast_convert_type(x, dtype) for x in xs]

    def count(threshold: jax.Array) -> jax.Array:
        above = [jnp.sum(b >= threshold, axis=axes, keepdims=axes is not None, dtype=counts) for b in bits]
        return sum(above[1:], above[0])

    def decide(i: jax.Array, found: jax.Array) -> jax.Array:
        tried = found | (jnp.ones((), dtype) << jnp.asarray(width - 2 - i).astype(dtype))
        return jnp.where(count(tried) >= k, tried, found)

    # Zeros with the shape and the sharding of the counts.
    start = (count(jnp.zeros((), dtype)) * 0).astype(dtype)
    return jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, width - 1, decide, start), xs[0].dtype)


def clip_by_quantile(
    fraction: Scalar = DEFAULT, *, per_tensor: bool = False, tau: Scalar | None = None, layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Clips the largest coordinates to the size of the smallest among them.

    Equations, with n the number of coordinates:

        tau = the k-th largest |u_i|,   k = fraction * n, rounded, at least 1
        u_i <- min(max(u_i, -tau), tau)

    It belongs behind a direction and in front of the learning rate; alone,
    `optax.chain(gk.clip_by_quantile(), gk.scale_by_learning_rate(0.1))` is clipped SGD. As fraction goes to 1 all
    coordinates become equally large: descent by the sign.

    Args:
      fraction: share of the coordinates that are clipped, in (0, 1). Default 0.1.
      per_tensor: whether every tensor has a threshold of its own. Default False: one for all leaves together.
      tau: a fixed threshold > 0 in place of `fraction` and `per_tensor`; then no coordinates are ranked. Default None.
      layout: which axes are stacks, for `per_tensor`: every layer of a scan is a tensor.

    Returns:
      A transformation. No state. Collectives: one count per bit of a threshold (31 or 63) where leaves are sharded;
      none with `tau`.

    Raises:
      ValueError: a hyperparameter outside its range; `tau` together with another; complex leaves, which have no
        coordinate-wise clipping.

    Example:
      >>> tx = clip_by_quantile(0.5)
      >>> u = jnp.array([0.1, -8.0, 2.0, 0.3])
      >>> print(tx.update(u, tx.init(u))[0])
      [ 0.1 -2.   2.   0.3]

    Reference: Pan, Li. Toward Understanding Why Adam Converges Faster Than SGD for Transformers. 2023, arXiv
    2306.00204. The threshold is an order statistic; nothing is interpolated between two of them.
    """
    checks.layout(layout)
    checks.switch(per_tensor=per_tensor)
    checks.real("fraction", fraction, "(0, 1)")
    checks.real("tau", tau, "(0, inf)", optional=True)
    if tau is not None and (per_tensor or fraction is not DEFAULT):
        raise ValueError(
            f"clip_by_quantile: tau must be None with fraction or per_tensor, got {tau!r}; a fixed threshold needs "
            f"neither: write clip_by_quantile(tau={tau!r})"
        )

    def of_tensor(name: str, u: jax.Array) -> jax.Array:
        return kth_largest([jnp.abs(u)], fraction, block_axes(name, u.shape, "tensor", layout)) if u.size else u

    def of_tree(updates: Any) -> jax.Array:
        sizes = [jnp.abs(u) for u in jax.tree.leaves(updates) if u.size] or [jnp.zeros((1,))]
        dtype = max((u.dtype for u in sizes), key=lambda d: d.itemsize)
        return kth_largest([u.astype(dtype) for u in sizes], fraction)

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        if per_tensor:
            limits = map_named(of_tensor, updates)
        else:
            limit = of_tree(updates) if tau is None else jnp.asarray(tau)
            limits = jax.tree.map(lambda u: limit.astype(u.dtype), updates)
        return jax.tree.map(clip_coordinates, updates, limits), state

    return transformation("clip_by_quantile", stateless("clip_by_quantile", layout), update)


register(
    clip_by_quantile,
    form="primitive",
    paper=Paper(
        "Toward Understanding Why Adam Converges Faster Than SGD for Transformers", "Pan, Li", 2023, "2306.00204"
    ),
    collectives="norms",
    opt_outs={"layout": "the default threshold is of all leaves together; tests/papers checks layouts with per_tensor"},
)
