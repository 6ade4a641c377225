"""Lion (Chen et al., 2023)."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_every_coordinate_moves_by_the_rate_or_not_at_all(x64: None) -> None:
    gradients = [normal(i, 40).at[:5].set(0.0) for i in range(5)]
    for u in updates(gk.lion(0.25), gradients[0], gradients):
        assert set(np.unique(np.abs(u))) == {0.0, 0.25}
        assert not u[:5].any()


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.99), (0.3, 0.5), (1.0, 0.9), (0.5, 1.0), (0.0, 0.9)])
def test_equations_of_the_paper(b1: float, b2: float, x64: None) -> None:
    gradients, m = [normal(i, 60) for i in range(6)], jnp.zeros(60)
    for g, u in zip(gradients, updates(gk.scale_by_lion(b1=b1, b2=b2), gradients[0], gradients), strict=True):
        assert_equal(u, jnp.sign(b1 * m + (1 - b1) * g))
        m = b2 * m + (1 - b2) * g


def test_b2_zero_interpolates_two_gradients(x64: None) -> None:
    a, b = normal(0, 20), normal(1, 20)
    assert_equal(updates(gk.scale_by_lion(b1=0.7, b2=0.0), a, [a, b])[1], jnp.sign(0.7 * a + 0.3 * b))


def test_equal_decays_are_signed_momentum(x64: None) -> None:
    gradients, m = [normal(i, 30) for i in range(5)], jnp.zeros(30)
    for g, u in zip(gradients, updates(gk.scale_by_lion(b1=0.9, b2=0.9), gradients[0], gradients), strict=True):
        m = 0.9 * m + 0.1 * g
        assert_equal(u, jnp.sign(m))


def test_scale_of_the_gradients_does_not_matter(x64: None) -> None:
    gradients = [normal(i, 30) for i in range(5)]
    assert_equal(
        updates(gk.lion(0.1), gradients[0], gradients),
        updates(gk.lion(0.1), gradients[0], [1e3 * g for g in gradients]),
    )


def test_decay_stays_outside_the_sign(x64: None) -> None:
    x, g = 1e6 * jnp.ones(4), jnp.array([1.0, -1.0, 1.0, -1.0])
    assert_equal(updates(gk.lion(0.1, weight_decay=0.5), x, [g])[0], -0.1 * (jnp.sign(g) + 0.5 * x))


def test_cautious_lion_counts_what_agrees(x64: None) -> None:
    """With as large a weight of the momentum that it decides, some signs oppose the gradient."""
    gradients, m, left_out = [normal(i, 30) for i in range(4)], np.zeros(30), 0
    ours = updates(gk.cautious_lion(0.1), gradients[0], gradients)
    for g, u in zip(map(np.asarray, gradients), ours, strict=True):
        sign = np.sign(0.95 * m + 0.05 * g)
        phi = sign * g > 0
        assert_equal(u, jnp.asarray(-0.1 * sign * phi * 30 / (phi.sum() + 1)))
        m, left_out = 0.98 * m + 0.02 * g, left_out + (~phi).sum()
    assert left_out > 0


def test_cautious_lion_does_not_mask_the_decay(x64: None) -> None:
    x = normal(0, 8)
    assert_equal(updates(gk.cautious_lion(0.1, weight_decay=0.5), x, [0 * x])[0], -0.05 * x)
