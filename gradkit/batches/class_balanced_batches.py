"""Batches with as many examples of every class, without replacement within a class."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.keys import as_key, check_key
from gradkit.types import Key

PAPER = Paper(
    "A Theoretical Analysis of the Learning Dynamics under Class Imbalance",
    "Francazi, Baity-Jesi, Lucchi",
    2023,
    "2207.00391",
)


def class_balanced_batches(labels: Any, class_batch_size: int, *, key: Key = 0) -> Callable[[Any], jax.Array]:
    """The examples of every step, as many of each class: classes of few examples are shuffled anew and used again.

        of class c with n_c examples, step t takes entries t b, ..., t b + b - 1 of the sequence
        permutation 0 of its examples, permutation 1, ...,    b = class_batch_size

    A function of the step alone: a training goes on from any step with the same batches.

    Args:
      labels: the class of every example, integers (examples,), known when this is built.
      class_batch_size: b >= 1, examples of each class; a batch has b times the number of classes that occur.
      key: a random key or an integer. Default 0.

    Returns:
      step -> indices of shape (classes b,), int32, class after class in ascending order, under jit as well. No state.

    Raises:
      ValueError: an argument outside its range; labels that are no integers, or none.

    Example:
      >>> batch = class_balanced_batches(np.array([0, 0, 0, 1]), 2)
      >>> int(batch(0)[2]), int(batch(0)[3])  # the one example of class 1, twice
      (3, 3)

    Reference: Francazi, Baity-Jesi, Lucchi. A Theoretical Analysis of the Learning Dynamics under Class Imbalance.
    2023, arXiv 2207.00391 (PCNSGD+O).
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not labels.size or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be integers of shape (examples,), at least one, got shape {labels.shape} and {labels.dtype}; "
            "write np.argmax(one_hot, axis=1)"
        )
    b = checks.integer("class_batch_size", class_batch_size, 1)
    check_key(key)
    typed = as_key(key)
    members = [np.flatnonzero(labels == c).astype(np.int32) for c in np.unique(labels)]

    def of_class(number: int, own: np.ndarray, step: Any) -> jax.Array:
        n = len(own)
        # Full permutations before this step, without a product that overflows for late steps.
        first = (step // n) * b + (step % n) * b // n
        start = (step % n) * b % n
        epochs = [first + i for i in range(-(-b // n) + 1)]
        base = jax.random.fold_in(typed, number)
        rows = [jax.random.permutation(jax.random.fold_in(base, e), jnp.asarray(own)) for e in epochs]
        return jax.lax.dynamic_slice_in_dim(jnp.concatenate(rows), start, b)

    def indices(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.int32)
        return jnp.concatenate([of_class(c, own, step) for c, own in enumerate(members)])

    return indices


register(
    class_balanced_batches,
    form="function",
    paper=PAPER,
    example={"labels": np.array([0, 0, 1], np.int32), "class_batch_size": 2},
)
