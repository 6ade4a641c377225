"""One gradient per example, reduced chunk by chunk: the source of methods that clip, weigh or compare examples.

With a batch of B examples x_i and a loss that is a mean over its batch:

    L_i = loss(params, {x_i}),    value = (L_1 + ... + L_B) / B,    g_i the gradient of L_i

so that (g_1 + ... + g_B) / B is the gradient of the batch. B / c chunks of c examples are computed one after another.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.lazy_gradients import LazyGradients, at_most
from gradkit.gradients.accumulate import accumulate, split
from gradkit.gradients.replicas import mean_over, own_copy

PAPER = Paper("Deep Learning with Differential Privacy", "Abadi et al.", 2016, "1607.00133")


def example_gradients(
    loss_fn: Callable[..., Any], *, chunk: int = 8, has_aux: bool = False, axis_name: Any = None
) -> Callable[..., tuple[Any, LazyGradients]]:
    """The value of a batch, and the gradients of its examples for an aggregator, chunk by chunk.

    With L_i the loss of the batch that holds example i alone: value = (L_1 + ... + L_B) / B, and g_i the gradient of
    L_i. No more than `chunk` of the g_i are in memory, whatever B is.

    Args:
      loss_fn: (params, batch, *args) -> scalar, or (scalar, aux): a mean over the examples of the batch. It is called
        with batches of one example, under `vmap`; what couples examples, as BatchNorm does, sees one alone.
      chunk: how many examples are computed at the same time, >= 1; the largest divisor of B that is not above it is
        taken. Default 8.
      has_aux: whether `loss_fn` returns (scalar, aux). Default False.
      axis_name: axis of `vmap` or `shard_map` whose members hold parts of the batch: the value is then the mean over
        all of them, the gradients are those of the examples at hand. Default None.

    Returns:
      fn(params, batch, *args, **kwargs) -> (value, gradients), or ((value, aux), gradients) with aux stacked along a
      leading axis of length B. Every leaf of `batch` has a leading axis of examples; chunk i of k holds the examples
      i, i + k, ..., so that a batch sharded over devices keeps all of them busy. The gradients are a
      `gk.gradients.LazyGradients`, for a chain whose first link is an aggregator of examples, such as
      `gk.aggregation.differentially_private_aggregate`, and for functions of one's own:
      `gradients.fold(function, start)` hands on (what there is, gradients of a chunk, their numbers). Its `losses` are
      the L_i. The value takes a forward pass of its own.
      `gk.training.make_train_step` and `gradkit train` take this source by themselves for such a chain.

    Raises:
      ValueError: at construction, chunk < 1; when called, a batch without leaves or with several batch sizes, a loss
        that is no scalar; in an update, a chain that does not begin with an aggregator.

    Example:
      >>> fn = example_gradients(lambda x, batch: jnp.mean((x - batch) ** 2) / 2, chunk=2)
      >>> value, gradients = fn(jnp.array(1.0), jnp.array([0.0, 1.0, 3.0, 4.0]))
      >>> float(value), gradients.stacked().tolist()
      (1.75, [1.0, 0.0, -2.0, -3.0])
      >>> largest = lambda most, g, numbers: jnp.maximum(most, jnp.abs(g).max())
      >>> float(gradients.fold(largest, jnp.zeros(())))
      3.0

    Reference: Abadi et al. Deep Learning with Differential Privacy. 2016, arXiv 1607.00133, Algorithm 1 (which clips
    them); in JAX the gradients of all examples at once are `jax.vmap(jax.grad(loss), in_axes=(None, 0))`.
    """
    checks.axis_name("axis_name", axis_name)
    checks.switch(has_aux=has_aux)
    checks.function("loss_fn", loss_fn)
    chunk = checks.integer("chunk", chunk, 1)

    def fn(params: Any, batch: Any, *args: Any, **kwargs: Any) -> tuple[Any, LazyGradients]:
        own = own_copy(params, axis_name)
        sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(batch)}
        ((size,),) = sizes if len(sizes) == 1 and () not in sizes else ((0,),)
        c = at_most(chunk, size) if size else 1
        # Refuses what is no batch of examples.
        parts = split(batch, size // c or 1, "example_gradients")

        def one(params: Any, example: Any) -> tuple[jax.Array, Any]:
            out = loss_fn(params, jax.tree.map(lambda x: x[None], example), *args, **kwargs)
            loss, aux = out if has_aux else (out, None)
            loss = jnp.asarray(loss)
            if loss.shape != ():
                raise ValueError(
                    f"example_gradients: loss_fn must return a scalar for a batch of one example, got shape "
                    f"{loss.shape}; return its mean, or use gk.gradients.task_gradients for a vector of losses"
                )
            return loss, aux

        of_part = jax.vmap(one, in_axes=(None, 0))
        losses, aux = jax.lax.map(lambda part: of_part(own, part), parts)
        # From (chunk, its example) to the numbers of the examples.
        losses, aux = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(size, *x.shape[2:]), (losses, aux))

        def rows(i: Any) -> Any:
            part = jax.tree.map(lambda x: x[i], parts)
            return jax.vmap(jax.grad(lambda p, x: one(p, x)[0]), in_axes=(None, 0))(own, part)

        def weighted(weights: jax.Array) -> Any:
            def of_chunk(part_and_weights: Any) -> tuple[Any, None]:
                part, w = part_and_weights
                return jax.grad(lambda p: jnp.dot(w, of_part(p, part)[0].astype(w.dtype)))(own), None

            return accumulate(of_chunk, (parts, weights.reshape(c, size // c).swapaxes(0, 1)))[0]

        value = mean_over(jnp.mean(losses), axis_name)
        gradients = LazyGradients(losses, params, c, rows, weighted)
        return ((value, aux) if has_aux else value), gradients

    return fn


register(
    example_gradients,
    form="source",
    paper=PAPER,
    notes="for a chain whose first link is an aggregator; never batch x parameters in memory",
)
