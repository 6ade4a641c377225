"""As many examples of every class, without replacement within a class."""

from collections import Counter

import jax
import numpy as np
import pytest

import gradkit as gk

LABELS = np.array([0] * 7 + [3] * 2 + [5] * 3)


def test_every_batch_is_balanced_and_every_class_is_used_evenly() -> None:
    batch = jax.jit(gk.batches.class_balanced_batches(LABELS, 3, key=1))
    drawn = np.stack([np.asarray(batch(np.int32(step))) for step in range(14)])
    np.testing.assert_array_equal(LABELS[drawn], np.tile(np.repeat([0, 3, 5], 3), (14, 1)))
    # 42 draws of each class: 6, 21 and 14 of its permutations, each example as often.
    counts = Counter(drawn.ravel().tolist())
    assert [counts[i] for i in range(12)] == [6] * 7 + [21] * 2 + [14] * 3
    sequence = drawn[:, :3].ravel()
    for epoch in range(6):
        assert sorted(sequence[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert len({tuple(sequence[7 * e : 7 * e + 7]) for e in range(6)}) == 6  # shuffled anew


def test_what_is_no_labels_is_refused() -> None:
    for bad in (np.ones(3), np.zeros((2, 2), int), np.zeros(0, int)):
        with pytest.raises(ValueError, match="labels must be integers"):
            gk.batches.class_balanced_batches(bad, 1)
