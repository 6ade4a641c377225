"""Adam under a schedule of its momentum: the mean of gradients is one, whatever decays it was made with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk

T = 12


def run(tx: optax.GradientTransformation, gradients: np.ndarray) -> np.ndarray:
    def step(state: optax.OptState, g: jax.Array) -> tuple:
        updates, state = tx.update(g, state)
        return state, updates

    return np.asarray(jax.jit(lambda g: jax.lax.scan(step, tx.init(g[0]), g)[1])(jnp.asarray(gradients)))


def test_a_constant_gradient_has_itself_as_its_mean(x64: None) -> None:
    """At every step of a cycle the direction is its sign; with 1 - b1_t^t, as torch has it, it is not."""
    schedule = gk.schedules.one_cycle_b1(T, anneal="linear")
    gradients = np.tile([3.0, -0.2], (T, 1))
    ours = run(gk.scale_by_scheduled_adam(b1=schedule, eps=0.0), gradients)
    np.testing.assert_allclose(ours, np.sign(gradients), rtol=1e-13)
    torchs = run(gk.inject_hyperparams(gk.scale_by_adam)(b1=schedule, eps=0.0), gradients)
    assert np.abs(np.abs(torchs) - 1).max() > 0.1


def test_the_weight_is_one_minus_the_product(x64: None) -> None:
    """Random gradients: m_t / (1 - prod b1), in NumPy."""
    rng = np.random.default_rng(0)
    schedule = gk.schedules.one_cycle_b1(T)
    gradients, decays = rng.normal(size=(T, 3)), np.asarray(schedule(jnp.arange(T)))
    m = v = 0.0
    want = []
    for t, (g, b1) in enumerate(zip(gradients, decays, strict=True)):
        m, v = b1 * m + (1 - b1) * g, 0.99 * v + 0.01 * g**2
        want.append(m / (1 - np.prod(decays[: t + 1])) / (np.sqrt(v / (1 - 0.99 ** (t + 1))) + 1e-8))
    got = run(gk.scale_by_scheduled_adam(b1=schedule, b2=0.99), gradients)
    np.testing.assert_allclose(got, want, rtol=1e-11)


def test_with_a_number_it_is_adam(x64: None) -> None:
    gradients = np.random.default_rng(1).normal(size=(T, 3))
    same = [run(make(b1=0.8, eps_root=1e-6), gradients) for make in (gk.scale_by_scheduled_adam, gk.scale_by_adam)]
    np.testing.assert_allclose(*same, rtol=1e-12)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"b1 must be in \[0, 1\) or a schedule, got 1.0"):
        gk.scale_by_scheduled_adam(b1=1.0)
    tx = gk.scale_by_scheduled_adam(b1=lambda step: jnp.ones(2))
    with pytest.raises(ValueError, match="b1 must be one number"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
