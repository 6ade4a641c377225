"""`with_curvature`: when an estimate is made, what is handed on, and whose key it is made with."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.transforms.with_curvature import hutchinson_estimator
from tests.papers.replay import assert_equal


def recorder() -> optax.GradientTransformationExtraArgs:
    """Hands out the curvature in the place of the gradient."""

    def update(updates: Any, state: Any, params: Any = None, *, curvature: Any, **extra: Any) -> tuple[Any, Any]:
        del updates, params, extra
        return curvature, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def test_an_estimate_serves_several_steps(key: jax.Array) -> None:
    """It is made at steps 0, 3, 6, from what came with them; under jit it is not computed in between."""
    made = []

    def estimator(params: Any, key: Any, *, value: Any, **extra: Any) -> Any:
        del key, extra
        jax.debug.callback(lambda: made.append(1))
        return jnp.full_like(params, value)

    tx = gk.with_curvature(recorder(), estimator, update_interval=3)
    x = jnp.zeros(2)
    state, update, found = tx.init(x), jax.jit(tx.update), []
    for t in range(7):
        h, state = update(x, state, x, value=jnp.asarray(float(t)))
        found.append(float(h[0]))
    jax.effects_barrier()
    assert found == [0.0, 0.0, 0.0, 3.0, 3.0, 3.0, 6.0]
    assert len(made) == 3


def test_what_is_given_goes_before_what_is_made(key: jax.Array) -> None:
    tx = gk.with_curvature(recorder(), update_interval=2, key=key)
    x = jnp.zeros(2)
    h, state = tx.update(x, tx.init(x), x, hvp_fn=lambda v: 2 * v, curvature=jnp.array([5.0, 6.0]))
    assert h.tolist() == [5.0, 6.0]
    h, state = tx.update(x, state, x, hvp_fn=lambda v: 2 * v)  # the one before serves this step too
    assert h.tolist() == [5.0, 6.0]
    assert tx.update(x, state, x, hvp_fn=lambda v: 2 * v)[0].tolist() == [2.0, 2.0]


def test_keys_are_never_used_twice(key: jax.Array) -> None:
    """The key that is kept changes every step; one that comes with the step decides alone."""
    H = jnp.array([[0.0, 1.0], [1.0, 0.0]])  # z (H z) is z_1 z_2 twice: one random sign
    tx, x = gk.with_curvature(recorder(), key=key), jnp.zeros(2)

    def run(keys: Any, steps: int = 40) -> np.ndarray:
        def step(state: Any, k: Any) -> tuple[Any, Any]:
            h, state = tx.update(x, state, x, hvp_fn=lambda v: H @ v, **({} if keys is None else {"key": k}))
            return state, h[0]

        return np.asarray(jax.lax.scan(step, tx.init(x), jax.random.split(key, steps) if keys is None else keys)[1])

    kept = run(None)
    assert {*kept} == {-1.0, 1.0}
    same = run(jnp.broadcast_to(jax.random.key(3), (10,)))
    assert len({*same}) == 1


def test_more_samples_at_the_first_step(key: jax.Array, x64: None) -> None:
    """The mean of ten draws of a random sign is one of -1, -0.8, ... 1, and later ones are signs."""
    H = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    estimator = hutchinson_estimator(first_samples=10)

    def drawn(count: int) -> np.ndarray:
        one = jax.vmap(lambda k: estimator(jnp.zeros(2), k, hvp_fn=lambda v: H @ v, count=count)[0])
        return np.asarray(jax.jit(one)(jax.random.split(key, 6)))

    first, later = drawn(0), drawn(3)
    assert any(abs(x) < 0.9 for x in first) and all(abs(abs(x) - 1) < 1e-12 for x in later)
    for x in first:
        assert abs(5 * x - round(float(5 * x))) < 1e-12


def test_a_partition_takes_its_own_leaves(x64: None) -> None:
    """Masked, a method picks the curvature of its leaves by their names."""
    x = {"a": jnp.ones(2), "b": jnp.full(3, 2.0)}
    tx = optax.masked(gk.scale_by_diag_curvature(b1=0.0, b2=0.0, eps=0.0), {"a": False, "b": True})
    h = jax.tree.map(lambda x: 4 * x, x)
    updates, _ = tx.update(x, tx.init(x), x, curvature=h)
    assert_equal(updates, {"a": jnp.ones(2), "b": jnp.full(3, 0.25)})


def test_bad_input(key: jax.Array) -> None:
    x = jnp.zeros(2)
    with pytest.raises(ValueError, match="update_interval must be"):
        gk.with_curvature(recorder(), update_interval=0)
    with pytest.raises(ValueError, match="estimator must be callable"):
        gk.with_curvature(recorder(), 3)
    with pytest.raises(ValueError, match="typed random key"):
        gk.with_curvature(recorder(), key=0.5)
    tx = gk.with_curvature(recorder(), key=key)
    with pytest.raises(ValueError, match="needs the extra argument curvature"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match="with_curvature needs a random key to estimate the curvature"):
        tx = gk.with_curvature(recorder())
        tx.update(x, tx.init(x), x, hvp_fn=lambda v: v)
    for wrong in (jnp.zeros(3), {"w": jnp.zeros(2)}):
        with pytest.raises(ValueError, match="curvature must match the gradients"):
            tx.update(x, tx.init(x), x, curvature=wrong)
