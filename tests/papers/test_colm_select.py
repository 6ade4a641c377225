"""Mini-batch coresets and facility location (Nguyen et al., 2024)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.batches import ColmState, colm_select, facility_location, init_colm, similarity_matrix, spsa_features
from gradkit.batches.colm_select import quotas
from tests.papers.replay import assert_equal, normal


def value(s: np.ndarray, chosen: list) -> float:
    return float(s[:, list(chosen)].max(1).sum())


@pytest.mark.parametrize("metric", ["l1", "l2", "cosine"])
def test_greedy_is_near_the_best_of_all_subsets(metric: str, x64: None) -> None:
    """At least 1 - 1/e of it, for budgets up to 4 of 9; each choice is the best next one."""
    select = jax.jit(facility_location, static_argnums=1)
    for seed in range(3):
        x = normal(seed, 9, 3)
        s = np.asarray(similarity_matrix(x, metric=metric))
        gaps = np.asarray(x)[:, None] - np.asarray(x)[None]
        cosines = np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True)
        D = {"l1": np.abs(gaps).sum(-1), "l2": np.linalg.norm(gaps, axis=-1), "cosine": 1 - cosines @ cosines.T}[metric]
        np.testing.assert_allclose(s, D.max() - D, atol=1e-12)
        i, w = (np.asarray(v) for v in select(jnp.asarray(s), 4))
        best = max(value(s, subset) for subset in itertools.combinations(range(9), 4))
        assert value(s, i) >= (1 - 1 / np.e) * best
        for t in range(4):
            others = [value(s, [*i[:t], j]) for j in range(9) if j not in i[:t]]
            np.testing.assert_allclose(value(s, i[: t + 1]), max(others), rtol=1e-12)
        nearest = [list(i).index(p) if p in i else int(s[p, i].argmax()) for p in range(9)]
        np.testing.assert_array_equal(w, np.bincount(nearest, minlength=4))


def test_of_copies_one_is_taken_with_the_weight_of_all() -> None:
    x = jnp.repeat(jnp.array([[0.0, 0.0], [5.0, 1.0], [-4.0, 7.0]]), jnp.array([4, 1, 2]), axis=0)
    i, w = facility_location(similarity_matrix(x), 3)
    weights = {tuple(x[j].tolist()): float(k) for j, k in zip(i, w, strict=True)}
    assert weights == {(0.0, 0.0): 4.0, (5.0, 1.0): 1.0, (-4.0, 7.0): 2.0}
    i, w = facility_location(similarity_matrix(x), 7)
    assert sorted(i.tolist()) == list(range(7)) and w.tolist() == [1.0] * 7


def test_negative_similarities_are_as_good_as_shifted_ones(x64: None) -> None:
    s = normal(0, 6, 6)
    for a, b in zip(facility_location(s, 3), facility_location(s + 10, 3), strict=True):
        np.testing.assert_array_equal(a, b)


def selected(state: ColmState, reps: jax.Array, sources: list, budget: int, zo_dim: int) -> tuple:
    """The sheet's steps in NumPy, source after source, with facility location by itself."""
    t, own = int(state.count) + 1, np.asarray(sources)
    m = 0.9 * np.asarray(state.mu) + 0.1 * np.asarray(reps)
    v = 0.999 * np.asarray(state.nu) + 0.001 * np.asarray(reps) ** 2
    h = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    kept = np.flatnonzero(own == 2)
    chosen = {int(i): 1.0 for i in kept}
    counts = np.array([(own == 0).sum(), (own == 1).sum()])
    for source, quota in enumerate(quotas(counts, budget - len(kept))):
        rows = np.flatnonzero(own == source)
        columns = np.argsort(-np.abs(h[rows].mean(0)))[:zo_dim]
        i, w = facility_location(similarity_matrix(jnp.asarray(h[rows][:, columns])), int(quota))
        chosen |= {int(rows[a]): float(b) for a, b in zip(i, w, strict=True)}
    at = sorted(chosen)
    return chosen, m[at].mean(0), v[at].mean(0)


