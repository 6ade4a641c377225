"""Sophia: every coordinate is clipped; refreshes come before the step; optax's form is the lagged one."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def test_against_numpy(x64: None) -> None:
    """Paper and official code, refreshed every third step, decay decoupled."""
    b1, b2, gamma, eps, clip, rate, decay = 0.9, 0.7, 0.5, 0.01, 0.8, 0.1, 0.2
    for denominator in ("max", "add"):
        tx = gk.sophia_g(
            rate,
            b1=b1,
            b2=b2,
            gamma=gamma,
            eps=eps,
            clip=clip,
            update_interval=3,
            denominator=denominator,
            weight_decay=decay,
        )
        x: Any = normal(0, 8)
        state, want, m, h, inside = tx.init(x), np.asarray(x), np.zeros(8), np.zeros(8), 0
        for t in range(7):
            g, c = normal(1 + t, 8), normal(20 + t, 8)
            u, state = tx.update(g, state, x, curvature=c)
            x = x + u
            m = b1 * m + (1 - b1) * np.asarray(g)
            h = b2 * h + (1 - b2) * np.asarray(c) if t % 3 == 0 else h
            below = gamma * h + eps if denominator == "add" else np.maximum(gamma * h, eps)
            with np.errstate(divide="ignore"):
                d = np.where(below > 0, np.clip(m / below, -clip, clip), clip * np.sign(m))
            inside += np.sum(np.abs(d) < clip)
            want = want - rate * (d + decay * want)
            assert_equal(x, want)
        assert 3 < inside < 50  # both sides of the clip are met


def test_no_entry_exceeds_the_clip_and_no_curvature_is_a_step_of_sign(x64: None) -> None:
    g = jnp.array([3.0, -1e-9, 0.0])
    tx = gk.scale_by_sophia(b1=0.0, clip=0.5)
    for h in (jnp.zeros(3), -jnp.ones(3)):
        assert_equal(tx.update(g, tx.init(g), curvature=h)[0], 0.5 * jnp.sign(g))
    tx = gk.scale_by_sophia(b1=0.0, eps=0.0)
    assert_equal(tx.update(g, tx.init(g), curvature=jnp.zeros(3))[0], jnp.sign(g))


def test_the_lagged_form_is_optax(key: jax.Array) -> None:
    """With the same estimates; the paper's form is another, and differs already at the first step."""
    a = 0.5 + jnp.abs(normal(1, 5))
    x0 = jnp.asarray(normal(0, 5))

    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(a * x**2 / 2 + 0.1 * x**4)

    def curvature(x: jax.Array) -> jax.Array:
        return a + 1.2 * x**2  # what Hutchinson gives for any signs

    theirs = optax.contrib.sophia(0.05, update_interval=2, gamma=0.5, weight_decay=0.1)
    ours = gk.sophia_h(0.05, update_interval=2, gamma=0.5, eps=1e-8, lagged=True, bias_correction=True, key=key)
    paper = gk.sophia_h(0.05, update_interval=2, gamma=0.5, eps=1e-8, key=key)
    with jax.numpy_dtype_promotion("standard"):
        want, state = x0, theirs.init(x0)
        for _ in range(5):
            u, state = theirs.update(jax.grad(loss)(want), state, want, obj_fn=loss)
            want = want + u
    ends = []
    for tx in (ours, paper):
        x, state = x0, tx.init(x0)
        for _ in range(5):
            u, state = tx.update(jax.grad(loss)(x), state, x, curvature=curvature(x))
            x = x + u
        ends.append(np.asarray(x))
    # Five steps of float32 arithmetic on numbers of size 1.
    np.testing.assert_allclose(ends[0], want, atol=5e-6)
    assert np.abs(ends[1] - want).max() > 0.01


def test_products_are_made_on_refreshes_alone(key: jax.Array) -> None:
    """Under jit, the Hessian-vector product runs at steps 0, 3 and 6; the state keeps no second curvature."""
    made = []

    def hvp_fn(v: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: made.append(1))
        return 2 * v

    tx, x = gk.sophia_h(0.1, update_interval=3, key=key), jnp.ones(2)
    state = tx.init(x)
    update = jax.jit(lambda x, state: tx.update(x, state, x, hvp_fn=hvp_fn))
    for _ in range(7):
        _, state = update(x, state)
    jax.effects_barrier()
    assert len(made) == 3
    assert sum(s.shape == (2,) for s in jax.tree.leaves(state)) == 2


def test_curvature_may_be_left_out_between_refreshes() -> None:
    """Outside jit it is known which step refreshes; on one that does it must be there."""
    tx, x = gk.sophia_g(0.1, update_interval=2), jnp.ones(2)
    _, state = tx.update(x, tx.init(x), x, curvature=x)
    _, state = tx.update(x, state, x)
    with pytest.raises(ValueError, match="scale_by_sophia needs the extra argument curvature"):
        tx.update(x, state, x)
    with pytest.raises(ValueError, match="needs the extra argument curvature"):
        jax.jit(tx.update)(x, state, x)


def test_the_win_rate() -> None:
    """The share of entries inside the clip."""
    tx = gk.sophia_g(0.1, b1=0.0, b2=0.0, gamma=1.0, measure_win_rate=True)
    g = {"a": jnp.array([0.5, 3.0]), "b": jnp.array([[-0.5], [-0.9]])}
    _, state = tx.update(g, tx.init(g), g, curvature=jax.tree.map(jnp.ones_like, g))
    assert float(gk.diagnostics.metrics(state)["win_rate"]) == 0.75
    assert "win_rate" not in gk.diagnostics.metrics(gk.sophia_g(0.1).init(g))


def test_the_two_by_name() -> None:
    """gamma follows the estimator; `sophia` with the other one is `sophia_h`."""
    g = jnp.array([1e-3])
    x = jnp.zeros(1)

    def first(tx: Any) -> float:
        return float(tx.update(g, tx.init(x), x, curvature=jnp.full(1, 1e3))[0][0])

    assert first(gk.sophia(1.0)) == first(gk.sophia_g(1.0)) == first(gk.sophia(1.0, gamma=0.05))
    assert first(gk.sophia(1.0, estimator="hutchinson")) == first(gk.sophia_h(1.0)) == first(gk.sophia(1.0, gamma=0.01))
    assert first(gk.sophia_h(1.0)) == pytest.approx(5 * first(gk.sophia_g(1.0)), rel=1e-5)


def test_the_two_by_name_have_the_arguments_that_are_theirs() -> None:
    assert not {"estimator", "num_samples", "key"} & inspect.signature(gk.sophia_g).parameters.keys()
    assert inspect.signature(gk.sophia_h).parameters["gamma"].default == 0.01
    assert "key:" in (gk.sophia_h.__doc__ or "") and "key:" not in (gk.sophia_g.__doc__ or "")
    with pytest.raises(TypeError, match=r"sophia_g\(\) got an unexpected keyword argument 'key'; sophia\(\) has it"):
        gk.sophia_g(1e-3, key=0)


def test_bad_input() -> None:
    for name, bad in (("update_interval", 0), ("denominator", "min"), ("gamma", 0.0), ("clip", 0.0), ("lagged", 1)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            gk.scale_by_sophia(**{name: bad})
    with pytest.raises(ValueError, match="estimator must be one of"):
        gk.sophia(0.1, estimator="gbn")
