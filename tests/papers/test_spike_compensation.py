"""Momentum of delayed gradients: its reductions, the total effect of a gradient, and a pipeline with late gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk


def path(tx: Any, g: Any, x: Any = None) -> Any:
    x = jax.tree.map(lambda g: jnp.zeros_like(g[0]), g) if x is None else x

    def step(carry: Any, g: Any) -> Any:
        x, state = carry
        u, state = tx.update(g, state, x)
        x = jax.tree.map(jnp.add, x, u)
        return (x, state), x

    return jax.tree.map(np.asarray, jax.jit(lambda x, g: jax.lax.scan(step, (x, tx.init(x)), g)[1])(x, g))


RATE = 0.03  # at which momentum of gradients four steps old diverges on a curvature of 1
G = np.random.default_rng(0).standard_normal((9, 3))


@pytest.mark.parametrize(("delay", "nesterov"), [(0, False), (1, True)])
def test_delays_of_zero_and_one_are_momentum_and_nesterov(delay: int, nesterov: bool, x64: None) -> None:
    got = path(gk.spike_compensation(0.1, momentum=0.8, delay=delay), jnp.asarray(G))
    want = path(optax.sgd(0.1, 0.8, nesterov=nesterov), jnp.asarray(G))
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("delay", [0, 1, 3, 10])
def test_a_gradient_has_the_same_total_effect_with_every_delay(delay: int, x64: None) -> None:
    """1 / (1 - m), whatever the delay is."""
    g = jnp.zeros(400).at[0].set(1.0)
    end = path(gk.spike_compensation(1.0, momentum=0.9, delay=delay), g)[-1]
    np.testing.assert_allclose(end, -10.0, rtol=1e-12)


def test_the_delay_of_one_gradient_is_compensated_at_once(x64: None) -> None:
    """From the step in which a gradient arrives D late, it has moved x as if it had come in time."""
    g, D = jnp.zeros(30).at[0].set(1.0), 4
    late = path(gk.spike_compensation(1.0, momentum=0.8, delay=D), g)
    in_time = path(optax.sgd(1.0, 0.8), g)
    np.testing.assert_allclose(late[:-D], in_time[D:], rtol=1e-12)


def test_very_old_gradients_move_all_at_once(x64: None) -> None:
    got = path(gk.spike_compensation(0.1, momentum=0.9, delay=1000), jnp.asarray(G))
    np.testing.assert_allclose(got, -0.1 * np.cumsum(G, 0) / (1 - 0.9), rtol=1e-6)


def test_momentum_of_one_and_traced_momentum(x64: None) -> None:
    made: Any = lambda m: gk.scale_by_spike_compensation(momentum=m, delay=3)  # noqa: E731
    g = jnp.array([2.0])
    np.testing.assert_allclose(made(1.0).update(g, made(1.0).init(g))[0], 2.0 + 3 * 2.0)
    for m in (1.0, 0.9):
        traced = jax.jit(lambda m: made(m).update(g, made(m).init(g))[0])(m)
        np.testing.assert_allclose(traced, made(m).update(g, made(m).init(g))[0], rtol=1e-12)


def test_every_leaf_has_its_own_delay(x64: None) -> None:
    """Stages of a pipeline."""
    g = {"a": jnp.asarray(G), "b": 2 * jnp.asarray(G)}
    got = path(gk.spike_compensation(0.1, delay={"a": 4, "b": 0}), g)
    for leaf, delay in (("a", 4), ("b", 0)):
        np.testing.assert_allclose(got[leaf], path(gk.spike_compensation(0.1, delay=delay), g[leaf]), rtol=1e-13)
    with pytest.raises(ValueError, match="delay must be an integer >= 0 or a tree like the parameters"):
        gk.spike_compensation(0.1, delay={"a": 1}).init({"a": jnp.zeros(2), "b": jnp.zeros(2)})
    for bad in (-1, 1.5, True, None, {"a": -1}):
        with pytest.raises(ValueError, match="delay must be"):
            gk.spike_compensation(0.1, delay=bad)


def pipeline(tx: Any, delay: int, predict: bool, steps: int = 400) -> np.ndarray:
    """|x| on a quadratic whose gradients are late."""
    stale = gk.stale_gradients(jax.value_and_grad(lambda x: jnp.sum(jnp.array([1.0, 0.2]) * x**2) / 2), delay)

    def step(carry: Any, _: None) -> Any:
        x, state, history = carry
        ahead = gk.linear_weight_prediction(x, state[1].trace, RATE, delay) if predict else x
        _, g, history = stale.value_and_grad(ahead, history)
        u, state = tx.update(g, state, x)
        return (x + u, state, history), jnp.linalg.norm(x)

    x = jnp.array([1.0, 1.0])
    return np.asarray(jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x), stale.init(x)), None, steps)[1])(x))


def test_a_late_pipeline_diverges_with_momentum_and_not_when_it_is_compensated(x64: None) -> None:
    D = 4

    def shrinks(delay: int, predict: bool) -> bool:
        norms = pipeline(gk.spike_compensation(RATE, delay=delay), D, predict)
        return norms[-100:].max() < norms[:100].max() / 5

    assert not shrinks(0, False)
    assert shrinks(D, False) and shrinks(0, True) and shrinks(D, True)


def test_stale_gradients_are_those_of_old_parameters_leaf_by_leaf() -> None:
    seen = []

    def value_and_grad(x: Any) -> Any:
        seen.append({leaf: float(v) for leaf, v in x.items()})
        return jnp.zeros(()), x

    stale = gk.stale_gradients(value_and_grad, {"a": 0, "b": 2})
    history = stale.init({"a": jnp.zeros(()), "b": jnp.zeros(())})
    for t in range(5):
        x = jnp.asarray(float(t))
        _, _, history = stale.value_and_grad({"a": x, "b": x}, history)
    assert [s["a"] for s in seen] == [0, 1, 2, 3, 4] and [s["b"] for s in seen] == [0, 0, 0, 1, 2]


def test_weight_prediction_in_both_forms(x64: None) -> None:
    x, v = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([4.0, -2.0])}
    by_velocity = gk.linear_weight_prediction(x, v, 0.1, 3)["w"]
    np.testing.assert_allclose(by_velocity, [1 - 1.2, 2 + 0.6])
    before = jax.tree.map(lambda x, v: x + 0.1 * v, x, v)
    by_weights = gk.linear_weight_prediction(x, jax.tree.map(jnp.subtract, x, before), -1.0, {"w": 3})["w"]
    np.testing.assert_allclose(by_weights, by_velocity, rtol=1e-12)
    with pytest.raises(ValueError, match="horizon must be"):
        gk.linear_weight_prediction(x, v, 0.1, -1)


def test_hyperparameters_at_another_batch_size() -> None:
    start = {"learning_rate": 0.1, "momentum": 0.9, "seed": 3}
    assert gk.scale_hyperparameters(start, 64, 64) == pytest.approx(start)
    new = gk.scale_hyperparameters(start, 1, 128)
    # An example decays by the same factor, and weighs learning_rate / (N (1 - m)) in the end.
    assert new["momentum"] ** 128 == pytest.approx(0.9)
    per_example = [h["learning_rate"] / (n * (1 - h["momentum"])) for h, n in ((start, 128), (new, 1))]
    assert per_example[0] == pytest.approx(per_example[1]) and new["seed"] == 3
    with pytest.raises(ValueError, match="hparams must have"):
        gk.scale_hyperparameters({"momentum": 0.9}, 1, 2)
    with pytest.raises(ValueError, match="batch_size must be"):
        gk.scale_hyperparameters(start, 0, 2)
