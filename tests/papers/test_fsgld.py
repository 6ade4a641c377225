"""Federated Langevin dynamics with conducive gradients (El Mekkaoui et al., 2020)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal

S, N = 3, 50
F = np.array([0.2, 0.3, 0.5])


def surrogates() -> tuple[dict, dict, dict]:
    x = {"w": normal(0, 2, 2), "b": normal(1, 2)}
    means = jax.tree.map(lambda p: normal(2, S, *p.shape), x)
    return x, means, jax.tree.map(lambda m: jnp.exp(normal(3, *m.shape)), means)


def test_the_corrections_have_the_mean_zero_and_the_form_of_the_paper(x64: None) -> None:
    x, mu, P = surrogates()
    tx = gk.conducive_gradient(mu, P, F, num_data=N)
    zero, state = jax.tree.map(jnp.zeros_like, x), tx.init(x)
    c = [tx.update(zero, state, x, client=s)[0] for s in range(S)]
    for leaf in x:
        score = -np.asarray(P[leaf]) * (np.asarray(x[leaf])[None] - np.asarray(mu[leaf]))
        for s in range(S):
            assert_equal(c[s][leaf], -(score.sum(0) - score[s] / F[s]) / N, rtol=1e-10)
        np.testing.assert_allclose(sum(F[s] * c[s][leaf] for s in range(S)), 0, atol=1e-13)


def test_with_exact_surrogates_all_clients_have_the_gradient_of_all_data(x64: None) -> None:
    x, mu, P = surrogates()
    energy = lambda x, s: sum(jnp.sum(P[n][s] * jnp.square(x[n] - mu[n][s])) / 2 for n in x)  # noqa: E731
    of_client = [jax.grad(lambda x, s=s: energy(x, s) / (F[s] * N))(x) for s in range(S)]
    exact = jax.grad(lambda x: (energy(x, 0) + energy(x, 1) + energy(x, 2)) / N)(x)
    tx = gk.conducive_gradient(lambda params: mu, lambda params: P, F, num_data=N)
    for s in range(S):
        assert np.abs(of_client[s]["w"] - exact["w"]).max() > 1e-2
        assert_equal(tx.update(of_client[s], tx.init(x), x, client=s)[0], exact, rtol=1e-10, atol=1e-13)


def test_surrogates_of_precision_zero_have_no_effect(x64: None) -> None:
    x, mu, P = surrogates()
    tx = gk.conducive_gradient(mu, jax.tree.map(jnp.zeros_like, P), np.full(S, 1 / S))
    assert_equal(tx.update(x, tx.init(x), x, client=jnp.asarray(2))[0], x)


def test_the_chain_samples_the_posterior_of_all_clients(x64: None) -> None:
    """One client per step, chosen by f: with exact surrogates mean and variance are those of the product."""
    chains, lr = 20_000, 0.4
    mu, P, f = np.array([-2.0, 1.0]), np.array([0.6, 0.4]), np.array([0.25, 0.75])
    tx = gk.fsgld(lr, means=jnp.asarray(mu)[:, None] * jnp.ones((2, chains)), key=0,
                  precisions=jnp.asarray(P)[:, None] * jnp.ones((2, chains)), shard_probs=f)  # fmt: skip
    x, center = jnp.zeros(chains), np.sum(P * mu) / P.sum()

    def step(carry: tuple, client: jax.Array) -> tuple:
        x, state = carry
        g = (jnp.asarray(P) / f)[client] * (x - jnp.asarray(mu)[client])
        updates, state = tx.update(g, state, x, client=client)
        return (x + updates, state), None

    clients = jnp.asarray(np.random.default_rng(0).choice(2, 60, p=f))
    (x, _), _ = jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), clients))(x)
    want = 1 / (1 - lr / 2)
    assert abs(np.mean(x) - center) < 5 * np.sqrt(want / chains)
    assert abs(np.var(x) / want - 1) < 5 * np.sqrt(2 / chains)


def test_bad_input() -> None:
    x, mu, P = surrogates()
    for f in ((0.5, 0.6), (1.0, 0.0), (), ((0.5, 0.5),)):
        with pytest.raises(ValueError, match="shard_probs must be positive numbers"):
            gk.conducive_gradient(mu, P, f)
    with pytest.raises(ValueError, match="means must be a tree like the parameters with a leading axis of 2 clients"):
        gk.conducive_gradient(mu, P, (0.5, 0.5)).init(x)
    tx = gk.conducive_gradient(mu, P, F)
    with pytest.raises(ValueError, match="conducive_gradient needs the extra argument client"):
        tx.update(x, tx.init(x), x)
