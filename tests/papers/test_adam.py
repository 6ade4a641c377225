"""Adam (Kingma, Ba, 2014)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_first_step_is_the_sign_of_the_gradient(x64: None) -> None:
    g = normal(0, 50)
    assert_equal(updates(gk.adam(0.1, eps=0.0), g, [g])[0], -0.1 * jnp.sign(g))


def test_invariant_to_the_scale_of_a_coordinate(x64: None) -> None:
    gradients = [normal(i, 20) for i in range(6)]
    scale = 10.0 ** normal(9, 20)
    tx = gk.adam(0.1, eps=0.0)
    assert_equal(updates(tx, gradients[0], gradients), updates(tx, gradients[0], [scale * g for g in gradients]))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("eps_root", [0.0, 1e-3])
def test_equals_optax(nesterov: bool, eps_root: float, x64: None) -> None:
    gradients = [normal(i, 5, 3) for i in range(8)]
    kwargs = {"b1": 0.8, "b2": 0.95, "eps": 1e-4, "eps_root": eps_root, "nesterov": nesterov}
    with jax.numpy_dtype_promotion("standard"):  # optax promotes its counters implicitly
        want = updates(optax.adam(0.1, **kwargs), gradients[0], gradients)
    # optax takes 1 - b^t in float32, since its counter is int32.
    assert_equal(updates(gk.adam(0.1, **kwargs), gradients[0], gradients), want, rtol=1e-6)


def test_b1_zero_is_rmsprop_with_bias_correction(x64: None) -> None:
    gradients, v = [normal(i, 7) for i in range(5)], 0.0
    for t, (g, u) in enumerate(
        zip(gradients, updates(gk.adam(1.0, b1=0.0, eps=0.0), gradients[0], gradients), strict=True)
    ):
        v = 0.999 * v + 0.001 * g**2
        assert_equal(u, -g / jnp.sqrt(v / (1 - 0.999 ** (t + 1))))


def test_nesterov_with_the_same_correction_is_the_code_of_adamp(x64: None) -> None:
    gradients = [normal(i, 7) for i in range(4)]
    m = v = np.zeros(7)
    got = updates(gk.scale_by_adam(nesterov=True, nesterov_correction="same", eps=1e-3), gradients[0], gradients)
    for t, (g, u) in enumerate(zip(gradients, got, strict=True)):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        c1, c2 = 1 - 0.9 ** (t + 1), 1 - 0.999 ** (t + 1)
        assert_equal(u, (0.9 * m + 0.1 * g) / c1 / (jnp.sqrt(v / c2) + 1e-3))


def test_second_moment_decays_with_bfloat16_parameters() -> None:
    """In bfloat16 a decay of 0.999 changes nothing: 0.999 v rounds to v. Kept in float32 it does what it says."""
    x, tx = jnp.ones(1, jnp.bfloat16), gk.scale_by_adam()
    state = tx.init(x)

    def many(state: Any, g: float, steps: int) -> Any:
        body = lambda s, _: (tx.update(jnp.full(1, g, jnp.bfloat16), s)[1], None)  # noqa: E731
        return jax.lax.scan(body, state, None, steps)[0]

    state = many(many(state, 1.0, 1000), 0.0, 2000)
    want = (1 - 0.999**1000) * 0.999**2000
    # 3000 roundings of 2^-24 each
    np.testing.assert_allclose(np.asarray(state.nu), want, rtol=3000 * 2**-24)


def test_low_precision_first_moment(x64: None) -> None:
    """Kept in bfloat16 between steps, the moment is off by one rounding (2^-8) per step, and weighted."""
    gradients = [normal(i, 30) for i in range(5)]
    exact = updates(gk.scale_by_adam(), gradients[0], gradients)
    low = updates(gk.scale_by_adam(mu_dtype=jnp.bfloat16), gradients[0], gradients)
    for t, (a, b) in enumerate(zip(exact, low, strict=True)):
        # |m / c1| <= max |g| over sqrt(v / c2); each of the t+1 roundings adds at most 2^-8 of that to m.
        worst = max(float(jnp.abs(g).max()) for g in gradients[: t + 1])
        smallest = jnp.sqrt(
            sum(0.001 * 0.999 ** (t - i) * g**2 for i, g in enumerate(gradients[: t + 1])) / (1 - 0.999 ** (t + 1))
        )
        assert jnp.all(jnp.abs(a - b) <= (t + 1) * 2**-8 * worst / smallest)
