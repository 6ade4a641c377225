"""Momentum per cluster (Tondji et al., 2021)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def mean_of(labels: list[int], gradients: np.ndarray, K: int) -> dict:
    """What a batch gives: the mean gradient of each cluster's examples (NaN where there are none), and how many."""
    counts = np.bincount(labels, minlength=K)
    sums = np.zeros((K, gradients.shape[1]))
    np.add.at(sums, labels, gradients)
    with np.errstate(invalid="ignore"):
        return {"cluster_grads": jnp.asarray(sums / counts[:, None]), "cluster_counts": jnp.asarray(counts)}


def test_it_is_unbiased_for_any_momenta(x64: None) -> None:
    """Over all batches of two drawn from four examples, with what an earlier state holds."""
    examples, labels = np.asarray(normal(0, 4, 3)), np.array([0, 0, 0, 1])
    tx = gk.cluster_momentum(2, cluster_probs=[0.75, 0.25])
    state = tx.init(jnp.zeros(3))._replace(momenta=normal(1, 2, 3))
    out = [
        tx.update(jnp.zeros(3), state, **mean_of(labels[[i, j]], examples[[i, j]], 2))[0]
        for i, j in itertools.product(range(4), repeat=2)
    ]
    assert_equal(jnp.mean(jnp.stack(out), 0), examples.mean(0))


def test_one_cluster_changes_nothing(x64: None) -> None:
    tx = gk.cluster_momentum(1)
    state = tx.init(jnp.zeros(3))
    for t in range(4):
        g = normal(t, 3)
        v, state = tx.update(g, state, cluster_grads=g[None], cluster_counts=jnp.array([7]))
        assert_equal(v, g)


def test_equations_with_absent_clusters(x64: None) -> None:
    rng, m = np.random.default_rng(0), np.zeros((3, 4))
    p = np.array([0.5, 0.3, 0.2])
    tx = gk.cluster_momentum(3, beta=0.6, cluster_probs=p)
    state = tx.init(jnp.zeros(4))
    for counts in ([2, 1, 1], [0, 3, 1], [4, 0, 0]):
        n, g = np.array(counts), rng.standard_normal((3, 4))
        g[n == 0] = np.nan
        v, state = tx.update(jnp.zeros(4), state, cluster_grads=jnp.asarray(g), cluster_counts=jnp.asarray(n))
        seen = np.where(n[:, None] > 0, g - m, 0)
        assert_equal(v, (n / n.sum()) @ seen + p @ m)
        m = m + 0.4 * seen
        assert_equal(state.momenta, m)


def test_without_noise_inside_clusters_the_variance_vanishes(x64: None) -> None:
    """Every example is its cluster's mean: batches differ in their counts alone, and soon not at all in v."""
    centres, rng = np.asarray(normal(0, 3, 5)), np.random.default_rng(0)
    tx = gk.cluster_momentum(3, beta=0.5)
    state, noise = tx.init(jnp.zeros(5)), []
    for _ in range(60):
        labels = rng.integers(0, 3, 8)
        v, state = tx.update(jnp.zeros(5), state, **mean_of(labels, centres[labels], 3))
        noise.append(
            (float(jnp.linalg.norm(v - centres.mean(0))), np.linalg.norm(centres[labels].mean(0) - centres.mean(0)))
        )
    assert max(v for v, _ in noise[-10:]) < 1e-12 < 0.1 < max(g for _, g in noise[-10:])


def test_beta_zero_is_saga_with_a_slot_per_cluster(x64: None) -> None:
    """Batches of one example, each a cluster."""
    ours, saga = gk.cluster_momentum(4, beta=0.0), gk.saga_estimator(4)
    a, b = ours.init(jnp.zeros(3)), saga.init(jnp.zeros(3))
    for t, j in enumerate([2, 0, 2, 3, 1, 1, 0]):
        g = normal(t, 3)
        v, a = ours.update(g, a, cluster_grads=jnp.zeros((4, 3)).at[j].set(g), cluster_counts=jax.nn.one_hot(j, 4))
        w, b = saga.update(g, b, index=j)
        assert_equal(v, w)


def test_bad_input() -> None:
    for p in ([0.5, 0.6], [1.5, -0.5], [1.0]):
        with pytest.raises(ValueError, match="cluster_probs must be"):
            gk.cluster_momentum(2, cluster_probs=p)
    tx, x = gk.cluster_momentum(2), jnp.ones(3)
    with pytest.raises(ValueError, match="needs the extra argument cluster_grads"):
        tx.update(x, tx.init(x))
    with pytest.raises(ValueError, match="must have a leading axis of 2"):
        tx.update(x, tx.init(x), cluster_grads=jnp.ones((3, 3)), cluster_counts=jnp.ones(3))
    with pytest.raises(ValueError, match="must not sum to 0"):
        tx.update(x, tx.init(x), cluster_grads=jnp.ones((2, 3)), cluster_counts=jnp.zeros(2))
