"""Batches of clusters (NGAME; Dahiya et al., 2023)."""

import jax
import numpy as np
import pytest

from gradkit.batches import cluster_batches
from tests.papers.replay import normal


@pytest.mark.parametrize(("n", "cluster_size"), [(24, 4), (21, 2), (21, 1), (9, 9), (7, 3)])
def test_every_example_once_per_epoch(n: int, cluster_size: int) -> None:
    """Whatever is filled up."""
    x = np.asarray(normal(0, n, 3))
    got = np.asarray(jax.jit(lambda x: cluster_batches(1, x, cluster_size, 1))(x)).reshape(-1)
    assert sorted(got) == list(range(n))


def test_groups_that_are_apart_are_batches() -> None:
    """Four directions with four examples each, in any order: a batch has one of them; the order of batches is drawn."""
    rng = np.random.default_rng(0)
    label = rng.permutation(np.repeat(np.arange(4), 4))
    centres = np.array([[1, 1, 0], [1, -1, 0], [-1, 0, 1], [-1, 0, -1]])
    x = (centres[label] + 0.01 * rng.standard_normal((16, 3))) * rng.uniform(1, 5, (16, 1))
    firsts = set()
    for key in range(6):
        batches = np.asarray(cluster_batches(key, x.astype(np.float32), 4, 4))
        found = label[batches]
        assert (found == found[:, :1]).all()
        firsts.add(int(found[0, 0]))
    assert len(firsts) > 1


def test_clusters_of_one_are_a_uniform_shuffle() -> None:
    """The first example of an epoch is any of five with the same frequency."""
    x = np.asarray(normal(0, 5, 2))
    first = jax.jit(jax.vmap(lambda key: cluster_batches(key, x, 1, 2)[0, 0]))
    counts = np.bincount(first(jax.random.split(jax.random.key(0), 2000)), minlength=5)
    np.testing.assert_allclose(counts / 2000, 0.2, atol=5 * np.sqrt(0.16 / 2000))


def test_bad_input() -> None:
    x = np.ones((4, 2), np.float32)
    for name, bad in (("cluster_size", 0), ("batch_size", 5), ("iterations", -1)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            cluster_batches(**{"key": 0, "embeddings": x, "cluster_size": 2, "batch_size": 2, name: bad})
