"""AdaGrad on clipped gradients (Chezhegov et al., 2024)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_without_clipping_and_delay_it_is_adagrad(x64: None) -> None:
    gradients = [normal(i, 6) for i in range(5)]
    plain = updates(gk.adagrad(0.1), gradients[0], gradients)
    assert_equal(updates(gk.clip_adagrad(0.1, max_norm=np.inf), gradients[0], gradients), plain)
    of_norm = updates(gk.clip_adagrad(0.1, max_norm=np.inf, norm=True, eps=0.0), gradients[0], gradients)
    total = 0.0
    for g, u in zip(gradients, of_norm, strict=True):
        total = total + jnp.sum(g**2)
        assert_equal(u, -0.1 * g / jnp.sqrt(total))


def test_step_and_sum_have_the_clipped_gradient(x64: None) -> None:
    gradients = [10 * normal(i, 6) for i in range(4)]
    total = 0.04
    for g, u in zip(gradients, updates(gk.clip_radagradd(0.1, **_delayed()), gradients[0], gradients), strict=True):
        c = g * min(1.0, 2.0 / float(jnp.linalg.norm(g)))
        assert_equal(u, -0.1 * c / jnp.sqrt(total))
        total = total + 0.5 * float(jnp.sum(c**2))


def _delayed() -> dict:
    return {"max_norm": 2.0, "reweight": 0.5, "initial_accumulator_value": 0.04, "eps": 0.0}


def test_first_step_is_the_clipped_gradient_over_the_start(x64: None) -> None:
    """However long the gradient beyond the clipping level."""
    g = normal(0, 6)
    want = -0.1 * 2.0 * g / jnp.linalg.norm(g) / 0.2
    for scale in (10.0, 1e6):
        assert_equal(updates(gk.clip_radagradd(0.1, **_delayed()), g, [scale * g])[0], want)


@pytest.mark.parametrize("clipping", ["global", "local", "elementwise"])
def test_ways_to_clip_and_sums_per_coordinate(clipping: str, x64: None) -> None:
    layers = normal(0, 3, 4)
    g = {"ScanBlock_0": layers}
    limit = {
        "global": jnp.linalg.norm(layers) * jnp.ones((3, 1)),
        "local": jnp.linalg.norm(layers, axis=1, keepdims=True) + 1e-6,
        "elementwise": jnp.abs(layers),
    }[clipping]
    c = layers * jnp.minimum(0.5 / limit, 1.0)
    tx = gk.clip_radagradd(1.0, max_norm=0.5, clipping=clipping, norm=False, initial_accumulator_value=4.0, eps=0.0)
    first, second = updates(tx, g, [g, g])
    assert_equal(first["ScanBlock_0"], -c / 2)
    assert_equal(second["ScanBlock_0"], -c / jnp.sqrt(4 + c**2))


def test_heavy_tails(x64: None) -> None:
    """f = x^2 / 2 with noise whose tail is s^-1.5, so without a variance: over 200 seeds, 95 of 100 runs with clipping
    end far closer to 0 than without."""
    steps, seeds = 200, 200
    rng = np.random.default_rng(0)
    noise = rng.choice([-1.0, 1.0], (steps, seeds)) * rng.random((steps, seeds)) ** (-1 / 1.5)

    def last(max_norm: float) -> np.ndarray:
        tx = gk.clip_radagradd(0.5, max_norm=max_norm, initial_accumulator_value=1.0)

        def one(noise: jax.Array) -> jax.Array:
            def step(carry: tuple, xi: jax.Array) -> tuple:
                x, state = carry
                u, state = tx.update(x + xi, state, x)
                return (x + u, state), None

            start = jnp.ones(())
            return jax.lax.scan(step, (start, tx.init(start)), noise)[0][0]

        return np.abs(jax.jit(jax.vmap(one, in_axes=1))(jnp.asarray(noise)))

    clipped, free = np.quantile(last(1.0), 0.95), np.quantile(last(np.inf), 0.95)
    assert clipped < 0.5 * free
