"""Batches without replacement: every example once per epoch, in an order of its own."""

import jax
import numpy as np
import pytest

from gradkit.batches import reshuffle


def test_an_epoch_has_every_example_once_and_another_order_than_the_next() -> None:
    batch = jax.jit(reshuffle(12, 3, key=5))
    epochs = [np.concatenate([batch(step) for step in range(4 * e, 4 * e + 4)]) for e in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(12))
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    np.testing.assert_array_equal(batch(6), reshuffle(12, 3, key=jax.random.key(5))(6))


def test_what_is_left_of_an_epoch_is_not_always_the_same() -> None:
    """7 examples in batches of 3: one is left out per epoch, each of them now and then."""
    batch = jax.vmap(reshuffle(7, 3))(np.arange(2 * 60)).reshape(60, 6)
    left = [({*range(7)} - {*map(int, row)}).pop() for row in np.asarray(batch)]
    # One of seven is never left out in 60 epochs with a probability below 7 (6/7)^60 < 1e-3; the key is fixed.
    assert {*left} == {*range(7)}


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size must be in \[1, num_examples = 4\], got 5"):
        reshuffle(4, 5)
