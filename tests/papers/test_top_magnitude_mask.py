"""Sparse training: what is trained, and that nothing else moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk

RNG = np.random.default_rng(0)


def test_every_neuron_keeps_its_largest_incoming_weights() -> None:
    """Kernels are (in, out) and (height, width, in, out); stacked layers are layers."""
    dense, conv = RNG.standard_normal((7, 4)), RNG.standard_normal((3, 3, 2, 5))
    params = {"dense": {"kernel": dense, "bias": np.ones(4)}, "conv": {"kernel": conv}}
    mask = gk.top_magnitude_mask(params, k=2)
    assert np.asarray(mask["dense"]["bias"]).all()
    for x, kept in ((dense, mask["dense"]["kernel"]), (conv, mask["conv"]["kernel"])):
        columns, chosen = np.abs(x).reshape(-1, x.shape[-1]), np.asarray(kept).reshape(-1, x.shape[-1])
        np.testing.assert_array_equal(chosen.sum(0), 2)
        for column, own in zip(columns.T, chosen.T, strict=True):
            assert column[own].min() > column[~own].max()
    stack = {"ScanBlock_0": {"kernel": np.stack([dense, 2 * dense[::-1]]), "bias": np.ones((2, 4))}}
    both = np.asarray(gk.top_magnitude_mask(stack, k=2)["ScanBlock_0"]["kernel"])
    np.testing.assert_array_equal(both[0], both[1, ::-1])
    np.testing.assert_array_equal(both[0], mask["dense"]["kernel"])


def test_along_outputs_and_ties() -> None:
    w = {"dense": {"kernel": RNG.standard_normal((7, 4))}}
    assert (np.asarray(gk.top_magnitude_mask(w, axis="out")["dense"]["kernel"]).sum(1) == 1).all()
    equal = np.asarray(gk.top_magnitude_mask({"dense": {"kernel": np.ones((3, 2))}}, k=2)["dense"]["kernel"])
    assert equal.tolist() == [[True, True], [True, True], [False, False]]


def test_frozen_entries_keep_their_bits_for_a_hundred_steps_of_adamw() -> None:
    """Also with weight decay and momentum: the update is masked, and not the gradient."""
    params = {"kernel": jnp.asarray(RNG.standard_normal((6, 4)), jnp.float32), "bias": jnp.ones(4)}
    mask = gk.top_magnitude_mask(params, k=1)
    tx = optax.chain(gk.adamw(1e-2, weight_decay=0.1), gk.keep_updates(mask))

    def step(carry: tuple, key: jax.Array) -> tuple:
        x, state = carry
        g = jax.tree.map(lambda v: v + jax.random.normal(key, v.shape), x)
        u, state = tx.update(g, state, x)
        return (optax.apply_updates(x, u), state), None

    keys = jax.random.split(jax.random.key(0), 100)
    (x, _), _ = jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), keys))(params)
    moved = np.asarray(x["kernel"]) != np.asarray(params["kernel"])
    np.testing.assert_array_equal(moved, mask["kernel"])
    np.testing.assert_array_equal(moved.sum(0), 1)
    assert (np.asarray(x["bias"]) != 1).all()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="mask must be booleans"):
        gk.keep_updates({"w": jnp.ones(3)})
    g = {"w": jnp.ones(3)}
    ones = np.ones(3, bool)
    for mask, message in (({"v": ones}, "the structure of mask does not match"), ({"w": ones[:2]}, "shape")):
        with pytest.raises(ValueError, match=f"keep_updates.*{message}"):
            gk.keep_updates(mask).update(g, optax.EmptyState())
    with pytest.raises(ValueError, match="k must be an integer >= 1"):
        gk.top_magnitude_mask(g, k=0)
