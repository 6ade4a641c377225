"""A step size that is measured: the same in every place of a chain, and frozen where it is not finite."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def counted() -> gk.Measure:
    """The loss over the norm, with the sum of losses as the state."""

    def update(total: jax.Array, g: Any, params: Any, *, value: jax.Array, **extra: Any) -> tuple[jax.Array, Any]:
        total = total + value
        return total / jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(g))), total

    return gk.Measure(lambda params: jnp.zeros(()), update)


def test_one_number_or_one_per_leaf(x64: None) -> None:
    g = {"a": normal(0, 3), "b": normal(1, 2)}
    tx = gk.scale_by_measured(counted())
    u, _ = tx.update(g, tx.init(g), g, value=jnp.asarray(2.0))
    norm = jnp.sqrt(jnp.sum(g["a"] ** 2) + jnp.sum(g["b"] ** 2))
    assert_equal(u, jax.tree.map(lambda x: 2 * x / norm, g))
    each = gk.Measure(lambda params: (), lambda s, g, p, **e: (jax.tree.map(lambda x: jnp.max(jnp.abs(x)), g), s))
    u, _ = gk.scale_by_measured(each).update(g, (), g)
    assert_equal(u, jax.tree.map(lambda x: x * jnp.abs(x).max(), g))


@pytest.mark.parametrize("method", [gk.momo, lambda: gk.dog(init_step=("heuristic", 1e-2))], ids=["momo", "dog"])
def test_the_trajectory_is_the_same_in_every_wrapper(method: Any, x64: None) -> None:
    """`chain`, `masked`, `partition` with one label, and jit."""
    start = {"a": normal(0, 3), "b": normal(1, 2)}
    grads = [jax.tree.map(lambda x, t=t: jnp.sin(x + t), start) for t in range(4)]

    def run(tx: Any, how: Any = lambda f: f) -> Any:
        x, state, update = start, tx.init(start), how(tx.update)
        for t, g in enumerate(grads):
            u, state = update(g, state, x, value=jnp.asarray(3.0 - t))
            x = optax.apply_updates(x, u)
        return x

    want = run(method())
    for tx in (
        optax.chain(method()),
        optax.masked(method(), True),
        optax.partition({"one": method()}, {"a": "one", "b": "one"}),
    ):
        assert_equal(run(tx), want, rtol=1e-14)
    assert_equal(run(method(), jax.jit), want)


@pytest.mark.parametrize("method", [gk.momo, gk.momo_adam, gk.dog, gk.a_dog], ids=lambda f: f.__name__)
def test_what_is_masked_is_not_measured(method: Any, x64: None) -> None:
    """A group of parameters has the steps that it has alone."""
    start = {"a": normal(0, 3), "b": normal(1, 2)}

    def run(tx: Any, x: Any) -> Any:
        state = tx.init(x)
        for t in range(3):
            g = jax.tree.map(lambda v, t=t: jnp.sin(v + t), x)
            u, state = tx.update(g, state, x, value=jnp.asarray(3.0 - t))
            x = optax.apply_updates(x, u)
        return x

    together = run(optax.partition({"one": method(), "none": gk.sgd(0.0)}, {"a": "one", "b": "none"}), start)
    assert_equal(together["a"], run(method(), {"a": start["a"]})["a"])
    assert_equal(together["b"], start["b"], rtol=0, atol=0)


def test_a_step_that_is_not_finite_is_skipped_where_asked(x64: None) -> None:
    g = {"a": normal(0, 3)}
    for skip in (True, False):
        tx = gk.scale_by_measured(counted(), skip_nonfinite=skip)
        _, state = tx.update(g, tx.init(g), g, value=jnp.asarray(1.0))
        u, after = tx.update(g, state, g, value=jnp.asarray(jnp.nan))
        assert bool(jnp.all(u["a"] == 0)) is skip
        assert bool(jnp.isfinite(after)) is skip
        if skip:
            assert_equal(after, state, rtol=0, atol=0)


@pytest.mark.parametrize("method", [gk.dog, gk.ldog, gk.u_dog, gk.a_dog, gk.momo], ids=lambda f: f.__name__)
def test_a_gradient_through_the_steps_is_finite(method: Any, x64: None) -> None:
    """Also through the first, where the distance from the start is 0, and through a step without gradient."""
    start, curvature = normal(0, 4), jnp.array([1.0, 0.5, 2.0, 0.1])

    def end(rate: jax.Array, scale: jax.Array) -> jax.Array:
        tx, x = method(rate), start
        state = tx.init(x)
        for t in range(3):
            grad_fn = lambda x, t=t: (0 if t == 0 else scale) * curvature * x  # noqa: E731
            u, state = tx.update(grad_fn(x), state, x, value=scale * curvature @ x**2 / 2, grad_fn=grad_fn)
            x = x + u
        return x @ x

    by_rate, by_scale = jax.jit(jax.grad(end, (0, 1)))(jnp.asarray(1.0), jnp.asarray(1.0))
    assert jnp.isfinite(by_rate) and jnp.isfinite(by_scale)


def test_what_is_no_measure_is_refused() -> None:
    with pytest.raises(ValueError, match=r"measure must be a gk\.Measure of two functions"):
        gk.scale_by_measured(lambda *_: 1.0)  # pyright: ignore[reportArgumentType]