def test_a_selection_over_sources_and_the_moments_it_leaves(x64: None) -> None:
    sources = [0, 1, 0, 0, 2, 1, 0, 1, 0, 0, 2, 0]
    state = init_colm(5)
    for t in range(2):
        reps = normal(t, 12, 5)
        want, mu, nu = selected(state, reps, sources, 7, 3)
        i, w, state = colm_select(reps, sources, 7, state, keep_sources=[2], zo_dim=3)
        assert {int(a): float(b) for a, b in zip(i, w, strict=True)} == want
        assert sum(want.values()) == 12
        assert_equal((state.mu, state.nu), (mu, nu), rtol=1e-10)
    assert int(state.count) == 2


def test_a_budget_is_split_by_sizes() -> None:
    assert quotas([50, 30, 20], 10).tolist() == [5, 3, 2]
    assert quotas([7, 2, 1], 5).tolist() == [4, 1, 0]
    assert quotas([0, 3], 2).tolist() == [0, 2]


def test_features_are_one_direction_times_the_slope_of_each_loss(x64: None) -> None:
    A, w = normal(0, 6, 4), {"v": normal(1, 4)}
    r = np.asarray(spsa_features(lambda w: A @ w["v"], w, 0))
    z = r[0] / (r[0] @ r[0]) * (r[0] @ np.asarray(r[0]))
    c = r[:, 0] / r[0, 0]
    np.testing.assert_allclose(r, c[:, None] * z[None], rtol=1e-6)
    slopes = np.asarray(A) @ r[0]
    np.testing.assert_allclose(c, slopes / slopes[0], rtol=1e-6)


def test_examples_with_nan_are_refused_and_never_chosen_where_traced() -> None:
    x = np.array(normal(0, 6, 2), np.float32)
    bad = x.copy()
    bad[[0, 5], 1] = np.nan
    similarity = np.array(similarity_matrix(x))
    similarity[2, 3] = np.nan
    with pytest.raises(ValueError, match="similarity_matrix: features must be numbers; leave rows with NaN out"):
        similarity_matrix(bad)
    with pytest.raises(ValueError, match="facility_location: similarity must be numbers; leave examples with NaN out"):
        facility_location(similarity, 2)
    with pytest.raises(ValueError, match="colm_select: reps must be numbers"):
        colm_select(bad, np.zeros(6, int), 2, init_colm(2))
    i, w = jax.jit(lambda x: facility_location(similarity_matrix(x), 5))(bad)
    want = facility_location(similarity_matrix(x[1:5]), 4)
    assert np.asarray(i).tolist() == [*(1 + np.asarray(want[0])).tolist(), -1]
    assert np.asarray(w).tolist() == [*np.asarray(want[1]).tolist(), 0]


def test_bad_input() -> None:
    r, state = jnp.ones((4, 2)), init_colm(2)
    with pytest.raises(ValueError, match="budget must be at least the 3 examples of keep_sources, got 2"):
        colm_select(r, [1, 1, 1, 0], 2, state, keep_sources=[1])
    with pytest.raises(ValueError, match="must fit"):
        colm_select(r, [1, 1], 2, state)
    with pytest.raises(ValueError, match="state must be of 2 dimensions"):
        colm_select(r, [0, 0, 0, 0], 2, init_colm(3))
    with pytest.raises(ValueError, match="sources must be known"):
        jax.jit(lambda s: colm_select(r, s, 2, state))(jnp.zeros(4, jnp.int32))
    with pytest.raises(ValueError, match="similarity must be"):
        facility_location(r, 1)
    with pytest.raises(ValueError, match="budget must be"):
        facility_location(jnp.ones((3, 3)), 4)
    with pytest.raises(ValueError, match="losses_fn must give one loss per example"):
        spsa_features(lambda w: jnp.sum(w), jnp.ones(2), 0)
