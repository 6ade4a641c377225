"""Statistics per axis (Gupta et al., 2018): sums and means, blocks, joined axes, one side."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal
from tests.papers.test_shampoo import contraction, replay


def statistics(gradients: list[Any], **options: Any) -> list[Any]:
    """Per shape of a block the statistics of its axes; updates must pass."""
    passed, state = replay(gk.kronecker_statistics(**options), gradients)
    assert_equal(passed, gradients, rtol=0, atol=0)
    return [[own[axis] for axis in sorted(own)] for own in state.S.values()]


def test_sums_and_means(x64: None) -> None:
    rows = [normal(i, 2, 3, 4) for i in range(3)]
    S = [[contraction(np.asarray(g), i) for i in range(3)] for g in rows]
    (got,) = statistics(rows)
    assert_equal(got, [sum(s[i] for s in S) for i in range(3)], rtol=1e-13)
    (got,) = statistics(rows, b2=0.9, max_dim=3)
    want = [sum(0.1 * 0.9 ** (2 - t) * S[t][i] for t in range(3)) for i in range(3)]
    assert_equal(got, [*want[:2], np.diag(want[2])], rtol=1e-13)


def test_blocks_joined_axes_and_one_side(x64: None) -> None:
    """(2, 2, 5) with blocks of 4 is (4, 5), cut into (4, 4) and (4, 1)."""
    g = normal(0, 2, 2, 5)
    wide, narrow = statistics([g], block_size=4, merge_dims=True)
    x = np.asarray(g).reshape(4, 5)
    assert_equal([s.reshape(4, 4) for s in wide], [contraction(x[:, :4], i) for i in (0, 1)], rtol=1e-13)
    assert_equal([s.reshape(s.shape[-2:]) for s in narrow], [contraction(x[:, 4:], i) for i in (0, 1)], rtol=1e-13)
    (got,) = statistics([normal(1, 5, 3)], one_sided=True)
    assert_equal(got, [contraction(np.asarray(normal(1, 5, 3)), 1)], rtol=1e-13)


def test_bad_input() -> None:
    for kwargs, message in [({"b2": 1.1}, "b2 must be in"), ({"block_size": 0}, "block_size must be")]:
        with pytest.raises(ValueError, match=message):
            gk.kronecker_statistics(**kwargs)
    assert gk.kronecker_statistics().init({"w": jnp.ones((0, 3))}).S == {"w": {}}
