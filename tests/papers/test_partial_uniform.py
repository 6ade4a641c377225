"""Time steps of an interval."""

import jax
import numpy as np
import pytest

import gradkit as gk


def test_all_of_the_interval_and_nothing_else() -> None:
    drawn = np.asarray(jax.jit(lambda key: gk.batches.partial_uniform(5, 9)(key, (400,)))(jax.random.key(0)))
    # A value misses in 400 draws with probability 0.75^400.
    assert set(drawn.tolist()) == {5, 6, 7, 8}
    with pytest.raises(ValueError, match="high must be"):
        gk.batches.partial_uniform(5, 5)
