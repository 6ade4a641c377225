"""OASIS: the step size on quadratics, adaptive gradient descent as a special case, NumPy's own run of both."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def numpy_oasis(
    grad: Any, diag: Any, x: np.ndarray, steps: int, *, b2: float, alpha: float, eta: float
) -> list[np.ndarray]:
    """The algorithm as written, with the metric of each step in both norms."""
    D = diag(0)
    theta, before, out = np.inf, None, [x]
    for t in range(steps):
        g = grad(t, x)
        D = D if t == 0 else b2 * D + (1 - b2) * diag(t)
        M = np.maximum(np.abs(D), alpha)
        if before is not None:
            y = g - grad(t, before)
            quotient = np.sqrt(np.sum(M * (x - before) ** 2) / np.sum(y**2 / M)) / 2
            new = min(np.sqrt(1 + theta) * eta, quotient)
            theta, eta = new / eta, new
        before, x = x, x - eta * g / M
        out.append(x)
    return out


def test_against_numpy(x64: None) -> None:
    """Every step has a loss of its own: both gradients of a difference are of the same one, by either argument."""
    A = [np.asarray(normal(10 + t, 5, 5)) for t in range(6)]
    H = [a @ a.T / 5 + 0.5 * np.eye(5) for a in A]
    h = [np.asarray(normal(20 + t, 5)) for t in range(6)]
    x0 = np.asarray(normal(0, 5))
    want = numpy_oasis(lambda t, x: H[t] @ x, lambda t: h[t], x0, 6, b2=0.8, alpha=0.3, eta=0.05)
    for array in (False, True):
        tx = gk.oasis(b2=0.8, alpha=0.3, init_learning_rate=0.05)
        x: Any = jnp.asarray(x0)
        state, before = tx.init(x), x
        for t in range(6):
            extra = {"previous_grads": H[t] @ before} if array else {"grad_fn": lambda p, t=t: H[t] @ p}
            u, state = tx.update(H[t] @ x, state, x, curvature=jnp.asarray(h[t]), **extra)
            before, x = x, x + u
            assert_equal(x, want[t + 1])


def run(tx: Any, a: jax.Array, x: jax.Array, steps: int, **extra: Any) -> tuple[jax.Array, list[float]]:
    state, etas = tx.init(x), []
    for _ in range(steps):
        u, state = tx.update(a * x, state, x, **extra)
        x = x + u
        etas.append(float(gk.diagnostics.metrics(state)["lipschitz_step"]))
    return x, etas


def test_on_a_diagonal_quadratic_the_step_is_one_half(key: jax.Array, x64: None) -> None:
    """With the exact curvature the quotient is 1/2 from the second step on, whatever the first step was."""
    a = jnp.array([0.3, 1.0, 50.0])
    tx = gk.oasis(init_learning_rate=1e-3, key=key)
    x, etas = run(tx, a, normal(0, 3), 5, hvp_fn=lambda v: a * v, grad_fn=lambda x: a * x)
    # Published in float32.
    np.testing.assert_allclose(etas, [1e-3, 0.5, 0.5, 0.5, 0.5], rtol=1e-6)
    assert_equal(x, normal(0, 3) * (1 - 1e-3) / 2**4)


def test_without_a_metric_it_is_adaptive_gradient_descent(x64: None) -> None:
    """Curvature 1, and the plain link, both against the algorithm with M = 1."""
    a, x0 = jnp.array([0.3, 1.0, 5.0]), normal(0, 3)
    want = numpy_oasis(
        lambda t, x: np.asarray(a) * x, lambda t: np.ones(3), np.asarray(x0), 8, b2=0.9, alpha=1e-5, eta=0.01
    )
    tx = gk.oasis(deterministic=True)
    assert_equal(run(tx, a, x0, 8, curvature=jnp.ones(3))[0], want[-1])
    plain = optax.chain(gk.scale_by_local_lipschitz(deterministic=True), gk.scale_by_learning_rate(1.0))
    assert_equal(run(plain, a, x0, 8)[0], want[-1])


def test_adaptive_gradient_descent_stays_below_two_over_l(x64: None) -> None:
    """It converges on an ill conditioned problem with no rate to tune; the step is never below 1 / (2 L)."""
    a = jnp.array([0.05, 1.0, 10.0])
    plain = optax.chain(gk.scale_by_local_lipschitz(deterministic=True), gk.scale_by_learning_rate(1.0))

    def step(carry: Any, _: None) -> Any:
        x, state = carry
        u, state = plain.update(a * x, state, x)
        return (x + u, state), gk.diagnostics.metrics(state)["lipschitz_step"]

    x0 = normal(0, 3)
    (x, _), etas = jax.lax.scan(step, (x0, plain.init(x0)), None, 300)
    assert np.all(etas[1:] >= 1 / (2 * 10) * (1 - 1e-6))
    assert np.abs(x).max() < 1e-2 * np.abs(x0).max()


def test_momentum_and_decay(x64: None) -> None:
    """m is the mean of the gradients; decay stands beside the direction, so shares its step."""
    x, g, h = normal(0, 3), normal(1, 3), jnp.array([1.0, 2.0, 4.0])
    tx = gk.oasis(0.5, adaptive=False, momentum=0.9, weight_decay=0.2)
    u, _ = tx.update(g, tx.init(x), x, curvature=h)
    assert_equal(u, -0.5 * (0.1 * g / h + 0.2 * x))
    tx = gk.oasis(init_learning_rate=0.25, momentum=0.9, weight_decay=0.2, deterministic=True)
    u, _ = tx.update(g, tx.init(x), x, curvature=h)
    assert_equal(u, -0.25 * (0.1 * g / h + 0.2 * x))


def test_no_change_gives_no_verdict(x64: None) -> None:
    """Gradients that do not turn let the step grow by the first bound; parameters that stay leave it as it is."""
    tx = gk.scale_by_local_lipschitz(init_learning_rate=0.1, deterministic=True)
    x, g = jnp.ones(2), jnp.ones(2)
    state = tx.init(x)
    for _ in range(3):
        _, state = tx.update(g, state, x)
    assert float(state.eta) == 0.1
    etas = []
    for t in range(3):
        _, state = tx.update(g, state, x + t)
        etas.append(float(state.eta))
    # theta is 1 after steps that stayed: sqrt(2), then sqrt(1 + sqrt(2)).
    np.testing.assert_allclose(np.divide(etas[1:], etas[:-1]), [np.sqrt(2), np.sqrt(1 + np.sqrt(2))], rtol=1e-12)


def test_bad_input() -> None:
    x = jnp.ones(2)
    with pytest.raises(ValueError, match=r"alpha must be in \(0, inf\)"):
        gk.oasis(alpha=0.0)
    with pytest.raises(ValueError, match="first_samples must be"):
        gk.oasis(first_samples=0)
    tx = gk.oasis()
    with pytest.raises(ValueError, match="needs the extra argument previous_grads, or grad_fn"):
        tx.update(x, tx.init(x), x, curvature=x)
    with pytest.raises(ValueError, match="oasis needs the extra argument curvature"):
        tx.update(x, tx.init(x), x, previous_grads=x)
