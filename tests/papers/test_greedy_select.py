"""The loop of greedy selections."""

import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.batches import greedy_select


def test_coverage_of_sets() -> None:
    """The largest set, then what adds most; ties to the lowest index; nothing twice, and -1 when all are taken."""
    sets = jnp.array([[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]], bool)
    free = jnp.array([True, True, True, False])
    gain = lambda covered: jnp.sum(sets & ~covered[None], axis=1).astype(jnp.float32)  # noqa: E731
    chosen, covered = greedy_select(gain, lambda c, j: c | sets[j], jnp.zeros(5, bool), 4, candidates=free)
    assert chosen.tolist() == [1, 0, 2, -1]
    assert covered.tolist() == [True, True, True, True, False]


def test_bad_input() -> None:
    x = jnp.ones(3)
    for bad, message in (
        ({"candidates": x}, "candidates must be a mask"),
        ({"k": 4}, "k must be an integer >= 1 and <= 3"),
        ({"gain_fn": lambda s: s[:2]}, "gain_fn must give one gain per candidate"),
    ):
        given = {"gain_fn": lambda s: s, "add_fn": lambda s, j: s, "state": x, "k": 2, "candidates": np.ones(3, bool)}
        with pytest.raises(ValueError, match=message):
            greedy_select(**{**given, **bad})
