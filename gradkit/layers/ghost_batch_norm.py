"""Ghost batch normalization: a large batch is normalized in parts of the size of a small batch."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar
from gradkit.layers.axes import channels, floating, wide
from gradkit.layers.statistics import RunningStatistics, moments, statistics
from gradkit.types import Scalar

PAPER = Paper(
    "Train longer, generalize better: closing the generalization gap in large batch training of neural networks",
    "Hoffer, Hubara, Soudry",
    2017,
    "1705.08741",
)


def ghost_batch_norm(
    x: Any,
    scale: Scalar,
    bias: Any,
    state: RunningStatistics,
    *,
    ghost_size: int = 128,
    decay: Scalar = 0.99,
    eps: Scalar = 1e-5,
    use_running_average: bool = False,
) -> tuple[jax.Array, RunningStatistics]:
    """Batch normalization with the statistics of parts of the batch.

    Equations, for the parts (ghosts) i = 1 ... G of b examples each, with their own population moments, and
    eta = 1 - decay:

        y_i   = scale (x_i - mean_i) / sqrt(var_i + eps) + bias
        mean <- (1 - eta)^G mean + sum_i (1 - eta)^(G - i) eta mean_i        running mean
        var  <- (1 - eta)^G var + sum_i (1 - eta)^(G - i) eta var_i          running variance

    Args:
      x: activations (examples, ..., channels).
      scale: one number per channel.
      bias: one number per channel.
      state: `RunningStatistics(mean, var)`; start at 0 and 1.
      ghost_size: b, examples per ghost, >= 1; must divide the examples. Default 128 (official code). Ghosts are
        consecutive examples.
      decay: 1 - eta, the decay of the running statistics at every GHOST, in [0, 1]. Default 0.99, Flax's.
      eps: added to the variance, > 0. Default 1e-5.
      use_running_average: True at inference: x is normalized by the running statistics, which do not change. Default
        False.

    Returns:
      (y, state), y in the shape and dtype of x. State: two words per channel. Where every ghost is on one device its
      statistics need no collective, unlike those of batch normalization; the running ones of a sharded batch are
      averaged.

    Raises:
      ValueError: a ghost size that does not divide the batch; shapes that do not fit; an argument outside its range.

    Example:
      >>> x = jnp.array([[0.0], [2.0], [10.0], [30.0]])
      >>> start = RunningStatistics(jnp.zeros(1), jnp.ones(1))
      >>> y, state = ghost_batch_norm(x, jnp.ones(1), jnp.zeros(1), start, ghost_size=2, decay=0.5)
      >>> y[:, 0].round(3).tolist(), state.mean.tolist()  # 1 and 20: (0 / 2 + 1 / 2) / 2 + 20 / 2
      ([-1.0, 1.0, -1.0, 1.0], [10.25])

    Reference: Hoffer, Hubara, Soudry. Train longer, generalize better: closing the generalization gap in large batch
    training of neural networks. 2017, arXiv 1705.08741, whose text writes the exponents loosely. Its code runs small
    batches one after another; with `gk.gradients.microbatch` around the loss, ordinary batch normalization is this.
    """
    checks.instance("state", state, RunningStatistics)
    checks.arrays(x=x, scale=scale, bias=bias)
    checks.switch(use_running_average=use_running_average)
    x = floating("x", x)
    checks.integer("ghost_size", ghost_size, 1)
    checks.real("decay", decay, "[0, 1]")
    checks.real("eps", eps, "(0, inf)")
    if x.ndim < 2 or x.shape[0] % ghost_size:
        raise ValueError(f"ghost_size must divide the examples, the first axis of x, got {ghost_size}, shape {x.shape}")
    z = wide(x)
    old = statistics(state, z)
    if use_running_average:
        z = (z - channels("mean", old.mean, z)) * jax.lax.rsqrt(channels("var", old.var, z) + scalar(eps, z))
        new = old
    else:
        ghosts = z.reshape(-1, ghost_size, *z.shape[1:])
        own = moments(ghosts, axis=tuple(range(1, ghosts.ndim - 1)))  # (G, channels)
        like = (ghosts.shape[0], *(1,) * (ghosts.ndim - 2), ghosts.shape[-1])
        ghosts = (ghosts - own.mean.reshape(like)) * jax.lax.rsqrt(own.var.reshape(like) + scalar(eps, z))
        z = ghosts.reshape(z.shape)
        new = jax.lax.stop_gradient(RunningStatistics(*(_absorbed(m, v, decay) for m, v in zip(old, own, strict=True))))
    y = z * channels("scale", scale, z) + channels("bias", bias, z)
    return y.astype(x.dtype), new


def _absorbed(old: jax.Array, ghosts: jax.Array, decay: Any) -> jax.Array:
    """The running value after all ghosts, whose values are the rows."""
    d = jnp.asarray(decay).astype(ghosts.dtype)
    G = ghosts.shape[0]
    weights = ((1 - d) * d ** jnp.arange(G - 1, -1, -1).astype(ghosts.dtype)).reshape(G, 1)
    return (d**G * old.astype(ghosts.dtype) + jnp.sum(weights * ghosts, axis=0)).astype(old.dtype)


_C: Any = jax.ShapeDtypeStruct((8,), "float32")
register(
    ghost_batch_norm,
    form="layer",
    paper=PAPER,
    example={
        "x": jax.ShapeDtypeStruct((16, 8), "float32"),
        "scale": _C,
        "bias": _C,
        "state": RunningStatistics(_C, _C),
        "ghost_size": 4,
    },
)
