"""AdaMax (Kingma, Ba, 2014)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_equations(x64: None) -> None:
    gradients = [normal(i, 6) / (i + 1) for i in range(7)]
    m = w = np.zeros(6)
    got = updates(gk.scale_by_adamax(b1=0.7, b2=0.8, eps=0.1), gradients[0], gradients)
    for t, (g, u) in enumerate(zip(gradients, got, strict=True), 1):
        m, w = 0.7 * m + 0.3 * np.asarray(g), np.maximum(0.8 * w, np.abs(g) + 0.1)
        assert_equal(u, m / (1 - 0.7**t) / w)


def test_equals_optax(x64: None) -> None:
    gradients = [normal(i, 5, 3) for i in range(6)]
    kwargs = {"b1": 0.8, "b2": 0.95, "eps": 1e-4}
    with jax.numpy_dtype_promotion("standard"):  # optax promotes its counters implicitly
        want = updates(optax.adamax(0.1, **kwargs), gradients[0], gradients)
    # optax takes 1 - b^t in float32, since its counter is int32.
    assert_equal(updates(gk.adamax(0.1, **kwargs), gradients[0], gradients), want, rtol=1e-6)


def test_no_entry_of_a_step_exceeds_the_learning_rate_as_b2_goes_to_one(x64: None) -> None:
    """The paper's bound: for b2 = 1 nearly, m is a mean of gradients none of which exceeds w."""
    gradients = [10.0 ** (i % 4) * normal(i, 50) for i in range(20)]
    got = updates(gk.adamax(0.1, b2=1 - 1e-12), gradients[0], gradients)
    assert max(float(jnp.abs(u).max()) for u in got) <= 0.1 * (1 + 1e-9)


def test_does_not_depend_on_the_scale_of_a_coordinate(x64: None) -> None:
    gradients, scale = [normal(i, 20) for i in range(6)], 10.0 ** normal(9, 20)
    tx = gk.adamax(0.1, eps=0.0)
    assert_equal(updates(tx, gradients[0], gradients), updates(tx, gradients[0], [scale * g for g in gradients]))
