"""The score of AlgoPerf (Dahl et al., 2023)."""

import numpy as np
import pytest

from gradkit.diagnostics import algoperf_score, performance_profile, time_to_result

INF = np.inf


def test_time_of_the_first_evaluation_at_the_target() -> None:
    """Not of the best, nor of the last; equality counts, NaN does not."""
    curves = [[5.0, 2.0, 3.0, 1.0], [5.0, np.nan, 4.0, 3.0], [2.0, 9.0, 9.0, 9.0]]
    np.testing.assert_array_equal(time_to_result([10, 20, 30, 40], curves, 2.0), [20, INF, 10])
    np.testing.assert_array_equal(time_to_result([10, 20, 30, 40], curves, 4.5, "max"), [10, 10, 20])
    own = [[1, 2, 3, 4], [1, 2, 3, 4], [7, 8, 9, 10]]
    np.testing.assert_array_equal(time_to_result(own, curves, [3.0, 4.0, 0.0]), [2, 3, INF])


def test_the_median_over_studies_of_the_best_trial() -> None:
    """Of three studies two must have reached the target; one trial of each is enough."""
    times = np.full((2, 1, 3, 5), INF)
    times[0, 0, 0, 3], times[0, 0, 2, 1], times[0, 0, 2, 4] = 40.0, 50.0, 20.0
    times[1, 0, 0] = [1, 1, 1, 1, 1]
    # Studies of the first: 40, inf, 20, the median 40. Of the second: 1, inf, inf.
    np.testing.assert_allclose(algoperf_score(times), [1.0, 0.0])
    times[1, 0, 1, 0] = 30.0
    np.testing.assert_allclose(algoperf_score(times), [(4 - 4 / 3) / 3, 1.0])
    # An even number of studies: infinite where one of the two in the middle is.
    np.testing.assert_allclose(algoperf_score(times[:, :, :2]), [0.0, 1.0])


def test_extremes_and_units() -> None:
    """1 for the fastest everywhere, 0 where all are missed, the same in any unit of each workload."""
    rng = np.random.default_rng(0)
    times = rng.uniform(1, 6, (4, 7))
    times[2] = INF
    times[1] = 0.5
    scores = algoperf_score(times)
    assert scores[1] == 1.0 and scores[2] == 0.0 and (scores[[0, 3]] < 1).all()
    np.testing.assert_allclose(algoperf_score(times * rng.uniform(0.1, 9, 7)), scores, rtol=1e-13)
    # A workload that nobody solves counts among all.
    more = np.concatenate([times, np.full((4, 1), INF)], axis=1)
    np.testing.assert_allclose(algoperf_score(more), scores * 7 / 8, rtol=1e-13)
    # Above four times the fastest is missed, exactly four times counts for nothing but is in the profile.
    found = performance_profile([[1.0, 1.0], [4.0, 4.1]], [1.0, 4.0, 100.0])
    np.testing.assert_array_equal(found, [[1, 1, 1], [0, 0.5, 0.5]])


def test_the_integral_is_exact_and_trapezoids_are_not() -> None:
    """By hand: r = 1.5 on one of two workloads, 2 on the other; trapezoids of 100 points are beside it by up to 0.005
    per workload, as in the official code, and reach it with more points."""
    times = np.array([[1.0, 1.0], [1.5, 2.0]])
    exact = algoperf_score(times)
    np.testing.assert_allclose(exact, [1.0, (2.5 / 3 + 2 / 3) / 2])
    rng = np.random.default_rng(1)
    times = rng.uniform(1, 3, (5, 3))
    exact, rough = algoperf_score(times), algoperf_score(times, exact=False)
    fine = algoperf_score(times, exact=False, num_points=100_001)
    np.testing.assert_allclose(fine, exact, atol=1e-5)
    assert 1e-5 < np.abs(rough - exact).max() <= 0.5 / 99 + 1e-12
    profile = performance_profile(times, np.linspace(1, 4, 100))
    np.testing.assert_allclose(rough, np.trapezoid(profile, np.linspace(1, 4, 100), axis=1) / 3, rtol=1e-13)


def test_variants_and_their_bases() -> None:
    """A base counts only where its variant was reached too, and the other way; too slow is missed as well."""
    times = np.array([[1.0, 2.0, 1.0], [1.0, INF, 1.0], [1.0, 9.0, 3.0]])
    scores = algoperf_score(times, held_out=[(0, 1)])
    # The second and third lose the base and the variant.
    np.testing.assert_allclose(scores, [1.0, 1 / 3, (1 / 3) / 3])
    np.testing.assert_allclose(algoperf_score(times, held_out=[(0, 1)], workloads=[0, 2]), [1.0, 0.5, 1 / 6])
    np.testing.assert_allclose(algoperf_score(times, workloads=[0, 2]), [1.0, 1.0, (1 + 1 / 3) / 2])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="times must have shape"):
        algoperf_score(np.ones(3))
    with pytest.raises(ValueError, match="times must be > 0"):
        algoperf_score([[1.0, np.nan]])
    with pytest.raises(ValueError, match="r_max must be"):
        algoperf_score([[1.0]], r_max=1.0)
    with pytest.raises(ValueError, match="held_out must be pairs"):
        algoperf_score([[1.0]], held_out=[(0, 1)])
    with pytest.raises(ValueError, match="workloads must be different numbers"):
        algoperf_score([[1.0]], workloads=[1])
    with pytest.raises(ValueError, match="times must ascend"):
        time_to_result([2, 1], [1.0, 2.0], 1.0)
    with pytest.raises(ValueError, match="mode must be one of"):
        time_to_result([1, 2], [1.0, 2.0], 1.0, "least")
    with pytest.raises(ValueError, match="taus must be a vector"):
        performance_profile([[1.0]], 2.0)
