"""Scoring, on numbers made by hand."""

import numpy as np
import pytest

from gradkit.training import scoring

INF = np.inf


def test_the_first_evaluation_at_or_below_the_target_counts_and_a_miss_is_infinite():
    curves = np.array([[[4.0, 1.0, 0.5], [4.0, 2.0, 1.1]], [[np.nan, np.nan, 0.9], [0.2, 5.0, np.inf]]])
    found = scoring.steps_or_infinity(curves, np.array([10, 20, 30]), 1.0)
    assert found.tolist() == [[20, INF], [30, 10]]


def test_the_best_point_has_the_best_median_not_the_best_run():
    steps = np.array([[5.0, 90.0, 95.0], [60.0, 61.0, 99.0], [INF, INF, 1.0]])
    assert scoring.best_point(steps, np.zeros((3, 3))) == 1


def test_ties_go_to_fewer_misses_and_all_misses_to_the_best_final_metric():
    assert scoring.best_point(np.array([[10, 10, INF], [10, 10, 40]]), np.zeros((2, 3))) == 1
    missed = np.full((3, 3), INF)
    finals = np.array([[3.0, 3.0, 3.0], [1.0, np.nan, np.nan], [2.0, 2.0, 9.0]])
    assert scoring.best_point(missed, finals) == 2  # two runs of the middle row diverged


def test_robustness_counts_medians_within_twice_the_best():
    steps = np.array([[INF, INF, 2.0], [40.0, 41.0, 90.0], [20.0, 20.0, 21.0], [40.0, 40.0, 39.0]])
    assert scoring.robustness(steps) == 2
    assert scoring.robustness(np.full((2, 3), INF)) == 0


def test_methods_are_told_apart_by_ratio_or_by_all_seeds_agreeing():
    best = np.array([50.0, 55.0, 60.0, 50.0, 55.0])
    assert scoring.separated(best, 1.5 * best, 1.3)
    assert scoring.separated(best, best + 5, 1.3)  # five seeds of five
    assert not scoring.separated(best, best + np.array([5, 5, 5, 5, -5]), 1.3)
    assert not scoring.separated(best[:4], best[:4] + 5, 1.3)  # four agreeing seeds are one chance in 16
    assert scoring.separated(best, np.full(5, INF), 1.3)
    assert not scoring.separated(np.full(5, INF), np.full(5, INF), 1.3)


def test_a_profile_is_the_share_within_tau_and_its_area_the_mean_share():
    profile = scoring.performance_profile({"a": [10.0, 30.0, INF], "b": [20.0, 10.0, INF]}, points=11)
    assert profile.share["a"][0] == profile.share["b"][0] == pytest.approx(1 / 3)
    # a: 1/3 from 1 on and 2/3 from 3 on; b: 2/3 from 2 on. The third workload counts against both.
    # The area is that of the steps, however coarse the curve is drawn.
    assert profile.area["a"] == pytest.approx((1 * 2 / 3 + 2 * 1 / 3) / 3, rel=1e-12)
    assert profile.area["b"] == pytest.approx((2 * 2 / 3 + 1 * 1 / 3) / 3, rel=1e-12)
    with pytest.raises(ValueError, match=r"largest must be in \(1, inf\)"):
        scoring.performance_profile({"a": [1.0]}, largest=1.0)
