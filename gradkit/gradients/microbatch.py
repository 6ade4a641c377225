"""Gradient accumulation inside the step: the gradient of a large batch, computed one microbatch at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import widen
from gradkit.gradients.accumulate import accumulate, split
from gradkit.gradients.replicas import own_copy

PAPER = Paper("Scaling Neural Machine Translation", "Ott et al.", 2018, "1806.00187")


def _weighted(n: jax.Array, x: jax.Array) -> jax.Array:
    # The mean over no tokens is 0/0; it is left out of the sum.
    return jnp.where(n > 0, n.astype(x.dtype) * x, jnp.zeros((), x.dtype))


def _over(N: jax.Array, x: jax.Array) -> jax.Array:
    return x / jnp.where(N > 0, N, jnp.ones((), N.dtype)).astype(x.dtype)


def microbatch(
    loss_fn: Callable[..., Any],
    microbatches: int,
    *,
    weight: Callable[[Any], Any] | None = None,
    has_aux: bool = False,
    axis_name: Any = None,
) -> Callable[..., tuple[Any, Any]]:
    """Value and gradient of a batch, computed over its microbatches in turn.

    Equations, with microbatches b_1 ... b_k, losses L_i that are means over N_i tokens (or examples), and gradients
    g_i:

        N = N_1 + ... + N_k,    value = sum_i N_i L_i / N,    gradient = sum_i N_i g_i / N

    These are the value and gradient of the batch. The mean of the g_i is not its gradient, unless all N_i are equal.

    Args:
      loss_fn: (params, batch, *args) -> scalar, or (scalar, aux): a MEAN over the tokens or examples of the batch.
      microbatches: k >= 1; must divide the batch size.
      weight: microbatch -> N_i >= 0, the number of tokens (or examples) its loss is a mean over; for instance the
        sum of the mask of a padded batch. Default None: all equal, as in a mean over examples.
      has_aux: whether `loss_fn` returns (scalar, aux). Default False.
      axis_name: axis of `vmap` or `shard_map` whose members hold parts of the batch; the sums then run over all of
        them. Default None.

    Returns:
      fn(params, batch, *args, **kwargs) -> (value, gradient), or ((value, aux), gradient) with aux stacked along a
      leading axis of length k. `batch` is any tree whose leaves have the same leading axis; microbatch i holds
      examples i, i + k, ..., so a sharded batch needs no communication to be split. Every microbatch gets the same
      further arguments: put random keys into the batch, one per example. Sums are float32 or wider (one more copy of
      the gradient), results have the dtypes of `jax.value_and_grad`. Where N = 0 both are 0.

    Raises:
      ValueError: at construction, a number of microbatches < 1; when called, a batch without leaves or with
        several batch sizes, a batch size that does not divide, a weight that is not a scalar.

    Example:
      >>> fn = microbatch(lambda x, batch: jnp.mean((x - batch) ** 2) / 2, 2)
      >>> value, grads = fn(jnp.array(1.0), jnp.arange(4.0))
      >>> float(value), float(grads)
      (0.75, -0.5)

    Reference: Ott et al. Scaling Neural Machine Translation. 2018, arXiv 1806.00187. The paper sums gradients of
    summed losses and divides once by the number of tokens, which is the same. optax.MultiSteps averages the g_i.
    """
    checks.axis_name("axis_name", axis_name)
    checks.switch(has_aux=has_aux)
    checks.function("loss_fn", loss_fn)
    checks.integer("microbatches", microbatches, 1)
    if weight is not None:
        checks.function("weight", weight)

    def fn(params: Any, batch: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        own = own_copy(params, axis_name)

        def one(part: Any) -> tuple[Any, Any]:
            value, g = jax.value_and_grad(loss_fn, has_aux=has_aux)(own, part, *args, **kwargs)
            value, aux = value if has_aux else (value, None)
            if weight is None:
                return (jnp.ones((), jnp.float32), *widen((value, g))), (aux, value)
            n = jnp.asarray(weight(part)).astype(jnp.float32)
            if n.shape != ():
                raise ValueError(f"microbatch: weight must return a scalar per microbatch, got shape {n.shape}")
            terms = jax.tree.map(lambda x: _weighted(n, x), widen((value, g)))
            return (n, *terms), (aux, value)

        sums, (aux, values) = accumulate(one, split(batch, microbatches, "microbatch"))
        N, value, g = sums if axis_name is None else jax.lax.psum(sums, axis_name)
        value = _over(N, value).astype(values.dtype)
        g = jax.tree.map(lambda x, p: _over(N, x).astype(p.dtype), g, params)
        return ((value, aux) if has_aux else value), g

    return fn


register(microbatch, form="source", paper=PAPER, words=1, example={"microbatches": 2})
