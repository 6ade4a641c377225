"""Growing batches (Bottou, Curtis, Nocedal, 2016, section 5.2)."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

import gradkit as gk


@pytest.mark.parametrize("tau", ["1.1", "1.5", "2", "1.25"])
def test_against_exact_fractions(tau: str) -> None:
    size = gk.batches.geometric_batch_size(3, float(tau))
    assert [size(k) for k in range(40)] == [math.ceil(3 * Fraction(tau) ** k) for k in range(40)]


def test_cut_at_the_size_of_the_data_and_for_ever() -> None:
    size = gk.batches.geometric_batch_size(8, 1.3, max_batch=1000)
    sizes = [size(k) for k in range(30)]
    assert sizes == [min(1000, math.ceil(8 * Fraction("1.3") ** k)) for k in range(30)]
    assert size(10**9) == 1000 and all(isinstance(n, int) for n in sizes)


def test_growing_batches_converge_linearly_where_a_constant_one_stalls() -> None:
    """x <- x - (x + noise / sqrt(n_k)) / 2: the error is that of exact gradients, or the noise of a batch."""
    rng = np.random.default_rng(0)

    def error(size: Callable[[int], int], steps: int = 40) -> float:
        x = np.full(200, 10.0)
        for k in range(steps):
            x = x - 0.5 * (x + rng.standard_normal(200) / math.sqrt(size(k)))
        return float(np.sqrt(np.mean(x**2)))

    # With n growing by 1.5 the noise falls by 1.5^(-1/2) = 0.82 per step, slower than the error's own 0.5.
    assert error(gk.batches.geometric_batch_size(4, 1.5)) < 2 * 0.5 * 1.5 ** (-39 / 2)
    assert error(lambda k: 4) > 0.2


def test_bad_input() -> None:
    for n0, tau, more in ((0, 2.0, {}), (1, 1.0, {}), (1, math.nan, {}), (8, 2.0, {"max_batch": 4})):
        with pytest.raises(ValueError, match="must be"):
            gk.batches.geometric_batch_size(n0, tau, **more)
    with pytest.raises(ValueError, match="step must be"):
        gk.batches.geometric_batch_size(1, 2.0)(-1)
