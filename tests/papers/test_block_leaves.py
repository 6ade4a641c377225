"""Blocks of leaves (Shi et al., 2023): invertible, invisible to what is elementwise, and the blocks of the paper."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.papers.replay import assert_equal, normal
from tests.papers.test_shampoo import replay

TREE = {"conv": {"kernel": (2, 1, 2, 5)}, "w": (7, 4), "b": (4,), "s": ()}


def draw(seed: int) -> Any:
    leaves, structure = jax.tree.flatten(TREE, is_leaf=lambda s: isinstance(s, tuple))
    return structure.unflatten([normal(10 * seed + i, *s) for i, s in enumerate(leaves)])


def test_what_is_elementwise_does_not_see_blocks(x64: None) -> None:
    rows = [draw(t) for t in range(2)]
    for merge in (False, True):
        got, _ = replay(gk.block_leaves(gk.adamw(0.1), max_dim=3, merge_dims=merge), rows)
        assert_equal(got, replay(gk.adamw(0.1), rows)[0])


def test_the_blocks() -> None:
    """Joined from the last axis on while the product is at most 4; then cut, the last piece shorter."""
    state = gk.block_leaves(optax.trace(0.9), max_dim=4).init(draw(0))
    shapes = {name: {k: x.shape for k, x in blocks.items()} for name, blocks in state.trace.items()}
    assert shapes == {
        "conv/kernel": {"0_0": (4, 4), "0_1": (4, 1)},
        "w": {"0_0": (4, 4), "1_0": (3, 4)},
        "b": {"0": (4,)},
        "s": {"0": (1,)},
    }
    stacked = gk.block_leaves(optax.trace(0.9), max_dim=4).init({"ScanBlock_0": {"kernel": jnp.ones((9, 4, 2))}})
    assert {k: x.shape for k, x in stacked.trace["ScanBlock_0/kernel"].items()} == {"0_0": (9, 4, 2)}


def test_blocks_norms_and_shampoo_make_distributed_shampoo(x64: None) -> None:
    """The composition of the paper out of its parts, up to the 1e-16 in its norm."""
    rows = [{"w": normal(t, 5, 3), "b": normal(9 + t, 3)} for t in range(3)]
    shampoo = gk.scale_by_shampoo(b1=0.8, b2=0.9, eps=0.1)
    parts = gk.block_leaves(gk.graft(gk.scale_by_adam(b1=0.8, b2=0.99), shampoo), max_dim=3)
    whole = gk.distributed_shampoo(1.0, b1=0.8, b2=0.9, eps=0.1, max_dim=3, grafting="adam", graft_b2=0.99)
    got, want = replay(optax.chain(parts, optax.scale(-1.0)), rows)[0], replay(whole, rows)[0]
    assert_equal(got, want, rtol=1e-11, atol=1e-12)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
