"""Metagradients through training (Engstrom et al., 2025)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.gradients import metagradient_descent, metasmoothness, replay_grad
from gradkit.gradients.replay_grad import levels

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((6, 3)), RNG.standard_normal(6)


def learner(tx):
    """A small network trained with noise on the gradient; meta: the weights of the examples, and a rate per step."""

    def loss(w, weights):
        return jnp.sum(weights * (jnp.tanh(jnp.asarray(X) @ w["in"]) @ w["out"] - jnp.asarray(Y)) ** 2)

    def step(state, meta, t):
        w, opt, key, count = state
        key, draw = jax.random.split(key)
        g = jax.grad(loss)(w, meta["weights"])
        g["out"] = g["out"] + 0.01 * jax.random.normal(draw, g["out"].shape, float)
        u, opt = tx.update(g, opt, w)
        w = jax.tree.map(lambda x, u: x + meta["rates"][t] * u, w, u)
        return w, opt, key, count + 1

    w = {"in": jnp.asarray(RNG.standard_normal((3, 2))), "out": jnp.asarray(RNG.standard_normal(2))}
    state = (w, tx.init(w), jax.random.key(0), jnp.zeros((), jnp.int32))
    return step, lambda state: jnp.sum(state[0]["out"] ** 2) + state[3].astype(float) * jnp.sum(state[0]["in"]), state


@pytest.mark.parametrize(("total", "branching"), [(1, 2), (2, 3), (7, 2), (13, 3), (64, 4)])
def test_it_is_full_unrolled_differentiation(total, branching, x64):
    """With momentum in the state, keys and counters, to the rounding of sums over 64 steps in float64."""
    step, outer, state = learner(gk.sgd(1.0, momentum=0.9))
    meta = {"weights": jnp.asarray(RNG.uniform(0.5, 1.5, 6)), "rates": jnp.full((total,), 0.02)}
    replayed = jax.jit(lambda meta: replay_grad(step, outer, state, meta, total, branching))

    def unrolled(meta):
        return outer(jax.lax.scan(lambda s, t: (step(s, meta, t), None), state, jnp.arange(total, dtype=jnp.int32))[0])

    (value, g), (want, h) = replayed(meta), jax.jit(jax.value_and_grad(unrolled))(meta)
    np.testing.assert_allclose(value, want, rtol=1e-13)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13), g, h)


def test_of_gradient_descent_on_a_parabola_it_is_exact(x64):
    """d x_T / d rate_t = -h x_T / (1 - rate_t h)."""
    h, rates = 1.5, np.linspace(0.1, 0.5, 9)
    value, g = jax.jit(lambda r: replay_grad(lambda x, r, t: x - r[t] * h * x, lambda x: x, jnp.array(2.0), r, 9))(
        jnp.asarray(rates)
    )
    end = 2.0 * np.prod(1 - rates * h)
    np.testing.assert_allclose(value, end, rtol=1e-13)
    np.testing.assert_allclose(g, -h * end / (1 - rates * h), rtol=1e-12)


@pytest.mark.parametrize("branching", [2, 3, 5])
def test_no_step_is_computed_more_often_than_the_bound(branching, x64):
    """T (1 + ceil(log_k T)) calls, those of the derivative among them: counted where nothing is compiled."""
    for total in (1, 2, 5, 16, 27):
        calls = []

        def step(x, z, t, calls=calls):
            calls.append(int(t))
            return x * z

        with jax.disable_jit():
            _, g = replay_grad(step, lambda x: x, jnp.array(1.0), jnp.array(1.01), total, branching)
        np.testing.assert_allclose(g, total * 1.01 ** (total - 1), rtol=1e-12)
        assert set(calls) == set(range(total))
        assert len(calls) <= total * (1 + levels(total, branching))


@pytest.mark.full_pipeline
def test_memory_grows_with_the_logarithm_of_the_steps():
    """A state of 40 kB: from 16 to 1024 steps six more of it, where unrolled differentiation keeps one per step."""
    size = 10_000
    x, z = jnp.ones(size), jnp.ones(())
    step = lambda x, z, t: jnp.sin(x) * z  # noqa: E731

    def replayed(total):
        return jax.jit(lambda x, z: replay_grad(step, jnp.sum, x, z, total)).lower(x, z).compile()

    def unrolled(total):
        run = lambda x, z: jnp.sum(jax.lax.scan(lambda x, t: (step(x, z, t), None), x, jnp.arange(total))[0])  # noqa: E731
        return jax.jit(jax.grad(run, 1)).lower(x, z).compile()

    state = 4 * size
    few, many, full = (
        c.memory_analysis().temp_size_in_bytes / state for c in (replayed(16), replayed(1024), unrolled(1024))
    )
    # log2(1024) - log2(16) = 6 states more on the stack, and with it a few for the step and the adjoint.
    assert many - few < 6.5
    assert many < levels(1024, 2) + 1 + 5
    assert full > 1000


def test_what_cannot_be_differentiated_by_is_refused():
    with pytest.raises(ValueError, match="meta must have floating point"):
        replay_grad(lambda x, z, t: x, jnp.sum, jnp.ones(2), jnp.array([1]), 3)
    with pytest.raises(ValueError, match="a state like the one it is given"):
        replay_grad(lambda x, z, t: (x, x), lambda x: jnp.sum(x), jnp.ones(2), jnp.ones(2), 3)


def test_metasmoothness_is_one_where_changes_go_on_and_minus_one_where_they_turn(x64):
    z, v = jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])
    assert metasmoothness(lambda z: {"x": 3 * z}, z, v, 0.1) == 1
    assert metasmoothness(lambda z: jnp.abs(z - z), z, v, 0.1) == 0
    turning = lambda z: (z[0] - 1.05) ** 2  # noqa: E731 - to 1.05 and beyond: down, then up
    assert metasmoothness(turning, z, v, 0.1) == -1


def test_counts_move_by_one_down_the_gradient():
    """About a share p of them: of 10000, within five deviations of 50."""
    counts, g = jnp.full((10_000,), 5.0), jnp.asarray(RNG.choice([-1.0, 1.0], 10_000), jnp.float32)
    new = np.asarray(metagradient_descent(counts, g, 0, p=0.5))
    moved = new != 5
    assert abs(moved.sum() - 5000) < 250
    np.testing.assert_array_equal(new[moved], (5 - np.asarray(g))[moved])
