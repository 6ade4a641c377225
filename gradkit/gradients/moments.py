"""Moments of the gradient over microbatches and replicas."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import abs_sq, widen
from gradkit.engine.extras import GradientMoments
from gradkit.engine.norms import global_square
from gradkit.gradients.accumulate import accumulate, split
from gradkit.gradients.replicas import mean_over, own_copy

PAPER = Paper(
    "Accelerating Large Batch Training via Gradient Signal to Noise Ratio (GSNR)", "Jiang et al.", 2023, "2309.13681"
)


def gradient_moments(
    loss_fn: Callable[..., Any], microbatches: int = 1, *, has_aux: bool = False, axis_name: Any = None
) -> Callable[..., tuple[Any, GradientMoments]]:
    """The value of a batch, and the moments of its gradient over parts of it.

    Equations, with gradients g_1 ... g_k of k equal parts of the batch:

        mean = (g_1 + ... + g_k) / k        mean_of_squares = (g_1^2 + ... + g_k^2) / k     (elementwise)
        mean_sq_norm = (|g_1|^2 + ... + |g_k|^2) / k                                        (over the whole tree)

    Their variance, mean_of_squares - mean^2, is that of the gradient of a part: a part of n examples has 1/n of the
    variance of one example.

    Args:
      loss_fn: (params, batch, *args) -> scalar, or (scalar, aux): a mean over the examples of the batch.
      microbatches: the number of parts that the batch (of each replica) is divided into, >= 1; must divide its size.
        Default 1, which makes sense with `axis_name` only.
      has_aux: whether `loss_fn` returns (scalar, aux). Default False.
      axis_name: axis of `vmap` or `shard_map` whose members are replicas that hold parts of the batch. There are
        then microbatches x replicas parts. Default None.

    Returns:
      fn(params, batch, *args, **kwargs) -> (value, moments), or ((value, aux), moments) with aux stacked along a
      leading axis of length `microbatches`. `moments.mean` takes the place of the gradient. Memory: two more words
      per parameter (float32); with `axis_name` one collective of two words per parameter.

    Raises:
      ValueError: at construction, fewer than 1 part; when called, a batch that does not divide.

    Example:
      >>> fn = gradient_moments(lambda x, batch: jnp.mean(x * batch), 2)
      >>> value, moments = fn(jnp.array(2.0), jnp.array([1.0, 3.0]))
      >>> float(value), float(moments.mean), float(moments.mean_of_squares), int(moments.count)
      (4.0, 2.0, 5.0, 2)

    Reference: Jiang et al. Accelerating Large Batch Training via Gradient Signal to Noise Ratio (GSNR). 2023,
    arXiv 2309.13681 (over devices); McCandlish et al. An Empirical Model of Large-Batch Training. 2018,
    arXiv 1812.06162 (norms).
    """
    checks.axis_name("axis_name", axis_name)
    checks.switch(has_aux=has_aux)
    checks.function("loss_fn", loss_fn)
    microbatches = checks.integer("microbatches", microbatches, 1)

    def fn(params: Any, batch: Any, *args: Any, **kwargs: Any) -> tuple[Any, GradientMoments]:
        params = own_copy(params, axis_name)

        def one(part: Any) -> tuple[Any, Any]:
            value, g = jax.value_and_grad(loss_fn, has_aux=has_aux)(params, part, *args, **kwargs)
            value, aux = value if has_aux else (value, None)
            g = widen(g)
            squares = jax.tree.map(abs_sq, g)
            norm = global_square(g).astype(float)
            return (value, g, squares, norm), (aux, value)

        sums, (aux, values) = accumulate(one, split(batch, microbatches, "gradient_moments"))
        means = mean_over(jax.tree.map(lambda x: x / microbatches, sums), axis_name)
        value, mean, mean_of_squares, mean_sq_norm = means
        replicas = 1 if axis_name is None else jax.lax.axis_size(axis_name)
        value = value.astype(values.dtype)
        count = jnp.asarray(microbatches * replicas, jnp.int32)
        return ((value, aux) if has_aux else value), GradientMoments(mean, mean_of_squares, mean_sq_norm, count)

    return fn


register(gradient_moments, form="source", paper=PAPER, words=2, example={"microbatches": 2})
