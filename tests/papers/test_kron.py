"""PSGD Kron: what it makes is white, its factors stay definite, refreshes follow p(t), and stacks are tensors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.transforms.kron import fading
from tests.papers.replay import assert_equal, normal


def run(tx: Any, x: Any, gradients: Any, **extra: Any) -> tuple[Any, Any]:
    """All directions and the last state of a run on gradients along a leading axis."""

    def step(state: Any, now: Any) -> Any:
        u, state = tx.update(now[0], state, x, **dict(zip(extra, now[1:], strict=True)))
        return state, u

    state, out = jax.jit(lambda rows: jax.lax.scan(step, tx.init(x), rows))((gradients, *extra.values()))
    return out, state


def factors(state: Any) -> list[jax.Array]:
    """Those of the only tensor of a run."""
    return [state.Q[axis] for axis in sorted(state.Q)]


def test_a_vector_is_whitened_coordinate_by_coordinate(key: jax.Array, x64: None) -> None:
    """q converges to |g|^(-1/2), with which applied twice the direction is a sign; V = 1, so nothing is random."""
    g = jnp.array([2.0, -0.5])
    tx = gk.scale_by_kron(b1=0.0, update_probability=1.0)
    signs = jnp.ones((400, 2))
    u, state = run(tx, g, jnp.broadcast_to(g, (400, 2)), probe=signs)
    # What is learned from is damped. The slower coordinate gains a factor of exp(-0.1 * 0.5) a step.
    damped = jnp.abs(g + np.sqrt(2.0**-23) * jnp.abs(g).mean())
    np.testing.assert_allclose(factors(state)[0][:, 0], damped**-0.5, rtol=1e-6)
    np.testing.assert_allclose(u[-1], g / damped, rtol=1e-6)


def test_what_it_makes_of_a_gaussian_is_white(key: jax.Array, x64: None) -> None:
    """Gradients L Z R, Z standard normal, have covariance (R^T R) x (L L^T); P g has covariance I."""
    L, R = jnp.diag(jnp.array([5.0, 1.0, 0.2])), jnp.array([[1.0, 2.0], [0.0, 1.0]])
    Z = jax.random.normal(key, (3000, 3, 2))
    tx = gk.scale_by_kron(b1=0.0, update_probability=1.0, precond_lr=0.02, key=key)
    _, state = run(tx, jnp.zeros((3, 2)), L @ Z @ R)
    Q = np.kron(*map(np.asarray, factors(state)))
    P = Q.T @ Q
    assert np.linalg.eigvalsh(P).min() > 0
    A = np.kron(np.asarray(L), np.asarray(R.T))
    made = P @ A @ A.T @ P
    # It wanders around I with a variance that grows with the step size; at the start it is that of the gradients.
    assert np.linalg.norm(made - np.eye(6)) < 0.2 * 6
    assert np.linalg.norm(A @ A.T - np.eye(6)) > 100


def test_refreshes_follow_the_schedule(x64: None) -> None:
    """With p = 1/3 at every third step; p(t) is 1 for 500 steps and 0.03 in the end."""
    x, steps = jnp.ones((3, 2)), 7
    tx = gk.scale_by_kron(update_probability=1 / 3)
    state, moved = tx.init(x), []
    update = jax.jit(tx.update)
    for t in range(steps):
        before = factors(state)[0]
        _, state = update(x, state, x, probe=normal(t, 3, 2))
        moved.append(not np.array_equal(before, factors(state)[0]))
    assert moved == [False, False, True, False, False, True, False]
    np.testing.assert_allclose([fading(t - 1) for t in (1, 500, 600, 10_000)], [1, 1, np.exp(-0.1), 0.03], rtol=1e-12)


def test_the_layers_of_a_stack_are_tensors_of_their_own(x64: None) -> None:
    """With the probes of separate leaves; two leaves of one shape are worked on together, and do not mix."""
    g = {"ScanBlock_0": {"kernel": normal(0, 4, 3, 2)}, "other": normal(1, 3, 2)}
    v = {"ScanBlock_0": {"kernel": normal(2, 4, 3, 2)}, "other": normal(3, 3, 2)}
    tx = gk.scale_by_kron(b1=0.5)
    together = run(tx, g, jax.tree.map(lambda x: x[None], g), probe=jax.tree.map(lambda x: x[None], v))[0]
    for i in range(4):
        alone = run(tx, g["other"], g["ScanBlock_0"]["kernel"][i][None], probe=v["ScanBlock_0"]["kernel"][i][None])[0]
        assert_equal(together["ScanBlock_0"]["kernel"][0, i], alone[0])
    alone = run(tx, g["other"], g["other"][None], probe=v["other"][None])[0]
    assert_equal(together["other"], alone)
    scalars = tx.init({"ScanBlock_0": {"scale": jnp.ones(5)}})
    assert [q.shape for q in jax.tree.leaves(scalars.Q)] == [(5, 1, 1)]


def test_which_factors_are_diagonal() -> None:
    def shapes(shape: tuple[int, ...], **options: Any) -> list[tuple[int, ...]]:
        return [q.shape for q in factors(gk.scale_by_kron(**options).init(jnp.zeros(shape)))]

    assert shapes((3, 4)) == [(3, 3), (4, 4)]
    assert shapes((3, 1)) == [(3, 3), (1, 1)]
    assert shapes((5,)) == [(5, 1)]
    assert shapes((5,), min_ndim_triangular=1) == [(5, 5)]
    assert shapes((3, 4), max_dim=3) == [(3, 3), (4, 1)]
    assert shapes((3, 4, 2), memory_save_mode="one_diag") == [(3, 3), (4, 1), (2, 2)]
    assert shapes((3, 4), memory_save_mode="all_diag") == [(3, 1), (4, 1)]
    assert shapes(()) == [(1, 1)]
    for q in factors(gk.scale_by_kron(precond_init_scale=16.0).init(jnp.zeros((3, 4)))):
        np.testing.assert_allclose(q, 4 * np.eye(len(q)), rtol=1e-6)


def test_a_refresh_that_is_not_finite_is_left_out(x64: None) -> None:
    """Of that tensor alone; it is counted, and the run goes on."""
    x = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    tx = gk.scale_by_kron()
    v = {"a": jnp.full((2, 2), jnp.inf), "b": normal(0, 2, 2)}
    _, state = tx.update(x, tx.init(x), x, probe=v)
    fresh = tx.init(x)
    for axis in "01":
        assert_equal(state.Q["a"][axis], fresh.Q["a"][axis])
        assert not np.array_equal(state.Q["b"][axis], fresh.Q["b"][axis])
    assert int(gk.diagnostics.metrics(state)["failed_refreshes"]) == 1


def test_balancing_does_not_change_the_run(key: jax.Array, x64: None) -> None:
    """It happens, and only the split between the factors is another."""
    x, g = jnp.zeros((3, 2)), 1e3 * jnp.stack([normal(t, 3, 2) for t in range(4)])
    keys = jax.random.split(key, 4)
    often, never = (gk.scale_by_kron(balance_probability=p) for p in (1.0, 0.0))
    (u, first), (w, second) = (run(tx, x, g, key=keys) for tx in (often, never))
    assert_equal(u, w, rtol=1e-10)
    assert not np.allclose(factors(first)[0], factors(second)[0], rtol=1e-3)


def test_it_is_one_method_by_two_names(key: jax.Array) -> None:
    x = normal(0, 3, 2)
    updates = [tx.update(x, tx.init(x), x)[0] for tx in (gk.kron(0.1, key=key), gk.psgd_kron(0.1, key=key))]
    np.testing.assert_array_equal(*updates)


def test_bad_input(key: jax.Array) -> None:
    with pytest.raises(ValueError, match="needs a random key"):
        gk.scale_by_kron().update(jnp.ones(2), gk.scale_by_kron().init(jnp.ones(2)))
    with pytest.raises(ValueError, match="has 14 axes"):
        gk.scale_by_kron().init({"w": jnp.zeros((1,) * 14)})
    for name, bad in (("update_probability", 0.0), ("memory_save_mode", "two_diag"), ("precond_lr", 0.0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            gk.scale_by_kron(**{name: bad})
