"""One gradient per task: the source of methods that weigh or project the gradients of several losses.

With losses L_1 ... L_m of tasks that share parameters:

    value = (L_1, ..., L_m)        gradients = (g_1, ..., g_m),  g_i the gradient of L_i

The forward pass is made once. Its transpose is applied to one unit vector after another where an aggregator asks for
gradients, and once to the weights (w_1, ..., w_m) where it asks for w_1 g_1 + ... + w_m g_m.
"""

from collections.abc import Callable
from typing import Any

import jax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.lazy_gradients import LazyGradients
from gradkit.gradients.replicas import mean_over, own_copy
from gradkit.gradients.several import of_vector, vector

PAPER = Paper("Jacobian Descent for Multi-Objective Optimization", "Quinton, Rey", 2024, "2406.16232")


def task_gradients(
    loss_fn: Callable[..., Any], *, chunk: int = 1, has_aux: bool = False, axis_name: Any = None
) -> Callable[..., tuple[Any, LazyGradients]]:
    """The losses of all tasks, and their gradients for an aggregator, computed as far as it asks for them.

    With losses L_1 ... L_m and gradients g_1 ... g_m, an aggregator such as `gk.aggregation.upgrad` asks for the inner
    products <g_i, g_j>, makes weights w_i of them, and asks for w_1 g_1 + ... + w_m g_m. Neither needs all gradients in
    memory.

    Args:
      loss_fn: (params, batch, *args) -> the losses of the tasks, a vector (m,) or a list of m scalars; or (losses,
        aux). The loss of one task is a vector (1,); a scalar is refused, as a stack may have been forgotten.
      chunk: how many gradients are held at the same time, >= 1; the largest divisor of m that is not above it is taken.
        Inner products take m (m / chunk + 1) / 2 backward passes, and 2 chunk words per parameter: with the default 1,
        2 gradients are in memory, whatever m is; with m, one pass per task is enough.
      has_aux: whether `loss_fn` returns (losses, aux). Default False.
      axis_name: axis of `vmap` or `shard_map` whose members hold parts of the batch; losses and gradients are then
        means over them, one all-reduce per gradient that is computed. Default None.

    Returns:
      fn(params, batch, *args, **kwargs) -> (losses, gradients), or ((losses, aux), gradients). The losses are a vector
      (m,), the gradients a `gk.gradients.LazyGradients`, which the update of a chain takes whose first link is an
      aggregator. `gradients.stacked()` is the tree with a leading axis of tasks.
      `gk.training.make_train_step`, `gk.training.sweep` and `gradkit train` take this source by themselves for such a
      chain; value and metric `loss` are then the sum of the losses.

    Raises:
      ValueError: at construction, chunk < 1; when called, a loss that is no vector; in an update, a chain that does
        not begin with an aggregator.

    Example:
      >>> import gradkit as gk, jax.numpy as jnp, optax
      >>> fn = task_gradients(lambda x: jnp.stack([jnp.sum(x**2), jnp.sum((x - 2) ** 2)]))
      >>> x = jnp.array([1.0, 3.0])
      >>> losses, gradients = fn(x)
      >>> losses.tolist(), gradients.stacked().tolist()
      ([10.0, 2.0], [[2.0, 6.0], [-2.0, 2.0]])
      >>> tx = optax.chain(gk.aggregation.upgrad(), gk.sgd(0.25))
      >>> updates, state = tx.update(gradients, tx.init(x), x)
      >>> [round(float(u), 3) for u in updates]  # nobody disagrees: a quarter of the mean
      [-0.0, -1.0]

    Reference: Quinton, Rey. Jacobian Descent for Multi-Objective Optimization. 2024, arXiv 2406.16232, whose library
    torchjd computes the Gramian without the Jacobian as well, layer by layer; here it is computed pair by pair, which
    asks nothing of the model.
    """
    checks.axis_name("axis_name", axis_name)
    checks.switch(has_aux=has_aux)
    checks.function("loss_fn", loss_fn)
    chunk = checks.integer("chunk", chunk, 1)

    def fn(params: Any, *args: Any, **kwargs: Any) -> tuple[Any, LazyGradients]:
        own = own_copy(params, axis_name)

        def losses_of(params: Any) -> tuple[jax.Array, Any]:
            out = loss_fn(params, *args, **kwargs)
            value, aux = out if has_aux else (out, None)
            return vector("task_gradients", value), aux

        found, pullback, aux = jax.vjp(losses_of, own, has_aux=True)
        losses = mean_over(found, axis_name)
        gradients = of_vector(losses, lambda w: pullback(w)[0], params, chunk, axis_name)
        return ((losses, aux) if has_aux else losses), gradients

    return fn


register(
    task_gradients,
    form="source",
    paper=PAPER,
    notes="for a chain whose first link is an aggregator; never tasks x parameters in memory for weights of a Gramian",
)
