"""Joint selection of examples (Evans et al., 2024)."""

import jax
import numpy as np
import pytest

from gradkit.batches import jest_select, learnability
from tests.papers.replay import normal


def test_greedy_chunks_gain_most(x64: None) -> None:
    """At temperature 0: each chunk has the examples with the largest gains of the joint score, by the full matrix."""
    learner, reference = normal(0, 20, 20), normal(1, 20, 20)
    S = np.asarray(learner - reference)
    got = jest_select(0, learner, reference, num_chunks=3, filter_ratio=0.7, temperature=0.0).tolist()
    assert len(got) == len(set(got)) == 6
    chosen: list[int] = []

    def joint(rows: list[int]) -> float:
        return S[np.ix_(rows, rows)].sum()

    for start in range(0, 6, 2):
        gains = {i: joint([*chosen, i]) - joint(chosen) for i in range(20) if i not in chosen}
        chosen += sorted(gains, key=lambda i: -gains[i])[:2]
        assert got[start : start + 2] == chosen[start:]


@pytest.mark.slow
def test_a_diagonal_score_is_independent_sampling() -> None:
    """The first draw has the probabilities exp(S_ii / temperature); with first="uniform" equal ones."""
    own = np.array([0.0, 1.0, 2.0, 0.5, -1.0], np.float32)
    draws = 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    for more, weights in (({"temperature": 2.0}, np.exp(own / 2)), ({"first": "uniform"}, np.ones(5))):
        one = lambda key, more=more: jest_select(  # noqa: E731
            key, np.diag(own), np.zeros((5, 5), np.float32), num_chunks=2, filter_ratio=0.6, **more
        )
        picked = np.asarray(jax.jit(jax.vmap(one))(keys))
        assert (picked[:, 0] != picked[:, 1]).all()
        p = weights / weights.sum()
        np.testing.assert_allclose(np.bincount(picked[:, 0], minlength=5) / draws, p, atol=5 * np.sqrt(0.25 / draws))


def test_sizes_and_scores(x64: None) -> None:
    """A size that floating point would round down; scores of one model alone; the losses are not changed."""
    learner, reference = np.asarray(normal(0, 100, 100)), np.asarray(normal(1, 100, 100))
    kept = learner.copy(), reference.copy()
    assert len(jest_select(0, learner, reference, num_chunks=4)) == 20
    np.testing.assert_array_equal(learnability(learner, reference, score="hard_learner"), learner)
    np.testing.assert_array_equal(learnability(learner, reference, score="easy_reference"), -reference)
    np.testing.assert_array_equal(learner, kept[0])
    np.testing.assert_array_equal(reference, kept[1])


def test_bad_input() -> None:
    x = np.ones((8, 8), np.float32)
    for given, message in (
        ({"num_chunks": 16}, "num_chunks must leave examples for every chunk"),
        ({"filter_ratio": 1.0}, "filter_ratio must be"),
        ({"reference": x[:4]}, "learner and reference must be losses of all pairs"),
        ({"learner": x * np.nan}, "learner must be numbers, not NaN"),
        ({"score": "hard"}, "score must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            jest_select(**{"key": 0, "learner": x, "reference": x, "num_chunks": 1, **given})
