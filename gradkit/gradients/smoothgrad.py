"""SmoothGrad: which inputs a score depends on, averaged over noise."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar, wide_dtype
from gradkit.engine.keys import as_key
from gradkit.types import Scalar

PAPER = Paper("SmoothGrad: removing noise by adding noise", "Smilkov et al.", 2017, "1706.03825")


def smoothgrad(
    fn: Callable[..., Any], *, num_samples: int = 50, noise_level: Scalar = 0.15, squared: bool = False
) -> Callable[..., jax.Array]:
    """The gradient of a score by its input, as a mean over noisy copies of the input.

        s = (1 / n) sum_k grad fn(x + sigma eps_k),    sigma = noise_level (max x - min x),    eps_k ~ N(0, I)

    With `squared` the entries of the gradients are squared before the mean. sigma is of the one input x: of a batch,
    `jax.vmap(smoothgrad(fn), (0, 0))(x, jax.random.split(key, len(x)))`.

    Args:
      fn: (input, *args) -> scalar, such as the logit of a class.
      num_samples: n, >= 1. Default 50 (paper).
      noise_level: of the range of the input, >= 0. Default 0.15; the paper recommends 0.1 to 0.2.
      squared: default False (paper). The released library squares by default, with n = 25: another map.

    Returns:
      map(x, key, *args) -> an array like x. One gradient in memory.

    Raises:
      ValueError: an argument outside its range; an input that is not floating point, a fn that gives no scalar.

    Example:
      >>> print(smoothgrad(lambda x: x @ jnp.array([1.0, 3.0]))(jnp.array([0.0, 2.0]), 0))  # linear: exact
      [1. 3.]

    Reference: Smilkov et al. SmoothGrad: removing noise by adding noise. 2017, arXiv 1706.03825.
    """
    num_samples = checks.integer("num_samples", num_samples, 1)
    checks.real("noise_level", noise_level, "[0, inf)")
    checks.switch(squared=squared)
    checks.function("fn", fn)

    def saliency(x: Any, key: Any, *args: Any) -> jax.Array:
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"smoothgrad: x must be floating point, got {x.dtype}; write x.astype(jnp.float32)")
        shape = jax.eval_shape(lambda x: fn(x, *args), x).shape
        if shape:
            raise ValueError(f"smoothgrad: fn must give a scalar, got shape {shape}; write lambda x: fn(x)[c]")
        wide, random = x.astype(wide_dtype(x.dtype)), as_key(key)
        sigma = scalar(noise_level, wide) * (jnp.max(wide) - jnp.min(wide))

        def sample(k: Any, total: jax.Array) -> jax.Array:
            noise = jax.random.normal(jax.random.fold_in(random, k), wide.shape, wide.dtype)
            g = jax.grad(lambda x: fn(x, *args))((wide + sigma * noise).astype(x.dtype)).astype(wide.dtype)
            return total + (jnp.square(g) if squared else g)

        total = jax.lax.fori_loop(0, num_samples, sample, jnp.zeros_like(wide))
        return (total / num_samples).astype(x.dtype)

    return saliency


register(smoothgrad, form="program", paper=PAPER)
