"""Friendly SAM (Li et al., 2024)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal

H = {"a": np.array([0.5, 1.0, 3.0]), "b": np.array([2.0, 0.1])}
X = {"a": np.array([1.0, -2.0, 0.5]), "b": np.array([0.3, 4.0])}


def loss(x: Any, noise: Any) -> Any:
    return sum(jnp.sum(jnp.asarray(H[k]) * x[k] ** 2 / 2 + noise[k] * x[k]) for k in x)


def flat(x: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x["a"]), np.asarray(x["b"])])


def noises(seed: int, count: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [{k: jnp.asarray(rng.standard_normal(v.shape)) for k, v in X.items()} for _ in range(count)]


def results(source: Any, batches: list[Any]) -> list[np.ndarray]:
    x = {k: jnp.asarray(v) for k, v in X.items()}
    state, out = source.init(x), []
    for noise in batches:
        _, g, state = source.value_and_grad(state, x, noise)
        out.append(flat(g))
    return out


@pytest.mark.parametrize("memory", ["previous", "current"])
def test_the_algorithm_in_numpy(memory: str, x64: None) -> None:
    batches, m = noises(0, 4), np.zeros(5)
    source = gk.gradients.friendly_sam(loss, 0.4, sigma=0.8, decay=0.6, memory=memory)
    for t, (got, noise) in enumerate(zip(results(source, batches), batches, strict=True)):
        g = flat(H) * flat(X) + flat(noise)
        new = g if t == 0 else 0.6 * m + 0.4 * g
        d = g if t == 0 else g - 0.8 * (m if memory == "previous" else new)
        want = flat(H) * (flat(X) + 0.4 * d / np.linalg.norm(d)) + flat(noise)
        assert_equal(got, want, rtol=1e-10)
        m = new


def test_with_nothing_left_out_it_is_sam(x64: None) -> None:
    batches = noises(1, 3)
    sam = gk.gradients.sam(loss, 0.4)
    x = {k: jnp.asarray(v) for k, v in X.items()}
    for got, noise in zip(results(gk.gradients.friendly_sam(loss, 0.4, sigma=0.0), batches), batches, strict=True):
        assert_equal(got, flat(sam(x, noise)[1]))


def test_without_noise_the_step_uphill_vanishes_but_for_its_length(x64: None) -> None:
    """The same gradient in every call: what is left after its mean is zero, and the result is the plain gradient."""
    batches = [{k: jnp.zeros_like(v) for k, v in X.items()}] * 4
    first, *later = results(gk.gradients.friendly_sam(loss, 0.4), batches)
    g = flat(H) * flat(X)
    assert np.abs(first - g).max() > 0.1
    for got in later:
        # The mean of equal numbers is off by a rounding, which 1e-12 is above.
        assert np.abs(got - g).max() < 0.4 * 3 * 1e-3


def test_the_step_uphill_is_along_the_noise(x64: None) -> None:
    """After many calls the mean is the gradient of all data, and what is climbed is the noise of this batch: the mean
    of a hundred noises, weighted by 0.9^k, has a length of about sqrt(0.1 / 1.9) of one."""
    batches = noises(2, 100)
    got = results(gk.gradients.friendly_sam(loss, 0.4), batches)[-1]
    e = (got - flat(batches[-1])) / flat(H) - flat(X)
    noise, g = flat(batches[-1]), flat(H) * flat(X) + flat(batches[-1])

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    assert cosine(e, noise) > 0.9 > cosine(g, noise)
