"""The order in which examples are visited, as a function of the step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.batches.reshuffle import reshuffle
from gradkit.catalogue import Paper, register
from gradkit.engine.keys import as_key, check_key
from gradkit.types import Key

PAPER = Paper(
    "On the Training Instability of Shuffling SGD with Batch Normalization", "Wu, Yun, Sra", 2023, "2302.12444"
)
SCHEMES = ("random_reshuffle", "single_shuffle", "flip_flop", "with_replacement")


def batch_order(
    num_examples: int, batch_size: int, *, scheme: str = "random_reshuffle", key: Key = 0
) -> Callable[[Any], jax.Array]:
    """The examples of every step, in one of four orders; any step at once, without a state.

        random_reshuffle    a permutation is drawn anew for every epoch: `reshuffle`
        single_shuffle      the permutation of the first epoch, in all of them
        flip_flop           drawn anew for every second epoch, and gone through backwards in the one behind it
        with_replacement    every example of every step is drawn from all

        epoch e = step // n,    n = floor(examples / batch size); what is left behind the last batch is not used in e

    With batch normalization a single shuffle trains on another problem: the data set normalized batch by batch, with
    that one partition; a linear model goes to its least squares solution. Random reshuffling is an average over
    partitions.

    Args:
      num_examples: how many there are, >= 1.
      batch_size: in [1, num_examples].
      scheme: as above. Default "random_reshuffle".
      key: a random key or an integer. The same key is the same order on every host; each takes its part of a batch.
        Default 0.

    Returns:
      step -> indices (batch_size,) int32, under jit as well.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> batch = batch_order(4, 2, scheme="single_shuffle")
      >>> batch(0).tolist() == batch(2).tolist(), sorted(batch(0).tolist() + batch(1).tolist())
      (True, [0, 1, 2, 3])

    Reference: Wu, Yun, Sra. On the Training Instability of Shuffling SGD with Batch Normalization. 2023, arXiv
    2302.12444. Flip-flop: Rajput, Lee, Papailiopoulos 2022.
    """
    checks.choice("scheme", scheme, SCHEMES)
    shuffled = reshuffle(num_examples, batch_size, key=key)
    if scheme == "random_reshuffle":
        return shuffled
    check_key(key)
    typed, n = as_key(key), num_examples // batch_size
    if scheme == "single_shuffle":
        return lambda step: shuffled(step % n)

    def flipped(step: Any) -> jax.Array:
        epoch, place = step // n, step % n
        order = jax.random.permutation(jax.random.fold_in(typed, epoch // 2), num_examples).astype(jnp.int32)
        # Backwards: the same batches, last one first, and each from its end.
        start = jnp.where(epoch % 2 == 0, place, n - 1 - place) * batch_size
        batch = jax.lax.dynamic_slice_in_dim(order, start, batch_size)
        return jnp.where(epoch % 2 == 0, batch, batch[::-1])

    def drawn(step: Any) -> jax.Array:
        return jax.random.randint(jax.random.fold_in(typed, step), (batch_size,), 0, num_examples, jnp.int32)

    return flipped if scheme == "flip_flop" else drawn


register(batch_order, form="function", paper=PAPER, example={"num_examples": 6, "batch_size": 2})
