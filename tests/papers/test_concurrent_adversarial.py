"""Concurrent adversarial learning (Liu et al., 2022)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradkit.gradients import concurrent_adversarial
from tests.papers.replay import assert_equal, normal

pytestmark = pytest.mark.slow


def loss(w: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(jnp.tanh(x @ w) - y))


def data() -> tuple[jax.Array, jax.Array, jax.Array]:
    return normal(0, 3), normal(1, 6, 3), normal(2, 6)


def by_hand(norm: str, radius: float, step: float, tau: int, weight: float, steps: int = 5) -> list[Any]:
    """The weights of plain SGD, with its own list of past ones; inputs moved example by example."""
    w, x, y = data()
    past, grad = [w], jax.jit(jax.value_and_grad(loss))
    for t in range(steps):
        delta = step * np.asarray(jax.jit(jax.grad(loss, 1))(past[max(t - tau, 0)], x, y))
        if norm == "linf":
            delta = np.minimum(np.maximum(delta, -radius), radius)
        else:
            delta = np.stack([d if np.linalg.norm(d) <= radius else d * radius / np.linalg.norm(d) for d in delta])
        w = w - 0.1 * (grad(w, x, y)[1] + weight * grad(w, x + delta, y)[1])
        past.append(w)
    return past


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("tau", [0, 1, 3])
def test_twins_are_those_of_the_weights_tau_steps_ago(norm: str, tau: int, x64: None) -> None:
    """Of the first weights as long as there are no older ones; some examples are clipped, and some are not."""
    w, x, y = data()
    source = concurrent_adversarial(loss, 0.05, 1.0, tau=tau, weight=0.5, norm=norm)

    def step(carry: Any, _: None) -> Any:
        w, state = carry
        (_, g), state = source.value_and_grad(w, state, x, y)
        return (w - 0.1 * g, state), w

    _, path = jax.jit(lambda w: jax.lax.scan(step, (w, source.init(w)), None, 6))(w)
    assert_equal(path, jnp.stack(by_hand(norm, 0.05, 1.0, tau, 0.5)))


def test_without_radius_it_is_the_plain_gradient_twice(x64: None) -> None:
    w, x, y = data()
    for source in (concurrent_adversarial(loss, 0.0, 1.0, norm=n) for n in ("linf", "l2")):
        result, _ = source.value_and_grad(w, source.init(w), x, y)
        assert_equal(result, jax.tree.map(lambda v: 2 * v, jax.value_and_grad(loss)(w, x, y)))


def test_a_large_step_is_the_sign(x64: None) -> None:
    """Of a linear model: every input moves by the radius, against the prediction."""
    w, x = jnp.array([2.0, -1.0]), normal(0, 4, 2)
    source = concurrent_adversarial(lambda w, x: jnp.mean(x @ w), 0.3, 1e9, weight=2.0, tau=0)
    (value, g), state = source.value_and_grad(w, source.init(w), x)
    assert_equal(value, 3 * jnp.mean(x @ w) + 2 * 0.3 * 3.0)
    assert_equal(g, 3 * x.mean(0) + 2 * 0.3 * jnp.sign(w))
    assert state.stale is None


def test_statistics_of_the_two_passes_never_mix(x64: None) -> None:
    """The loss sees the first model state on the batch and the second on the twins; aux comes back as a pair."""

    def normed(w: Any, x: jax.Array, *, model_state: Any) -> Any:
        new = 0.9 * model_state + 0.1 * jnp.mean(x)
        return jnp.mean(w * (x - model_state)), new

    source = concurrent_adversarial(normed, 0.5, 100.0, has_aux=True)
    w, x, states = jnp.asarray(2.0), jnp.array([1.0, 3.0]), (jnp.asarray(1.0), jnp.asarray(5.0))
    ((value, (clean, twin)), g), _ = source.value_and_grad(w, source.init(w), x, model_states=states)
    assert_equal((clean, twin), (0.9 + 0.2, 4.5 + 0.25))
    assert_equal((value, g), (2 * (2.0 - 1.0) + 2 * (2.5 - 5.0), 1.0 - 2.5))


def test_state_is_tau_copies_and_keeps_its_form() -> None:
    params = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(3)}
    source = concurrent_adversarial(lambda p, x: jnp.mean(x) * jnp.sum(p["b"]), 0.1, 1.0, tau=3)
    state = source.init(params)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state)
    assert shapes.stale["a"] == ((3, 2, 3), jnp.bfloat16, False)
    (_, g), state = jax.jit(source.value_and_grad)(params, state, jnp.ones(2))
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state) == shapes
    assert g["a"].dtype == jnp.bfloat16
    tx = optax.chain(optax.clip(1.0), optax.sgd(0.1))
    assert jax.tree.structure(tx.update(g, tx.init(params), params)[0]) == jax.tree.structure(params)


def test_bad_input() -> None:
    good = {"radius": 0.1, "step": 1.0}
    for name, bad in (
        ("radius", -1.0),
        ("step", float("nan")),
        ("tau", -1),
        ("tau", 1.5),
        ("weight", -0.1),
        ("norm", 2),
    ):
        with pytest.raises(ValueError, match=f"{name} must be"):
            concurrent_adversarial(loss, **{**good, name: bad})
    source, w = concurrent_adversarial(lambda w, x: jnp.sum(w), 0.1, 1.0), jnp.ones(2)
    for x in (jnp.arange(3), {"image": jnp.ones(3), "label": jnp.arange(3)}, jnp.ones(())):
        with pytest.raises(ValueError, match="x must be floating point"):
            source.value_and_grad(w, source.init(w), x)
