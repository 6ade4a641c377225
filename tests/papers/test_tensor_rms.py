"""The two root mean squares of Adafactor (Shazeer, Stern, 2018)."""

import math

import jax.numpy as jnp
import pytest

import gradkit as gk
from tests.golden.translate import ARRAYS
from tests.papers.replay import assert_equal, normal, updates

STACKED = gk.leaves.layout((gk.leaves.by_rank(3), {"stack": (0,)}), default=ARRAYS)


def test_the_bound_of_the_parameters_size(x64: None) -> None:
    x = {"a": jnp.zeros(3), "b": jnp.full((2,), 7.0), "c": jnp.full((2,), 0.5)}
    tx = gk.scale_by_param_rms(floor=0.01, ceiling=2.0)
    got, _ = tx.update({k: jnp.ones_like(v) for k, v in x.items()}, tx.init(x), x)
    assert_equal(got, {"a": jnp.full(3, 0.01), "b": jnp.full(2, 2.0), "c": jnp.full(2, 0.5)})
    with pytest.raises(ValueError, match=r"floor must be in \[0, ceiling\], got 3.0 above 2.0"):
        gk.scale_by_param_rms(floor=3.0, ceiling=2.0)


def test_every_layer_of_a_stack_has_its_own(x64: None) -> None:
    """optax takes the root mean square of the leaf."""
    x = jnp.stack([jnp.full((2, 3), 2.0), jnp.full((2, 3), 0.5)])
    u = 10 * jnp.ones((2, 2, 3))
    tx = gk.scale_by_param_rms(layout=STACKED)
    scaled, _ = tx.update(u, tx.init(x), x)
    assert_equal(scaled, u * x)
    tx = gk.clip_by_tensor_rms(1.0, layout=STACKED)
    clipped, _ = tx.update(x, tx.init(x), x)
    assert_equal(clipped, jnp.stack([jnp.ones((2, 3)), jnp.full((2, 3), 0.5)]))


def test_infinity_clips_nothing_and_zeros_stay(x64: None) -> None:
    for g in (normal(0, 3), jnp.zeros(3)):
        assert_equal(updates(gk.clip_by_tensor_rms(math.inf), g, [g]), [g])
        assert_equal(updates(gk.clip_by_tensor_rms(100.0), g, [g]), [g])
