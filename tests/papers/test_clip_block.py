"""Clipping of tensors, and of coordinates (Chezhegov et al., 2024)."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.leaves import default_layout
from gradkit.transforms.clip_block import clip_by
from tests.papers.replay import assert_equal, normal, updates


def test_every_tensor_is_clipped_by_itself(x64: None) -> None:
    g = {"long": 10 * normal(0, 4, 3), "short": 0.01 * normal(1, 5), "zero": jnp.zeros(2)}
    got = updates(gk.clip_by_block_norm(0.5), g, [g])[0]
    assert_equal(got["long"], g["long"] * 0.5 / (jnp.linalg.norm(g["long"]) + 1e-6))
    assert_equal([got["short"], got["zero"]], [g["short"], g["zero"]])


def test_layers_of_a_stack_are_tensors(x64: None) -> None:
    g = normal(0, 3, 4, 5)
    apart = {f"layer_{i}": x for i, x in enumerate(g)}
    together = {"ScanBlock_0": g}
    tx = gk.clip_by_block_norm(0.5)
    want = updates(tx, apart, [apart])[0]
    assert_equal(updates(tx, together, [together])[0]["ScanBlock_0"], jnp.stack(list(want.values())))
    declared = gk.leaves.layout((gk.leaves.by_path("blocks"), {"stack": 1}))
    named = {"blocks": g}
    got = updates(gk.clip_by_block_norm(0.5, layout=declared), named, [named])[0]
    assert_equal(got["blocks"], jnp.stack(list(want.values())))


def test_infinity_clips_nothing(x64: None) -> None:
    g = {"a": 1e6 * normal(0, 4)}
    for clipping in ("global", "local", "elementwise"):
        assert_equal(updates(clip_by(clipping, np.inf, default_layout), g, [g])[0], g)


def test_the_three_ways_to_clip(x64: None) -> None:
    g = {"a": jnp.array([3.0, -0.1]), "b": jnp.array([4.0])}
    norm = jnp.sqrt(9 + 0.01 + 16)
    assert_equal(updates(clip_by("global", 1.0, default_layout), g, [g])[0]["b"], jnp.array([4.0]) / norm)
    assert_equal(updates(clip_by("local", 1.0, default_layout), g, [g])[0]["b"], jnp.array([4 / (4 + 1e-6)]))
    by_value = updates(clip_by("elementwise", 1.0, default_layout), g, [g])[0]
    assert_equal(by_value, {"a": jnp.array([1.0, -0.1]), "b": jnp.array([1.0])})


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="clipping must be one of 'global', 'local', 'elementwise'"):
        clip_by("norm", 1.0, default_layout)
    for clipping in ("global", "local", "elementwise"):
        with pytest.raises(ValueError, match=r"max_norm must be in \(0, inf\]"):
            clip_by(clipping, 0.0, default_layout)
