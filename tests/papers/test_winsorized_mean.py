"""Means that a few examples do not decide (Chatterjee, Zielinski, 2022)."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import mstats

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def aggregate(tx, g):
    """The update of one stack."""
    return tx.update(g, tx.init(g[0]))[0]


def test_winsorized_mean_is_that_of_statistics(x64: None) -> None:
    """Per coordinate, as SciPy winsorizes; a fraction below 1 / m is the mean."""
    g = normal(0, 10, 3, 2)
    for fraction in (0.1, 0.2, 0.29):
        want = np.asarray(mstats.winsorize(np.asarray(g), (fraction, fraction), axis=0)).mean(0)
        assert_equal(aggregate(gk.aggregation.winsorized_mean(fraction=fraction), g), want)
    assert_equal(aggregate(gk.aggregation.winsorized_mean(fraction=0.05), g), np.asarray(g).mean(0))
    # 0.29 * 100 is 28.999999999999996; 29 values at each end are meant.
    many = normal(1, 100, 2)
    want = np.clip(many, np.sort(many, 0)[29], np.sort(many, 0)[70]).mean(0)
    assert_equal(aggregate(gk.aggregation.winsorized_mean(fraction=0.29), many), want)


def test_what_one_example_alone_has_is_suppressed(x64: None) -> None:
    """A coordinate that is 0 but for one example, which would move the mean by its size over m, is not moved."""
    g = jnp.zeros((10, 2)).at[3, 0].set(1e6).at[:, 1].set(1.0)
    for tx in (gk.aggregation.winsorized_mean(fraction=0.1), gk.aggregation.median_of_means(groups=5)):
        assert_equal(aggregate(tx, g), jnp.array([0.0, 1.0]))


def test_median_of_means(x64: None) -> None:
    """Three groups: the middle of their means. One group is the mean, m groups are the median, also of an even m."""
    g = normal(0, 6, 4)
    groups = np.asarray(g).reshape(3, 2, 4).mean(1)
    assert_equal(aggregate(gk.aggregation.median_of_means(), g), np.median(groups, axis=0))
    assert_equal(aggregate(gk.aggregation.median_of_means(groups=1), g), np.asarray(g).mean(0))
    for groups in (6, 100):
        assert_equal(aggregate(gk.aggregation.median_of_means(groups=groups), g), np.median(np.asarray(g), axis=0))
    # Groups of 2, 2 and 1.
    five = np.asarray(g[:5])
    want = np.median([five[:2].mean(0), five[2:4].mean(0), five[4]], axis=0)
    assert_equal(aggregate(gk.aggregation.median_of_means(), g[:5]), want)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="fraction must be"):
        gk.aggregation.winsorized_mean(fraction=0.5)
    with pytest.raises(ValueError, match="groups must be an integer >= 1"):
        gk.aggregation.median_of_means(groups=0)
