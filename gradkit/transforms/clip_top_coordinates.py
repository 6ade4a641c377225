"""Clipping of the largest coordinates: those of all leaves together are brought down to the size of the rest.

thr = threshold_scale * (entry number floor(N fraction) of the |g| of all N coordinates, in descending order from 0)
g   <- sign(g) min(|g|, thr)

The entry is found by bisection over the bits of floating point numbers, which are in the order of the numbers: the
largest t with more than floor(N fraction) entries |g| >= t.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import scalar, transformation
from gradkit.engine.norms import added_up
from gradkit.engine.sums import block_sums, whole_shape
from gradkit.leaves import names
from gradkit.types import Scalar

PAPER = Paper("Toward Understanding Why Adam Converges Faster Than SGD for Transformers", "Pan, Li", 2023, "2306.00204")


def _order_statistic(known: list[str], sizes: list[jax.Array], rank: Any, wide: Any) -> jax.Array:
    """Entry number `rank`, from 0, of all entries of some leaves in descending order: nonnegative numbers."""
    bits = jnp.finfo(wide).bits
    unsigned = jnp.dtype(f"uint{bits}")
    # Beyond what int32 counts, float32 numbers of entries are right to a share of 6e-8.
    total = sum(int(np.prod(whole_shape(name, x.shape))) for name, x in zip(known, sizes, strict=True))
    counts = jnp.int32 if total < 2**31 else jnp.float32

    def enough(t: jax.Array) -> jax.Array:
        above = [(x >= t).astype(counts) for x in sizes]
        found = added_up(block_sums(known, above, [tuple(range(x.ndim)) for x in sizes]))
        return found > jnp.asarray(rank).astype(found.dtype)

    def bit(i: jax.Array, found: jax.Array) -> jax.Array:
        tried = found | jnp.left_shift(jnp.ones((), unsigned), jnp.asarray(bits - 2 - i).astype(unsigned))
        return jnp.where(enough(jax.lax.bitcast_convert_type(tried, wide)), tried, found)

    found = jax.lax.fori_loop(0, bits - 1, bit, jnp.zeros((), unsigned))
    return jax.lax.bitcast_convert_type(found, wide)


def clip_top_coordinates(fraction: Scalar, *, threshold_scale: Scalar = 1.0) -> optax.GradientTransformationExtraArgs:
    """Clips the share `fraction` of all coordinates that are largest to the size of the next.

        thr = threshold_scale * (entry number floor(N fraction) of all |g|, in descending order from 0)
        g   <- sign(g) min(|g|, thr)

    Before `gk.sgd`, it takes away what makes gradient descent slow on transformers: few coordinates with large
    curvature (`gk.diagnostics.directional_sharpness` falls). Behind `gk.scale_by_adam` it clips the update.

    Args:
      fraction: share of all coordinates that is clipped, in [0, 1]. Paper: 0.1 for SGD, 0.5 for Adam and for updates.
        With 0 nothing changes, with 1 everything is 0.
      threshold_scale: factor of the threshold, > 0. Default 1 (paper).

    Returns:
      A transformation. No state. Collectives: one scalar for every bit of the numbers (31 in float32).

    Raises:
      ValueError: an argument outside its range, or complex leaves.

    Example:
      >>> tx = clip_top_coordinates(0.5)
      >>> g = {"a": jnp.array([-8.0, 1.0]), "b": jnp.array([4.0, 2.0])}
      >>> [u.tolist() for u in tx.update(g, tx.init(g))[0].values()]  # entry 2 of 8, 4, 2, 1
      [[-2.0, 1.0], [2.0, 2.0]]

    Reference: Pan, Li. Toward Understanding Why Adam Converges Faster Than SGD for Transformers. 2023, arXiv
    2306.00204. Their code sorts all coordinates, for which sharded leaves would be gathered; the threshold is the same
    number.
    """
    checks.real("fraction", fraction, "[0, 1]")
    checks.real("threshold_scale", threshold_scale, "(0, inf)")
    share = checks.readable(fraction)

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        leaves, structure = jax.tree.flatten(updates)
        known = names(updates)
        if not leaves:
            return updates, state
        wide = max((x.dtype for x in leaves), key=lambda dtype: dtype.itemsize)
        sizes = [jnp.abs(x).astype(wide) for x in leaves]
        total = sum(int(np.prod(whole_shape(name, x.shape))) for name, x in zip(known, leaves, strict=True))
        rank = int(total * share) if share is not None else jnp.floor(total * jnp.asarray(fraction, jnp.float32))
        threshold = _order_statistic(known, sizes, rank, wide)
        threshold = threshold * scalar(threshold_scale, threshold)
        # Of NaN both comparisons are false, and it stays.
        new = [jnp.clip(x, -threshold.astype(x.dtype), threshold.astype(x.dtype)) for x in leaves]
        return structure.unflatten(new), state

    return transformation("clip_top_coordinates", lambda params: optax.EmptyState(), update)


register(
    clip_top_coordinates,
    form="primitive",
    paper=PAPER,
    collectives="norms",
    golden=("estimators/clip_top_coordinates",),
    example={"fraction": 0.1},
    variants={"top_clipped_sgd": Race(1e-1, {"fraction": 0.1}, before="sgd")},
)
