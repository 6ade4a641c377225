"""The running moments of batch normalization recomputed, as for weights that were averaged."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype
from gradkit.layers.axes import readable


def recompute_batch_stats(apply: Callable[[Any, Any], Any], batches: Iterable[Any], stats: Any) -> Any:
    """The mean moments over batches, independent of the momentum of the layers and of their running moments.

    Equations, for a layer with momentum m that updates running moments r to r' with the moments s of a batch:

        r' = m r + (1 - m) s
        m  = (r'(r = R) - r'(r = 0)) / R                  for any R
        s  = r'(r = 0) / (1 - m)
        result = sum of n_b s_b / sum of n_b              over batches b of n_b examples

    Call it after Polyak or stochastic weight averaging, or any change of weights without training.

    Args:
      apply: (running moments, batch) -> new running moments, in training mode. With Flax linen it is
        `model.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])[1]["batch_stats"]`. What the
        layers compute must not depend on their running moments, as it does not in training.
      batches: batches of the size used in training, read once. Leaves have a leading axis of examples.
      stats: running moments of any values, for their structure, shapes and dtypes.

    Returns:
      Running moments like `stats`. One forward pass per batch, and one more for the first.

    Raises:
      ValueError: no batches; a layer with momentum 1, which ignores batches.

    Example:
      >>> layer = lambda stats, x: {"mean": 0.9 * stats["mean"] + 0.1 * jnp.mean(x, axis=0)}
      >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [7.0]])]
      >>> print(recompute_batch_stats(layer, batches, {"mean": jnp.array([7.0])})["mean"].round(3))
      [4.]

    Reference: Ioffe, Szegedy. Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
    Shift. 2015, arXiv 1502.03167; for averaged weights Izmailov et al. Averaging Weights Leads to Wider Optima and
    Better Generalization. 2018, arXiv 1803.05407. Running moments estimate the mean of the variances of batches; it is
    less than the variance of all examples by the variance of the means of batches.
    """
    checks.arrays(stats=stats)
    checks.function("apply", apply)
    step = jax.jit(apply)
    zeros = jax.tree.map(jnp.zeros_like, stats)
    total: Any = None
    fresh: Any = None
    examples = 0
    for batch in batches:
        count = int(jnp.shape(jax.tree.leaves(batch)[0])[0])
        made = jax.tree.map(lambda r: r.astype(wide_dtype(r.dtype)), step(zeros, batch))
        if fresh is None:
            # R has the size of the moments that are subtracted, which keeps the rounding error of the difference small.
            R = jax.tree.map(lambda b: 1 + jnp.abs(b), made)
            probe = step(jax.tree.map(lambda x, r: x.astype(r.dtype), R, stats), batch)
            fresh = jax.tree.map(lambda a, b, r: 1 - jnp.mean((a.astype(b.dtype) - b) / r), probe, made, R)
            # A momentum of 1 gives 1 - m up to this rounding error.
            if any(readable(f) and float(f) <= 1e-6 for f in jax.tree.leaves(fresh)):
                raise ValueError(
                    "recompute_batch_stats: the momentum of every layer must be below 1, got a layer with 1"
                )
        weighed = jax.tree.map(lambda s, f, count=count: count * s / f, made, fresh)
        total = weighed if total is None else jax.tree.map(jnp.add, total, weighed)
        examples += count
    if not examples:
        raise ValueError("recompute_batch_stats: batches must have one batch or more, got none")
    return jax.tree.map(lambda s, r: (s / examples).astype(r.dtype), total, stats)


register(
    recompute_batch_stats,
    form="program",
    paper=Paper(
        "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
        "Ioffe, Szegedy",
        2015,
        "1502.03167",
    ),
    notes="after averaging weights; a loop over batches, which itself is not compiled",
)
