"""Task-based flat regions (Phan et al., 2022)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.gradients import flat_multi_task

F64 = 1e-12
MEAN = optax.stateless(lambda g, _: jax.tree.map(lambda x: x.mean(0), g))
TASKS = [
    lambda s, h: jnp.sum(jnp.sin(s["w"]) * h),
    lambda s, h: jnp.sum((s["w"] - h) ** 4),
    lambda s, h: jnp.sum(s["w"]) ** 2,
]
W, HEADS = np.array([0.4, -1.1]), [np.array([1.0, 0.5]), np.array([0.2, 0.3]), ()]


def run(aggregator, rho, **options):
    source = flat_multi_task(TASKS, aggregator, rho, **options)
    s = {"w": jnp.asarray(W)}
    return source.gradients(source.init(s), s, jax.tree.map(jnp.asarray, HEADS))


def displaced(i, rho, *, adaptive):
    """The gradients of task i at its own worst point, by NumPy's norms."""
    both = ({"w": jnp.asarray(W)}, jax.tree.map(jnp.asarray, HEADS[i]))
    g = jax.grad(lambda both: TASKS[i](*both))(both)
    T = jax.tree.map(lambda x: np.abs(x) if adaptive else np.ones_like(x), both)
    norm = np.sqrt(sum(np.sum(np.asarray(t * g) ** 2) for t, g in zip(*map(jax.tree.leaves, (T, g)), strict=True)))
    there = jax.tree.map(lambda x, g, t: x + rho * t * t * g / norm, both, g, T)
    return g, jax.grad(lambda both: TASKS[i](*both))(there)


@pytest.mark.parametrize("adaptive", [False, True])
def test_with_a_linear_aggregator_it_is_the_mean_of_the_displaced_gradients(adaptive, x64):
    losses, (shared, own), _ = run(MEAN, 0.1, adaptive=adaptive)
    pairs = [displaced(i, 0.1, adaptive=adaptive) for i in range(3)]
    np.testing.assert_allclose(shared["w"], np.mean([f[0]["w"] for _, f in pairs], axis=0), rtol=F64)
    for got, (_, f) in zip(own, pairs, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=F64), got, f[1])
    want = [TASKS[i]({"w": jnp.asarray(W)}, jax.tree.map(jnp.asarray, h)) for i, h in enumerate(HEADS)]
    np.testing.assert_allclose(losses, want, rtol=F64)


def test_losses_and_flatness_are_aggregated_apart(x64):
    """A sum of two aggregates, which for an aggregator that is not linear is not the aggregate of the sum."""
    signs = optax.stateless(lambda g, _: jax.tree.map(lambda x: jnp.sign(x.sum(0)), g))
    _, (shared, _), _ = run(signs, 0.1)
    pairs = [displaced(i, 0.1, adaptive=False) for i in range(3)]
    near = np.sum([g[0]["w"] for g, _ in pairs], axis=0)
    flat = np.sum([f[0]["w"] - g[0]["w"] for g, f in pairs], axis=0)
    np.testing.assert_array_equal(shared["w"], np.sign(near) + np.sign(flat))


def test_as_rho_falls_only_the_aggregate_of_the_losses_is_left(x64):
    """rho = 1e-9 moves a gradient by less than its curvature, some 50, times that."""
    _, (shared, _), _ = run(gk.aggregation.upgrad(), 0.0)
    _, (small, _), _ = run(MEAN, 1e-9)
    _, (none, _), _ = run(MEAN, 0.0)
    np.testing.assert_allclose(small["w"], none["w"], atol=1e-7)
    assert np.all(np.isfinite(shared["w"]))


def test_a_head_per_task_is_asked_for():
    with pytest.raises(ValueError, match="one tree per task, 3, got 1"):
        flat_multi_task(TASKS, MEAN).gradients((), {"w": jnp.ones(2)}, [()])
