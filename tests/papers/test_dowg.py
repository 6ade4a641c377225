"""DoWG (Khaled, Mishchenko, Jin, 2023)."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import gradkit as gk
from tests.papers.replay import assert_equal, descend, normal, updates


def test_the_algorithm_in_numpy(x64: None) -> None:
    """eps is large enough to see in both of its places; the factor is none of what is measured."""
    x, grads, eps = normal(0, 6), [normal(t, 6) for t in range(1, 9)], 0.05
    got = updates(gk.dowg(4.0, eps=eps), x, grads)
    path, R, v = np.asarray(x), eps, 0.0
    for u, g in zip(got, map(np.asarray, grads), strict=True):
        R = max(R, ((path - np.asarray(x)) ** 2).sum())
        v += R * g @ g
        want = -4 * R / (np.sqrt(v) + eps) * g
        assert_equal(u, want)
        path = path + want
    assert eps < R


def test_the_trajectory_does_not_know_the_scale_of_the_loss(x64: None) -> None:
    """Up to eps in the root, which is as nothing beside gradients of a million."""
    x, curvature = normal(0, 5), jnp.linspace(0.1, 3.0, 5)

    def end(scale: float) -> Any:
        return descend(gk.dowg(eps=1e-3), x, lambda x: scale * curvature * x, 20)

    # eps / sqrt(v) with v above 1e-3 (1e12)^2, in twenty steps which double what they start from.
    assert_equal(end(1e12), end(1e15), rtol=1e-6)


def test_a_step_is_no_shorter_than_that_of_dog(x64: None) -> None:
    """From one start, with one first distance: R / sqrt(v) >= r / sqrt(G), at the same points."""
    x, grads = normal(0, 6), [normal(t, 6) for t in range(1, 9)]
    dowg, dog = gk.scale_by_dowg(eps=1e-12), gk.scale_by_dog(init_step=("distance", 1e-6), eps=0.0)
    mine, theirs, path = dowg.init(x), dog.init(x), x
    for g in grads:
        u, mine = dowg.update(g, mine, path)
        v, theirs = dog.update(g, theirs, path)
        # eps in the root, of 1e-6 |g|.
        assert float(jnp.linalg.norm(u)) >= float(jnp.linalg.norm(v)) * (1 - 1e-5)
        path = path - u
