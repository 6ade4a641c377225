"""The trimmed mean, against SciPy's, and what it is robust to."""

import numpy as np
import pytest
from scipy import stats

from gradkit.aggregation import trimmed_mean
from tests.papers.stacks import aggregate, draw


@pytest.mark.parametrize("b", [0, 1, 2])
def test_against_scipy(b: int, x64: None) -> None:
    J = draw(0, 5)
    np.testing.assert_allclose(aggregate(trimmed_mean(trim_number=b), J), stats.trim_mean(J, b / 5, axis=0), rtol=1e-13)


def test_the_largest_number_trimmed_is_the_median(x64: None) -> None:
    J = draw(1, 7)
    np.testing.assert_allclose(aggregate(trimmed_mean(trim_number=3), J), np.median(J, axis=0), rtol=1e-14)


def test_as_many_faulty_workers_keep_it_between_the_others(x64: None) -> None:
    J = draw(2, 7)
    J[0], J[3] = 1e9, -1e9
    out, good = aggregate(trimmed_mean(trim_number=2), J), np.delete(J, [0, 3], axis=0)
    assert ((good.min(0) <= out) & (out <= good.max(0))).all()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="trimmed_mean: 4 gradients came, and trim_number=2 needs 5 or more"):
        aggregate(trimmed_mean(trim_number=2), draw(0).astype(np.float32))
