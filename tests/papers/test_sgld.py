"""Stochastic gradient Langevin dynamics (Welling and Teh, 2011)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk

CHAINS = 20_000


def variance(tx: Any, a: float, steps: int, start: float = 0.0) -> float:
    """The variance of many independent chains on a x^2 / 2."""
    x = jnp.full(CHAINS, start)

    def step(carry: Any, _: None) -> Any:
        x, state = carry
        updates, state = tx.update(a * x, state, x)
        return (x + updates, state), None

    (x, _), _ = jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), None, steps))(x)
    assert abs(np.mean(x)) < 5 * np.std(x) / np.sqrt(CHAINS)
    return float(np.var(x))


@pytest.mark.parametrize(("lr", "a", "T", "N"), [(0.3, 2.0, 1.0, 1), (0.8, 1.0, 0.5, 10)])
def test_the_stationary_variance_is_that_of_the_closed_form(lr: float, a: float, T: float, N: int, x64: None) -> None:
    """v = (1 - lr a)^2 v + 2 lr T / N: T / (N a (1 - lr a / 2)), which no other scale of the noise has."""
    got = variance(gk.sgld(lr, temperature=T, num_data=N, key=0), a, 60)
    want = T / (N * a * (1 - lr * a / 2))
    # A variance of n normal numbers has the standard error sqrt(2 / n); what 60 steps leave of the start is 1e-9.
    assert abs(got / want - 1) < 5 * np.sqrt(2 / CHAINS)


def test_the_noise_of_a_schedule_has_the_rate_of_its_step(x64: None) -> None:
    """The first update has the noise of schedule(0), the second that of schedule(1)."""
    rates = np.array([0.5, 0.02])
    tx = gk.sgld(lambda t: jnp.where(t == 0, rates[0], rates[1]), key=3)
    x = jnp.zeros(CHAINS)
    state = tx.init(x)
    for rate in rates:
        updates, state = tx.update(x, state, x)
        assert abs(float(np.var(np.asarray(updates))) / (2 * rate) - 1) < 5 * np.sqrt(2 / CHAINS)


def test_without_temperature_it_is_gradient_descent(x64: None) -> None:
    x, g = jnp.arange(3.0), jnp.array([1.0, -2.0, 0.5])
    tx = gk.sgld(0.1, temperature=0.0, key=0)
    np.testing.assert_array_equal(tx.update(g, tx.init(x), x)[0], -0.1 * np.asarray(g))


def test_noise_behind_and_in_front_of_the_learning_rate_differ(x64: None) -> None:
    """The chain by hand is `sgld`, to the bit; gradient noise equals it at one rate, with eta = 2 T / (N lr)."""
    x, key = jnp.zeros(CHAINS), jax.random.key(5)
    by_hand = optax.chain(gk.scale_by_learning_rate(0.1), gk.add_langevin_noise(0.1, num_data=4, key=key))
    one, other = (tx.update(x, tx.init(x), x)[0] for tx in (by_hand, gk.sgld(0.1, num_data=4, key=key)))
    np.testing.assert_array_equal(one, other)
    same_law = gk.noisy_sgd(0.1, eta=2 / (4 * 0.1), gamma=0.0, key=key)
    got = float(np.var(np.asarray(same_law.update(x, same_law.init(x), x)[0])))
    assert abs(got / (2 * 0.1 / 4) - 1) < 5 * np.sqrt(2 / CHAINS)


def test_noise_is_drawn_in_float32_and_replicas_share_it() -> None:
    """A bfloat16 parameter far from 0 would not move by noise that was rounded to it before the rate."""
    x = {"a": jnp.zeros(4, jnp.bfloat16), "b": jnp.zeros(4)}
    tx = gk.sgld(0.1, key=0)
    updates, state = tx.update(x, tx.init(x), x)
    assert updates["a"].dtype == jnp.bfloat16 and not np.allclose(updates["a"].astype(jnp.float32), updates["b"])
    many = jax.vmap(lambda g: tx.update(g, tx.init(g), g)[0])(jax.tree.map(lambda v: jnp.stack([v, v]), x))
    np.testing.assert_array_equal(many["b"][0], many["b"][1])
    again, _ = tx.update(x, state, x)
    assert np.all(np.asarray(again["b"]) != updates["b"])


def test_bad_input() -> None:
    for name, bad in (("num_data", 0.5), ("temperature", -1.0), ("learning_rate", -0.1)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            gk.sgld(**{"learning_rate": 0.1, name: bad})
    x = jnp.ones(2)
    tx = gk.sgld(0.1)
    with pytest.raises(ValueError, match=r"sgld needs a random key: sgld\(\.\.\., key=0\)"):
        tx.update(x, tx.init(x), x)
