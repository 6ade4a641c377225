"""Grafting (Agarwal et al., 2021): the direction of one method, the length of another's step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_direction_and_length_of_every_tensor(x64: None) -> None:
    rows = [{"w": normal(i, 3, 4), "b": normal(9 + i, 3)} for i in range(3)]
    one, other = gk.scale_by_adam(), optax.trace(0.9)
    got, a, p = (updates(tx, rows[0], rows) for tx in (gk.graft(one, other), one, other))
    for u, a_t, p_t in zip(got, a, p, strict=True):
        want = jax.tree.map(lambda x, y: y * (jnp.linalg.norm(x) / jnp.linalg.norm(y)), a_t, p_t)
        assert_equal(u, want)


def test_layers_of_a_stack_are_tensors_unless_leaves_are_asked_for(x64: None) -> None:
    g = {"ScanBlock_0": {"kernel": normal(0, 2, 3, 4)}}

    def lengths(block: str) -> Any:
        tx = gk.graft(optax.identity(), optax.scale_by_sign(), block=block)
        u: Any = tx.update(g, tx.init(g))[0]
        return np.asarray(u["ScanBlock_0"]["kernel"])

    x = np.asarray(g["ScanBlock_0"]["kernel"])
    each = np.linalg.norm(x, axis=(1, 2))
    assert_equal(np.linalg.norm(lengths("tensor"), axis=(1, 2)), each)
    assert_equal(np.linalg.norm(lengths("leaf"), axis=(1, 2)), np.full(2, np.linalg.norm(each) / np.sqrt(2)))


def test_a_direction_of_zero_stays_zero() -> None:
    g = jnp.ones(3)
    tx = gk.graft(optax.identity(), optax.scale(0.0))
    assert_equal(tx.update(g, tx.init(g))[0], np.zeros(3))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="block must be one of"):
        gk.graft(optax.identity(), optax.identity(), block="row")
    for name, args in (("magnitude", (3, optax.identity())), ("direction", (optax.identity(), None))):
        with pytest.raises(ValueError, match=f"{name} must be a gradient transformation"):
            gk.graft(*args)
