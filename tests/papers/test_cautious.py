"""Cautious updates (Liang et al., 2024)."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.golden.translate import ARRAYS
from tests.papers.replay import assert_equal, normal, updates

STACKED = gk.leaves.layout((gk.leaves.by_rank(3), {"stack": (0,)}))


@pytest.mark.parametrize("normalize", ["mean", "count", None])
def test_no_entry_moves_against_the_gradient(normalize: str | None, x64: None) -> None:
    gradients = [normal(i, 30) for i in range(6)]
    ours = updates(gk.cautious(optax.trace(0.9), normalize=normalize), gradients[0], gradients)
    inner = updates(optax.trace(0.9), gradients[0], gradients)
    for g, u, p in zip(gradients, ours, inner, strict=True):
        phi = np.asarray(p) * np.asarray(g) > 0
        factor = {"mean": 1 / phi.mean(), "count": 30 / (phi.sum() + 1), None: 1.0}[normalize]
        assert_equal(u, jnp.asarray(np.where(phi, np.asarray(p) * factor, 0.0)))
    assert any((np.asarray(p) * np.asarray(g) < 0).any() for g, p in zip(gradients, inner, strict=True))


def test_of_gradients_themselves_nothing_is_left_out(x64: None) -> None:
    """Also of those so small that their squares are 0."""
    for scale in (1.0, 1e-200):
        g = scale * normal(0, 9)
        assert_equal(updates(gk.cautious(optax.identity()), g, [g])[0], g, atol=0)
        assert_equal(updates(gk.cautious(optax.identity(), normalize="count"), g, [g])[0], 0.9 * g, atol=0)


@pytest.mark.parametrize("normalize", ["mean", "count"])
def test_where_all_entries_disagree_the_update_is_zero(normalize: str, x64: None) -> None:
    g = normal(0, 9)
    assert not updates(gk.cautious(optax.scale(-1.0), normalize=normalize), g, [g])[0].any()


def test_layers_of_a_stack_have_masks_of_their_own(x64: None) -> None:
    gradients = [normal(i, 2, 3, 4) for i in range(4)]
    tx, apart = (gk.cautious(optax.trace(0.9), layout=layout) for layout in (STACKED, ARRAYS))
    together = updates(tx, gradients[0], gradients)
    for layer in range(2):
        assert_equal([u[layer] for u in together], updates(apart, gradients[0][layer], [g[layer] for g in gradients]))


def test_another_normalization_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"normalize must be one of .* got 'sum'; write normalize='mean'"):
        gk.cautious(optax.identity(), normalize="sum")
