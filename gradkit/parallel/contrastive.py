"""Contrastive losses without the matrix of similarities: by tiles on a device, by blocks around a ring of devices."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype
from gradkit.gradients.replicas import own_copy
from gradkit.parallel.replicas import alike
from gradkit.parallel.ring import visit_all
from gradkit.types import Scalar

PAPER = Paper(
    "Breaking the Memory Barrier: Near Infinite Batch Size Scaling for Contrastive Loss",
    "Cheng et al.",
    2024,
    "2410.17243",
)


def _tiles(x: jax.Array, tile: int, fill: float = 0.0) -> jax.Array:
    """(b, ...) as (tiles, tile, ...), padded."""
    count = -(-x.shape[0] // tile)
    x = jnp.pad(x, [(0, count * tile - x.shape[0])] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
    return x.reshape(count, tile, *x.shape[1:])


def _products(q: jax.Array, k: jax.Array) -> jax.Array:
    return jnp.einsum("id,jd->ij", q, k, preferred_element_type=wide_dtype(q.dtype))


def _logits(products: jax.Array, s: jax.Array, real_q: jax.Array, real_k: jax.Array) -> jax.Array:
    """The similarities z of one tile; -inf for padding."""
    return jnp.where(real_q[:, None] & real_k[None], s * products, -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _part(q: jax.Array, k: jax.Array, s: jax.Array, tile: int, axis_name: Any, n: int, symmetric: bool) -> jax.Array:
    """This device's part of the loss: a sum over its own pairs, divided by B. All parts are added afterwards, so they
    have the same cotangent: that of a column, which belongs to another device, need not be sent."""
    return _forward(q, k, s, tile, axis_name, n, symmetric)[0]


def _forward(q: Any, k: Any, s: Any, tile: int, axis_name: Any, n: int, symmetric: bool) -> tuple[Any, Any]:
    b = q.shape[0]
    Q, real = _tiles(q, tile), _tiles(jnp.ones(b, bool), tile, False)

    def visit(r: Any, K: Any, c: Any) -> tuple[Any, Any]:
        def row(c: Any, mine: Any) -> tuple[Any, Any]:
            q, real_q, r = mine

            def column(r: Any, theirs: Any) -> tuple[Any, Any]:
                k, real_k, c = theirs
                z = _logits(_products(q, k), s, real_q, real_k)
                c = None if c is None else jnp.logaddexp(c, jax.nn.logsumexp(z, axis=0))
                return jnp.logaddexp(r, jax.nn.logsumexp(z, axis=1)), c

            r, c = jax.lax.scan(column, r, (K, real, c))
            return c, r

        c, r = jax.lax.scan(row, c, (Q, real, r))
        return r, c

    nothing = alike(jnp.full(Q.shape[:2], -jnp.inf, s.dtype), q)
    r, home, elsewhere = visit_all(visit, nothing, _tiles(k, tile), nothing if symmetric else None, axis_name, n)
    r = r.reshape(-1)[:b]
    c = jnp.logaddexp(home, elsewhere).reshape(-1)[:b] if symmetric else None
    z = s * jnp.einsum("id,id->i", q, k, preferred_element_type=s.dtype)
    loss = jnp.sum(r - z) if c is None else jnp.sum(r + c - 2 * z) / 2
    return loss / (n * b), (q, k, s, r, c)


def _backward(tile: int, axis_name: Any, n: int, symmetric: bool, saved: Any, g: jax.Array) -> tuple[Any, Any, Any]:
    q, k, s, r, c = saved
    b = q.shape[0]
    g = g / (n * b)
    share = 0.5 * g if symmetric else g
    Q, R, real = _tiles(q, tile), _tiles(r, tile, jnp.inf), _tiles(jnp.ones(b, bool), tile, False)

    def visit(acc: Any, block: Any, dk: Any) -> tuple[Any, Any]:
        (dq, ds), (K, C) = acc, block

        def row(carry: Any, mine: Any) -> tuple[Any, Any]:
            (q, real_q, r, dq), (dk, ds) = mine, carry

            def column(acc: Any, theirs: Any) -> tuple[Any, Any]:
                (dq, ds), (k, real_k, c, dk) = acc, theirs
                products = _products(q, k)
                z = _logits(products, s, real_q, real_k)
                dz = share * jnp.exp(z - r[:, None])
                dz = dz if c is None else dz + share * jnp.exp(z - c[None])
                dq = dq + s * (dz @ k.astype(s.dtype))
                return (dq, ds + jnp.sum(dz * products)), dk + s * (dz.T @ q.astype(s.dtype))

            (dq, ds), dk = jax.lax.scan(column, (dq, ds), (K, real, C, dk))
            return (dk, ds), dq

        (dk, ds), dq = jax.lax.scan(row, (dk, ds), (Q, real, R, dq))
        return (dq, ds), dk

    zero, none = alike((jnp.zeros(Q.shape, s.dtype), jnp.zeros((), s.dtype)), (q, q))
    C = _tiles(c, tile, jnp.inf) if symmetric else None
    (dq, ds), home, elsewhere = visit_all(visit, (zero, none), (_tiles(k, tile), C), zero, axis_name, n)
    dq, dk = (x.reshape(-1, q.shape[1])[:b] for x in (dq, home + elsewhere))
    wide_q, wide_k = q.astype(s.dtype), k.astype(s.dtype)
    dq, dk = dq - g * s * wide_k, dk - g * s * wide_q
    return dq.astype(q.dtype), dk.astype(k.dtype), ds - g * jnp.sum(wide_q * wide_k)


_part.defvjp(_forward, _backward)


def tiled_contrastive_loss(
    q: Any, k: Any, scale: Scalar = 1.0, *, tile: int = 1024, axis_name: Any = None, symmetric: bool = True
) -> jax.Array:
    """The contrastive loss (InfoNCE, CLIP) of a batch, without its matrix of similarities.

    Equations, with B pairs (q_i, k_i), a scale s (the inverse of a temperature), and z_ij = s <q_i, k_j>:

        r_i = log sum_j exp z_ij                            a query among all keys
        c_j = log sum_i exp z_ij                            a key among all queries
        loss = 1/(2B) sum_i (r_i + c_i - 2 z_ii)            symmetric
        loss = 1/B sum_i (r_i - z_ii)                       otherwise
        dz_ij = (exp(z_ij - r_i) - [i = j]) / B             symmetric: the mean of this and the same with c_j
        dq_i = s sum_j dz_ij k_j,   dk_j = s sum_i dz_ij q_i,   ds = sum_ij dz_ij <q_i, k_j>

    q, k, r and c are kept between the passes; a tile of z is computed again in the second. Each of n devices has B/n
    pairs. Blocks of keys are sent around the ring with their sums over queries: c in the first pass, dk in the second.

    Args:
      q: representations of shape (B, d), floating point; of unit length where similarities are to be cosines.
      k: of the same shape: k_i belongs to q_i.
      scale: s >= 0, a number or a traced scalar, to which the loss has a gradient too. Default 1.
      tile: rows and columns of z that exist at one time, >= 1; need not divide B. Default 1024, 4 MiB in float32.
      axis_name: axis of `shard_map` or `vmap` whose members have B/n pairs each: `ring_contrastive_loss`. Default
        None: all pairs are given. Without a ring the compiler all-gathers sharded pairs.
      symmetric: whether the loss of keys among queries is included, as in CLIP. Default True.

    Returns:
      A scalar in float32 or wider. Gradients have the dtypes of q, k and scale; they are sums in float32 or wider.
      Memory between the passes: q, k and two numbers per pair; within one, their gradients and a few tiles. Reverse
      mode only, and once.

    Raises:
      ValueError: q and k of different shapes or dtypes, not of rank 2, empty, or not floating point; scale or tile
        outside its range.

    Example:
      >>> q = jnp.eye(4)
      >>> print(tiled_contrastive_loss(q, q, 2.0, tile=3).round(4))  # log(e^2 + 3) - 2
      0.3408

    Reference: Cheng et al. Breaking the Memory Barrier: Near Infinite Batch Size Scaling for Contrastive Loss. 2024,
    arXiv 2410.17243. The official code computes one direction at a time, and runs a plain variant without subtracting
    the maximum; here both directions come from one pass, and all sums of exponentials are of logarithms.
    `optax.losses.ntxent` builds the matrix.
    """
    checks.switch(symmetric=symmetric)
    checks.axis_name("axis_name", axis_name)
    q, k = jnp.asarray(q), jnp.asarray(k)
    if q.ndim != 2 or q.shape != k.shape or q.dtype != k.dtype or not q.size:
        found = f"{q.dtype} of shape {q.shape} and {k.dtype} of shape {k.shape}"
        raise ValueError(f"q and k must have one dtype and one shape (pairs, features), not empty, got {found}")
    if not jnp.issubdtype(q.dtype, jnp.floating):
        raise ValueError(f"q and k must be floating point, got {q.dtype}")
    checks.real("scale", scale, "[0, inf)")
    checks.integer("tile", tile, 1)
    s = jnp.asarray(scale).astype(wide_dtype(q.dtype))
    if s.shape != ():
        raise ValueError(f"scale must be a scalar, got shape {s.shape}")
    q = alike(own_copy(q, axis_name), k)
    k, s = alike(k, q), alike(s, q)
    b = q.shape[0]
    even = -(-b // -(-b // tile))  # The same number of tiles, but of nearly equal size, which minimises padding.
    n = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    part = jnp.asarray(_part(q, k, s, even, axis_name, n, symmetric))
    return part if axis_name is None else jax.lax.psum(part, axis_name)


def ring_contrastive_loss(
    q: Any, k: Any, scale: Scalar = 1.0, *, axis_name: Any, tile: int = 1024, symmetric: bool = True
) -> jax.Array:
    """The contrastive loss of a batch whose pairs are sharded over the devices of a ring: no device ever has all pairs.

    Equations: those of `tiled_contrastive_loss`. Call it under `jax.shard_map`, with pairs sharded along `axis_name`.

    Args:
      q: the B/n representations of this device, as in `tiled_contrastive_loss`.
      k: their partners, of the same shape.
      scale: s >= 0, the same on all devices. Default 1.
      axis_name: axis of `shard_map` (or `vmap`) along which the pairs are sharded, or a tuple of axes.
      tile: as in `tiled_contrastive_loss`.
      symmetric: as in `tiled_contrastive_loss`.

    Returns:
      The loss of all B pairs, the same on every device. Collectives, per device: forward n - 1 blocks of B/n d words
      (symmetric: and of B/n, c), backward twice as many, n - 1 of k and n - 1 of dk, which is float32 or wider; and
      an all-reduce of the loss. A block is sent while the previous one is processed. Differentiate around `shard_map`,
      or inside with its `check_vma` (the default). Inside without it, and inside `vmap`, JAX multiplies the gradient of
      any sum over devices by their number; around `vmap` it does not support a custom derivative with such a loop.

    Raises:
      ValueError: as `tiled_contrastive_loss`.

    Example:
      >>> q = jnp.eye(4).reshape(2, 2, 4)  # two pairs on each of two devices that `vmap` stands in for
      >>> ring = jax.vmap(lambda q: ring_contrastive_loss(q, q, 2.0, axis_name="data"), axis_name="data")
      >>> print(ring(q).round(4))
      [0.3408 0.3408]

    Reference: Cheng et al. Breaking the Memory Barrier: Near Infinite Batch Size Scaling for Contrastive Loss. 2024,
    arXiv 2410.17243. The official code returns the mean over the device's own pairs, and its gradient is divided by
    n only once gradients are averaged; here it is the mean over all pairs in all cases.
    """
    checks.switch(symmetric=symmetric)
    checks.axis_name("axis_name", axis_name, optional=False)
    if axis_name is None:
        raise ValueError("axis_name must be an axis of shard_map or vmap, got None")
    return tiled_contrastive_loss(q, k, scale, tile=tile, axis_name=axis_name, symmetric=symmetric)


register(tiled_contrastive_loss, form="layer", paper=PAPER)
register(ring_contrastive_loss, form="layer", paper=PAPER, notes="the batch of a contrastive loss, cut over devices")
