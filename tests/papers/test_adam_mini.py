"""Adam-mini (Zhang et al., 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.leaves import Axes
from tests.golden.translate import ARRAYS
from tests.papers.replay import assert_equal, normal, updates

STACKED = gk.leaves.layout((gk.leaves.by_rank(3), {"stack": (0,)}), default=ARRAYS)


def test_blocks_of_one_entry_are_adamw(x64: None) -> None:
    x, gradients = normal(9, 6, 4), [normal(i, 6, 4) for i in range(4)]
    ours = updates(gk.adam_mini(0.1, weight_decay=0.3, blocks="entry"), x, gradients)
    assert_equal(ours, updates(gk.adamw(0.1, weight_decay=0.3), x, gradients))


def test_a_gradient_of_one_magnitude_is_adamw_whatever_the_blocks(x64: None) -> None:
    """The mean of equal squares is the square, which a sum, or a mean over too many entries, is not."""
    x, gradients = normal(9, 6, 4), [(i + 1) * jnp.sign(normal(i, 6, 4)) for i in range(3)]
    want = updates(gk.adamw(0.1, weight_decay=0.0), x, gradients)
    for blocks in ("tensor", "unit", "input", "head"):
        assert_equal(updates(gk.adam_mini(0.1, blocks=blocks), x, gradients), want)


def test_layers_of_a_stack_are_as_if_they_were_leaves(x64: None) -> None:
    gradients = [normal(i, 2, 6, 4) * jnp.asarray([1.0, 9.0]).reshape(2, 1, 1) for i in range(3)]
    for blocks in ("tensor", "unit", "input"):
        together, apart = (gk.adam_mini(0.1, blocks=blocks, layout=layout) for layout in (STACKED, ARRAYS))
        whole = updates(together, gradients[0], gradients)
        for layer in range(2):
            alone = updates(apart, gradients[0][layer], [g[layer] for g in gradients])
            assert_equal([u[layer] for u in whole], alone)


def test_a_head_is_a_section_of_the_outputs_or_an_axis_of_its_own(x64: None) -> None:
    """Two heads of three: as splits of one axis, and as the first of two; heads of unequal sizes, by NumPy."""
    g = normal(0, 4, 6)
    fused = gk.leaves.layout((gk.leaves.by_rank(2), {"splits": (3, 3)}), default=ARRAYS)
    apart = gk.leaves.layout((gk.leaves.by_rank(3), {"stack": (), "inputs": (0,), "outputs": (1, 2)}))
    one = updates(gk.scale_by_block_rms(blocks="head", layout=fused), g, [g])[0]
    two = updates(gk.scale_by_block_rms(blocks="head", layout=apart), g.reshape(4, 2, 3), [g.reshape(4, 2, 3)])[0]
    assert_equal(one, two.reshape(4, 6))
    uneven = gk.leaves.layout((gk.leaves.by_rank(2), {"splits": (2, 4)}), default=ARRAYS)
    got = updates(gk.scale_by_block_rms(blocks="head", eps=0.0, layout=uneven), g, [g])[0]
    G = np.asarray(g)
    want = np.concatenate([p / np.sqrt((p**2).mean()) for p in (G[:, :2], G[:, 2:])], axis=1)
    assert_equal(got, want)


def test_blocks_follow_roles_and_not_substrings_of_names() -> None:
    """`linear_attn`, and the norm of an output, which the official code takes for a linear layer and a head."""
    tree: dict[str, Any] = {
        "embed": {"embedding": (11, 4)},
        "linear_attn": {"query": {"kernel": (4, 2, 3)}, "value": {"kernel": (4, 2, 3)}},
        "output_norm": {"scale": (4,)},
        "up": {"kernel": (4, 8), "bias": (8,)},
        "lm_head": {"kernel": (4, 11)},
    }
    params = jax.tree.map(jnp.zeros, tree, is_leaf=lambda node: isinstance(node, tuple))
    nu = gk.scale_by_block_rms().init(params).nu
    assert jax.tree.map(jnp.shape, nu) == {
        "embed": {"embedding": (11, 1)},
        "linear_attn": {"query": {"kernel": (1, 2, 1)}, "value": {"kernel": (1, 2, 3)}},
        "output_norm": {"scale": (1,)},
        "up": {"kernel": (1, 8), "bias": (8,)},
        "lm_head": {"kernel": (1, 11)},
    }


def test_norms_and_biases_do_not_decay_by_default(x64: None) -> None:
    x = {"up": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
    tx = gk.adam_mini(0.1, weight_decay=0.5)
    got, _ = tx.update(jax.tree.map(jnp.zeros_like, x), tx.init(x), x)
    assert_equal(got["up"], {"kernel": jnp.full((2, 2), -0.05), "bias": jnp.zeros(2)})
    assert_equal(got["norm"]["scale"], jnp.zeros(2))


def test_a_function_chooses_the_blocks() -> None:
    def blocks(path: str, axes: Axes) -> str:
        return "tensor" if path == "a" else "row"

    assert gk.scale_by_block_rms(blocks=blocks).init({"a": jnp.zeros((3, 2))}).nu["a"].shape == (1, 1)
    with pytest.raises(ValueError, match="the block of 'b' must be"):
        gk.scale_by_block_rms(blocks=blocks).init({"b": jnp.zeros((3, 2))})
    with pytest.raises(ValueError, match="blocks must be"):
        gk.scale_by_block_rms(blocks="row")
