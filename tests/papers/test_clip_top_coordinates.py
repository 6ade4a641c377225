"""Clipping of the largest coordinates (Pan, Li, 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.diagnostics import directional_sharpness
from tests.papers.replay import assert_equal, normal, updates


def tree(seed: int) -> dict[str, jax.Array]:
    return {"a": normal(seed, 11), "b": 10 * normal(seed + 1, 4, 5), "c": normal(seed + 2)}


def flat(g: dict[str, jax.Array]) -> np.ndarray:
    return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(g)])


@pytest.mark.parametrize("fraction", [0.0, 0.03, 0.1, 0.5, 0.99, 1.0])
def test_as_many_as_the_fraction_says_are_clipped_to_one_size(fraction: float, x64: None) -> None:
    """Of 32 distinct values floor(32 fraction) change, all leaves together, all to the size of the next one."""
    g = tree(0)
    before, after = flat(g), flat(updates(gk.clip_top_coordinates(fraction), g, [g])[0])
    order = np.sort(np.abs(before))[::-1]
    changed = before != after
    assert changed.sum() == int(32 * fraction)
    threshold = np.append(order, 0)[int(32 * fraction)]
    np.testing.assert_array_equal(after, np.clip(before, -threshold, threshold))


def test_of_a_share_of_the_threshold(x64: None) -> None:
    g = tree(1)
    after = flat(updates(gk.clip_top_coordinates(0.25, threshold_scale=0.5), g, [g])[0])
    threshold = 0.5 * np.sort(np.abs(flat(g)))[::-1][8]
    assert_equal(after, np.clip(flat(g), -threshold, threshold))


def test_ties_zeros_and_what_is_not_finite() -> None:
    """Equal values stay equal, zeros stay, infinite entries are clipped, NaN stays where it is and stays alone."""
    tx = gk.clip_top_coordinates(0.5)
    one = lambda g: np.asarray(updates(tx, g, [g])[0])  # noqa: E731
    np.testing.assert_array_equal(one(jnp.array([2.0, -2.0, 2.0, 1.0])), [2, -2, 2, 1])
    np.testing.assert_array_equal(one(jnp.zeros(4)), 0)
    np.testing.assert_array_equal(one(jnp.array([jnp.inf, -jnp.inf, 3.0, 1.0])), [3, -3, 3, 1])
    np.testing.assert_array_equal(one(jnp.array([jnp.nan, 5.0, 3.0, 1.0])), [np.nan, 1, 1, 1])
    # Extreme numbers have bits too.
    small = np.float32(1e-37)
    np.testing.assert_array_equal(one(jnp.array([3e38, 1e-37, -2e38, 0.0])), [small, small, -small, 0])


def test_narrow_leaves_beside_wide_ones() -> None:
    g = {"a": jnp.array([8.0, 1.0], jnp.bfloat16), "b": jnp.array([4.0, 2.0])}
    after = updates(gk.clip_top_coordinates(0.5), g, [g])[0]
    assert after["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(flat(jax.tree.map(lambda x: x.astype(jnp.float32), after)), [2, 1, 2, 2])


def test_a_traced_fraction(x64: None) -> None:
    g = tree(2)
    many = jax.jit(jax.vmap(lambda f: updates(gk.clip_top_coordinates(f), g, [g])[0]))(jnp.array([0.1, 0.5]))
    for i, f in enumerate((0.1, 0.5)):
        assert_equal(jax.tree.map(lambda x, i=i: x[i], many), updates(gk.clip_top_coordinates(f), g, [g])[0])


def test_it_lowers_directional_sharpness(x64: None) -> None:
    """One coordinate of 20 is a hundred times as steep; a twentieth of the coordinates is clipped."""
    curvature = jnp.ones(20).at[0].set(100.0)
    loss = lambda x: 0.5 * jnp.sum(curvature * x**2)  # noqa: E731
    x = jnp.linspace(0.5, 1.0, 20)
    g = jax.grad(loss)(x)
    clipped = updates(gk.clip_top_coordinates(0.05), x, [g])[0]
    assert float(directional_sharpness(loss, x, clipped)) < 0.15 * float(directional_sharpness(loss, x, g))


def test_bad_input() -> None:
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="fraction must be"):
            gk.clip_top_coordinates(bad)
    with pytest.raises(ValueError, match="threshold_scale must be"):
        gk.clip_top_coordinates(0.1, threshold_scale=0.0)
