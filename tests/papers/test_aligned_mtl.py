"""Aligned-MTL: the condition number becomes 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.aggregation import aligned_mtl
from gradkit.aggregation.aligned_mtl import MODES, balance
from tests.papers.stacks import aggregate, draw


@pytest.mark.parametrize("mode", MODES)
def test_the_aligned_system_is_a_projector_times_the_scale(mode: str, x64: None) -> None:
    """B G B = s P, also where a gradient is the sum of two others: rows of B J are orthogonal on what is kept."""
    J = draw(0, 5)
    J[4] = J[0] + J[1]
    G = J @ J.T
    kept = np.linalg.eigvalsh(G)[1:]
    s = {"min": kept[0], "median": kept[1], "rmse": kept.mean()}[mode]
    B = np.asarray(jax.jit(balance, static_argnums=1)(jnp.asarray(G), mode))
    got = np.linalg.eigvalsh(B @ G @ B)
    np.testing.assert_allclose(got, [0, s, s, s, s], atol=1e-10 * kept[-1])
    np.testing.assert_allclose(aggregate(aligned_mtl(scale_mode=mode), J), (B @ np.full(5, 0.2)) @ J, atol=1e-10)


def test_orthogonal_gradients_of_one_length_are_averaged(x64: None) -> None:
    Q = 3 * np.linalg.qr(draw(1, 9))[0][:4]
    np.testing.assert_allclose(aggregate(aligned_mtl(), Q), Q.mean(0), atol=1e-12)
    np.testing.assert_allclose(aggregate(aligned_mtl(pref_vector=[1.0, 1, 1, 1]), Q), Q.sum(0), atol=1e-12)
    np.testing.assert_array_equal(aggregate(aligned_mtl(), 0 * Q), 0)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="scale_mode must be one of 'min', 'median', 'rmse'"):
        aligned_mtl(scale_mode="max")
