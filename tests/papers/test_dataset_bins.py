"""Dataset quantization (Zhou et al., 2023)."""

import numpy as np
import pytest

from gradkit.batches import dataset_bins, sample_bins
from tests.papers.replay import normal


def oracle(x: np.ndarray, num_bins: int) -> np.ndarray:
    """The graph cut by the matrix of all similarities."""
    n = len(x)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    sim, bins, left = x @ x.T, np.full(n, -1), list(range(n))
    for b in range(num_bins):
        remaining, own = list(left), []
        for _ in range(n // num_bins + (b < n % num_bins)):
            gains = {i: sim[i, remaining].sum() - 2 * sim[i, own].sum() for i in left}
            own.append(max(gains, key=lambda i: gains[i]))
            left.remove(own[-1])
        bins[own] = b
    return bins


@pytest.mark.parametrize("num_bins", [1, 3, 4, 11])
def test_bins_are_the_partition_of_the_graph_cut(num_bins: int, x64: None) -> None:
    """Sizes that do not divide too; one bin, and bins of one example."""
    x = np.asarray(normal(0, 11, 4)) + 0.5
    got = np.asarray(dataset_bins(x, num_bins=num_bins))
    np.testing.assert_array_equal(got, oracle(x, num_bins))
    assert np.ptp(np.bincount(got, minlength=num_bins)) <= 1


def test_early_bins_are_typical_and_late_ones_are_not(x64: None) -> None:
    """A cloud with outliers on the other side: these are in bins that are filled when little of it is left."""
    rng = np.random.default_rng(0)
    cloud = np.array([3.0, 0, 0]) + 0.3 * rng.standard_normal((24, 3))
    x = np.concatenate([cloud, -np.array([3.0, 0, 0]) + 0.3 * rng.standard_normal((6, 3))])
    # With the typical weighing ten times as much as what a bin has already.
    bins = np.asarray(dataset_bins(x, num_bins=5, balance=10.0))
    assert (bins[24:] >= 3).all()


def test_a_share_of_every_bin_and_class() -> None:
    bins = np.repeat(np.arange(4), 10)
    labels = np.tile([0, 0, 0, 0, 1], 8)
    got = sample_bins(0, bins, 0.5, labels=labels)
    assert len(set(got)) == 20
    assert np.bincount(bins[got]).tolist() == [5] * 4 and np.bincount(labels[got]).tolist() == [16, 4]
    assert sample_bins(0, bins, 1.0).tolist() == list(range(40))
    assert sample_bins(0, bins, 0.3).tolist() != sample_bins(1, bins, 0.3).tolist()


def test_bad_input() -> None:
    x = np.ones((4, 2), np.float32)
    for name, bad in (("num_bins", 5), ("balance", -1.0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            dataset_bins(x, **{name: bad})
    with pytest.raises(ValueError, match="labels must be like bins"):
        sample_bins(0, np.array([0, 1]), 0.5, labels=np.array([0]))
    with pytest.raises(ValueError, match="bins must be integers >= 0"):
        sample_bins(0, np.array([-1, 1]), 0.5)
