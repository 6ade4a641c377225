"""One gradient per class of a minibatch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.gradients.task_gradients import task_gradients

PAPER = Paper(
    "A Theoretical Analysis of the Learning Dynamics under Class Imbalance",
    "Francazi, Baity-Jesi, Lucchi",
    2023,
    "2207.00391",
)


def per_class_gradients(
    loss_fn: Callable[..., Any], num_classes: int, *, chunk: int = 1, axis_name: Any = None
) -> Callable[..., tuple[Any, Any]]:
    """The part of a minibatch's loss and gradient that every class has.

        L_c = (1 / B) sum_i 1[y_i = c] l_i,    g_c = grad L_c;    sum_c g_c is the gradient of the mean loss

    Args:
      loss_fn: (params, *args) -> (l, y): the losses of all B examples, (B,), and their classes, integers (B,).
      num_classes: K >= 1; an example of another class counts for none.
      chunk: how many gradients are held at the same time, >= 1. Default 1.
      axis_name: axis of `vmap` or `shard_map` whose members hold parts of the batch. Default None.

    Returns:
      fn(params, *args, **kwargs) -> (L, gradients): a vector (K,), and a `gk.gradients.LazyGradients`, which the update
      of a chain takes whose first link is an aggregator, such as `gk.aggregation.per_class_normalized`. One forward
      pass, and a backward pass per class where gradients are asked for. No state. Collectives: with `axis_name`, those
      of `task_gradients`.

    Raises:
      ValueError: an argument outside its range; when called, losses and classes that are not of one shape (B,).

    Example:
      >>> fn = per_class_gradients(lambda x, y: (x * jnp.arange(1.0, 4.0), y), 2)
      >>> losses, gradients = fn(jnp.array(1.0), jnp.array([0, 1, 1]))
      >>> gradients.stacked().round(4).tolist()  # 1 / 3 and (2 + 3) / 3
      [0.33329999446868896, 1.666700005531311]

    Reference: Francazi, Baity-Jesi, Lucchi. A Theoretical Analysis of the Learning Dynamics under Class Imbalance.
    2023, arXiv 2207.00391.
    """
    checks.function("loss_fn", loss_fn)
    num_classes = checks.integer("num_classes", num_classes, 1)

    def by_class(params: Any, *args: Any, **kwargs: Any) -> jax.Array:
        out = loss_fn(params, *args, **kwargs)
        losses, classes = (jnp.asarray(x) for x in out) if isinstance(out, tuple | list) else (jnp.asarray(out), None)
        if classes is None or losses.ndim != 1 or losses.shape != classes.shape or not len(losses):
            found = losses.shape, None if classes is None else classes.shape
            raise ValueError(
                "per_class_gradients: loss_fn must return (losses, classes) of one shape (examples,), got the shapes "
                f"{found[0]} and {found[1]}; write (losses_of_examples, labels)"
            )
        return jax.ops.segment_sum(losses, classes, num_classes) / len(losses)

    return task_gradients(by_class, chunk=chunk, axis_name=axis_name)


register(
    per_class_gradients,
    form="program",
    paper=PAPER,
    example={"num_classes": 2},
    notes="for a chain whose first link is an aggregator",
)
