"""AI-SARAH (Shi et al., 2021)."""

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.optimizers.variance_reduction.ai_sarah import ai_sarah, newton_step

RNG = np.random.default_rng(0)
H = np.diag([1.0, 2.0, 5.0])
F64 = 1e-12


def test_on_a_quadratic_the_step_is_that_of_least_residual(x64):
    """v^T H v / |H v|^2: the third derivative is 0."""
    w, v = RNG.standard_normal((2, 3))
    got = newton_step(lambda w: H @ w, jnp.asarray(w), jnp.asarray(v))
    np.testing.assert_allclose(got, v @ H @ v / np.sum((H @ v) ** 2), rtol=F64)


def test_on_other_losses_it_is_newtons_step_on_phi(x64):
    """With phi written out and differentiated twice by itself, over two leaves."""
    loss = lambda p: jnp.sum(jnp.cosh(p["a"]) * p["b"] ** 2) + jnp.sum(p["a"] ** 2)  # noqa: E731
    w = {"a": jnp.array([0.3, -0.5]), "b": jnp.array([1.0, 2.0])}
    v = {"a": jnp.array([0.2, 0.1]), "b": jnp.array([-0.4, 0.3])}
    grad = jax.grad(loss)

    def phi(a):
        moved = grad(jax.tree.map(lambda x, d: x - a * d, w, v))
        rows = zip(*map(jax.tree.leaves, (moved, grad(w), v)), strict=True)
        return sum(jnp.sum((new - old + d) ** 2) for new, old, d in rows)

    want = -jax.grad(phi)(0.0) / jnp.abs(jax.grad(jax.grad(phi))(0.0))
    np.testing.assert_allclose(newton_step(grad, w, v), want, rtol=F64)


def test_the_bound_is_a_running_mean_of_inverse_steps(x64):
    """On batches of curvature 1, 4 and 1/2 in one dimension a~ is 1 / curvature, and the old bound holds."""
    method, w = ai_sarah(beta=0.5), jnp.array(1.0)
    state = method.init(w)
    lengths = []
    for h in (2.0, 4.0, 0.5):
        w, state = method.step(state, w, lambda w, h=h: h * w)
        lengths.append(float(state.step_size))
        state = state._replace(estimate=jnp.array(1.0))  # which an exact step has made 0
    # delta: 2, then (2 + 4) / 2 = 3; the step of 1 / 4 is below 1 / 2, that of 2 above 1 / 3.
    np.testing.assert_allclose(lengths, [1 / 2, 1 / 4, 1 / 3], rtol=F64)
    np.testing.assert_allclose(state.delta, (3 + 0.5) / 2, rtol=F64)


def test_with_all_data_in_every_batch_the_estimate_is_exact_and_it_converges(x64):
    method, w = ai_sarah(), jnp.asarray(RNG.standard_normal(3))
    grad_fn = lambda w: H @ w  # noqa: E731
    state, step = method.init(grad_fn(w)), jax.jit(lambda s, w: method.step(s, w, grad_fn))
    for _ in range(60):
        w, state = step(state, w)
        np.testing.assert_allclose(state.estimate, H @ np.asarray(w), rtol=1e-9, atol=1e-12)
        if method.should_refresh(state):
            state = method.refresh(state, grad_fn(w))
    # A step of least residual shrinks |H w| by (5 - 1) / (5 + 1) at most.
    assert np.linalg.norm(w) < 1e-6


def test_a_concave_direction_takes_the_bound(x64):
    """Without one, the first step is 0; the bound itself does not learn from it."""
    method, w = ai_sarah(), jnp.array(1.0)
    moved, state = method.step(method.init(-w), w, lambda w: -w)
    assert float(moved) == 1.0 and float(state.delta) == 0
    _, state = method.step(method.init(2 * w), w, lambda w: 2 * w)
    _, after = method.step(method.refresh(state, -w), w, lambda w: -w)
    assert float(after.step_size) == 0.5 and float(after.delta) == 2.0
