"""Draws without replacement by scores (Kirsch et al., 2021)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.batches import gumbel_top_k, stochastic_acquisition

SCORES = np.array([0.5, 2.0, 0.0, 1.0, 1.5])
DRAWS = 40_000


def frequencies(draw) -> np.ndarray:
    """How often (i, j) is drawn, in this order."""
    pairs = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), DRAWS)))
    table = np.zeros((5, 5))
    np.add.at(table, (pairs[:, 0], pairs[:, 1]), 1 / DRAWS)
    return table


@pytest.mark.parametrize(
    ("kind", "coldness", "weights"),
    [
        ("power", 1.0, SCORES),
        ("power", 2.0, SCORES**2),
        ("softmax", 0.5, np.exp(0.5 * SCORES)),
        ("softrank", 1.0, 1 / np.array([4.0, 1.0, 5.0, 3.0, 2.0])),
    ],
)
def test_pairs_have_the_probabilities_of_draws_without_replacement(kind: str, coldness: float, weights) -> None:
    got = frequencies(lambda key: stochastic_acquisition(key, jnp.asarray(SCORES), 2, kind=kind, coldness=coldness))
    p = weights / weights.sum()
    want = p[:, None] * p[None] / (1 - p[:, None])
    np.fill_diagonal(want, 0)
    # Five standard deviations of a frequency.
    np.testing.assert_allclose(got, want, atol=5 * np.sqrt(want.max() / DRAWS))
    assert (np.diagonal(got) == 0).all()


def test_the_ends_of_coldness() -> None:
    """Infinite: the best ones; none: uniform, where a score of 0 is still drawn last by its power."""
    for kind in ("power", "softmax", "softrank"):
        got = stochastic_acquisition(1, SCORES.astype(np.float32), 3, kind=kind, coldness=np.inf)
        assert got.tolist() == [1, 4, 3]
    got = frequencies(lambda key: stochastic_acquisition(key, jnp.asarray(SCORES), 2, kind="softmax", coldness=0.0))
    np.testing.assert_allclose(got, (1 - np.eye(5)) / 20, atol=5 * np.sqrt(1 / 20 / DRAWS))
    last = [stochastic_acquisition(k, SCORES.astype(np.float32), 5, coldness=0.0).tolist()[-1] for k in range(6)]
    assert last == [2] * 6


def test_members_of_an_axis_draw_from_all(x64: None) -> None:
    """The frequencies over three members with one key are those of the scores of all."""
    logits = np.log(np.array([[1.0, 2.0], [3.0, 1.0], [1.0, 2.0]]))

    def first(key):
        drawn = jax.vmap(lambda x: gumbel_top_k(key, x, 3, axis_name="i"), axis_name="i")(logits)
        return drawn

    drawn = np.asarray(jax.jit(jax.vmap(first))(jax.random.split(jax.random.key(1), DRAWS)))
    assert (drawn == drawn[:, :1]).all()
    assert all(len(set(row)) == 3 for row in drawn[:50, 0])
    found = np.bincount(drawn[:, 0, 0], minlength=6) / DRAWS
    np.testing.assert_allclose(found, np.exp(logits).reshape(-1) / 10, atol=5 * np.sqrt(0.3 / DRAWS))
    for kind in ("softmax", "softrank"):
        cold = {"kind": kind, "coldness": np.inf, "axis_name": "i"}
        got = jax.vmap(lambda x, c=cold: stochastic_acquisition(0, x, 3, **c), axis_name="i")(
            np.array([[1.0, 9.0], [3.0, 2.0], [0.5, 7.0]])
        )
        assert got.tolist() == [[1, 5, 2]] * 3


def test_scores_are_not_changed_and_bad_input_is_refused() -> None:
    scores = SCORES.astype(np.float32)
    stochastic_acquisition(0, scores, 2, coldness=4.0)
    np.testing.assert_array_equal(scores, SCORES.astype(np.float32))
    with pytest.raises(ValueError, match="scores must be >= 0 for kind='power'"):
        stochastic_acquisition(0, scores - 1, 2)
    for name, bad in (("k", 6), ("kind", "best"), ("coldness", -1.0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            stochastic_acquisition(**{"key": 0, "scores": scores, "k": 2, name: bad})
