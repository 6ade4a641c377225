"""Fading gradient noise (Neelakantan et al., 2015; Ruder, 2016)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def test_the_variance_falls_with_the_steps(key: jax.Array) -> None:
    """At steps 0, 3 and 15 it is eta / (1 + t)^gamma. The variance of n draws is off by sqrt(2 / n) of itself, and
    five times that is exceeded once in a million."""
    n, eta, gamma = 20_000, 0.3, 0.55
    tx, g = gk.add_noise(eta, gamma=gamma, key=key), jnp.zeros(n)
    state = tx.init(g)
    update = jax.jit(tx.update)
    for t in range(16):
        u, state = update(g, state)
        if t in (0, 3, 15):
            want = eta / (1 + t) ** gamma
            assert abs(float(jnp.var(u)) / want - 1) < 5 * np.sqrt(2 / n)
            assert abs(float(jnp.mean(u))) < 5 * np.sqrt(want / n)


def test_leaves_and_steps_are_independent(key: jax.Array) -> None:
    """Correlations of n draws are below 5 / sqrt(n)."""
    n = 10_000
    tx, g = gk.add_noise(1.0, gamma=0.0, key=key), {"a": jnp.zeros(n), "b": jnp.zeros(n)}
    first, state = tx.update(g, tx.init(g))
    second, _ = tx.update(g, state)
    draws = np.stack([np.asarray(x) for x in (*first.values(), *second.values())])
    off = np.corrcoef(draws) - np.eye(4)
    assert np.abs(off).max() < 5 / np.sqrt(n)


def test_the_key_determines_the_noise_and_the_key_of_update_takes_precedence(key: jax.Array) -> None:
    g = jnp.zeros(5)
    kept, bare = gk.add_noise(key=key), gk.add_noise()
    np.testing.assert_array_equal(kept.update(g, kept.init(g))[0], kept.update(g, kept.init(g))[0])
    step = jax.random.key(7)
    want, after = bare.update(g, bare.init(g), key=step)
    got, moved = kept.update(g, kept.init(g), key=step)
    np.testing.assert_array_equal(got, want)
    assert after.key is None and moved.key == kept.init(g).key
    with pytest.raises(ValueError, match="add_noise needs a random key"):
        bare.update(g, bare.init(g))
    with pytest.raises(ValueError, match="key must be a typed random key"):
        gk.add_noise(key=0.5)
    by_integer = gk.add_noise(eta=0.1, key=3)
    want = gk.add_noise(eta=0.1, key=jax.random.key(3))
    np.testing.assert_array_equal(*(tx.update(g, tx.init(g))[0] for tx in (by_integer, want)))


def test_without_noise_it_is_descent(x64: None, key: jax.Array) -> None:
    gradients = [normal(i, 5) for i in range(4)]
    noisy, plain = gk.noisy_sgd(0.1, eta=0.0, momentum=0.9, key=key), gk.sgd(0.1, momentum=0.9)
    a, b = noisy.init(gradients[0]), plain.init(gradients[0])
    for g in gradients:
        (u, a), (v, b) = noisy.update(g, a), plain.update(g, b)
        assert_equal(u, v)


def test_the_noise_of_a_mesh_is_that_of_one_device(key: jax.Array) -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    lies = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    tx, g = gk.add_noise(), jnp.zeros((16, 3))
    update = jax.jit(lambda g, key: tx.update(g, tx.init(g), key=key)[0])
    np.testing.assert_array_equal(update(jax.device_put(g, lies), key), update(g, key))
