"""Gravity (Bahrami, Pouriyan Zadeh, 2021)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_large_gradients_move_less(x64: None) -> None:
    """|z| <= 1 / (2 M), reached where |g| = 1 / M; M the largest entry. The first step is (1 - (beta + 1) / 3) z."""
    M = 4.0
    g = jnp.asarray([0.01, 1 / M, 1.0, M])
    (u,) = updates(gk.scale_by_gravity(beta=0.5), g, [g])
    z = u / (1 - 1.5 / 3)
    assert_equal(z, g / (1 + (g * M) ** 2))
    assert jnp.argmax(z) == 1 and jnp.all(z <= 1 / (2 * M))
    assert_equal(z[1], jnp.asarray(1 / (2 * M)))


def test_decay_tends_to_beta(x64: None) -> None:
    """After one gradient and zeros the velocity shrinks by (beta t + 1) / (t + 2) at step t."""
    one, beta = jnp.ones(3), 0.9
    out = updates(gk.scale_by_gravity(beta=beta), one, [one, *[0 * one] * 5])
    for t in range(2, 7):
        assert_equal(out[t - 1] / out[t - 2], (beta * t + 1) / (t + 2) * one)


def test_a_gradient_of_zeros_is_no_step() -> None:
    x = jnp.ones((2, 3))
    assert not updates(gk.gravity(0.1, alpha=0.0), x, [0 * x])[0].any()


def test_every_leaf_has_its_own_largest_entry(x64: None) -> None:
    g = {"a": normal(0, 3, 4), "b": 10 * normal(1, 5)}
    (both,) = updates(gk.gravity(0.1, alpha=0.0), g, [g])
    for name, x in g.items():
        assert_equal(both[name], updates(gk.gravity(0.1, alpha=0.0), x, [x])[0])


def test_first_velocity_is_drawn(key: jax.Array) -> None:
    """The first step alone has standard deviation alpha b_1, whatever the learning rate; leaves are independent."""
    x = {"a": jnp.zeros((200, 50)), "b": jnp.zeros((200, 50))}
    for rate in (0.1, lambda step: jnp.where(step == 0, 0.1, 7.0)):
        tx = gk.gravity(rate, alpha=0.01, beta=0.5, key=key)
        u, _ = tx.update(x, tx.init(x), x)
        # Mean and deviation of 10^4 draws are off by 1 / sqrt(10^4) and 1 / sqrt(2 10^4) of the deviation; five times.
        for leaf in u.values():
            np.testing.assert_allclose(jnp.std(leaf), 0.01 * 0.5, rtol=5 / np.sqrt(2e4))
            assert abs(jnp.mean(leaf)) < 5 * 0.005 / np.sqrt(1e4)
        assert abs(jnp.corrcoef(u["a"].ravel(), u["b"].ravel())[0, 1]) < 5 / np.sqrt(1e4)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_same_velocity_is_drawn_on_a_mesh_and_for_shapes(kind: AxisType, key: jax.Array) -> None:
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(kind,))
    tx, x = gk.gravity(0.1, key=key), jnp.ones((16, 4))
    want = tx.init(x)[0].velocity
    there = gk.parallel.init_sharded(tx, {"w": jax.device_put(x, NamedSharding(mesh, P("fsdp")))})[0].velocity["w"]
    assert there.sharding.spec == P("fsdp")
    # The same random bits; a compiled program rounds their way to a normal number otherwise than an eager one.
    np.testing.assert_allclose(np.asarray(there), np.asarray(want), rtol=1e-6)
    np.testing.assert_array_equal(tx.init(jax.ShapeDtypeStruct(x.shape, x.dtype))[0].velocity, want)


def test_what_the_first_velocity_needs(key: jax.Array) -> None:
    with pytest.raises(ValueError, match="needs a key"):
        gk.gravity(0.1)
    with pytest.raises(ValueError, match="learning_rate must be above 0 at its first step"):
        gk.gravity(lambda step: 0.1 * step.astype(float), key=key)
    with pytest.raises(ValueError, match="key must be a typed random key"):
        gk.gravity(0.1, key=0.5)
    traced = gk.inject_hyperparams(gk.gravity)(0.1, key=key)
    x = jnp.ones(3)
    got, want = (tx(x) for tx in (jax.jit(traced.init), gk.gravity(0.1, key=key).init))
    np.testing.assert_allclose(np.asarray(got.inner_state[0].velocity), np.asarray(want[0][1]))
