"""Natural gradients, and their relaxation (Donatella et al., 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal

B, D = 4, 5
LAM = 0.2


def setting(loss: str = "softmax_ce") -> tuple[Any, dict[str, Any], jax.Array, jax.Array]:
    """Parameters, extra arguments, A made densely by JAX's own derivatives, and a gradient that is not the model's."""
    x, w, g = normal(0, B, D), normal(1, D, 2), normal(2, D, 2)
    targets = jnp.array([0, 1, 1, 0]) if loss == "softmax_ce" else normal(3, B, 2)
    model = lambda w: jnp.sin(x @ w)  # noqa: E731
    J = jax.jacobian(model)(w).reshape(B * 2, -1)
    if loss == "softmax_ce":
        H = jax.hessian(lambda y: jnp.mean(jax.nn.logsumexp(y.reshape(B, 2), axis=1)))(model(w).reshape(-1))
    else:
        H = jnp.eye(B * 2) / B
    A = J.T @ H @ J + LAM * jnp.eye(D * 2)
    return w, {"model_fn": model, "targets": targets}, A, g


def direction(tx: Any, w: Any, g: Any, state: Any = None, **extra: Any) -> Any:
    u, state = tx.update(g, tx.init(w) if state is None else state, w, **extra)
    return -u, state


@pytest.mark.parametrize("loss", ["mse", "softmax_ce"])
def test_every_solver_gives_the_dense_solution(loss: str, x64: None) -> None:
    w, extra, A, g = setting(loss)
    want = jnp.linalg.solve(A, g.reshape(-1)).reshape(g.shape)
    for solver in ("woodbury", "cg", "dense"):
        tx = gk.ngd(1.0, damping=LAM, loss=loss, solver=solver, cg_tolerance=1e-9)
        assert_equal(direction(tx, w, g, **extra)[0], want, rtol=1e-6, atol=1e-8)
    fisher = gk.ngd(1.0, damping=LAM, loss=loss, curvature="fisher")
    assert_equal(direction(fisher, w, g, **extra)[0], want, rtol=1e-9)


def test_the_empirical_fisher_is_of_example_gradients(x64: None) -> None:
    w, extra, _, g = setting("mse")
    one = lambda w, i: jnp.sum((extra["targets"][i] - extra["model_fn"](w)[i]) ** 2) / 2  # noqa: E731
    rows = jnp.stack([jax.grad(one)(w, i).reshape(-1) for i in range(B)])
    F = rows.T @ rows / B + LAM * jnp.eye(D * 2)
    got, _ = direction(gk.ngd(1.0, damping=LAM, curvature="empirical_fisher"), w, g, **extra)
    assert_equal(got.reshape(-1), jnp.linalg.solve(F, g.reshape(-1)), rtol=1e-9)


def test_ngd_of_the_models_gradient_is_gauss_newton(x64: None) -> None:
    w, extra, _, _ = setting("mse")
    f = lambda w: jnp.sum((extra["targets"] - extra["model_fn"](w)) ** 2) / (2 * B)  # noqa: E731
    ngd, _ = direction(gk.ngd(1.0, damping=LAM), w, jax.grad(f)(w), **extra)
    egn = gk.egn(damping=LAM)
    assert_equal(-ngd, egn.update(w, egn.init(w), w, **extra)[0], rtol=1e-9)


@pytest.mark.parametrize("loss", ["mse", "softmax_ce"])
def test_from_gradient_descent_to_the_natural_gradient(loss: str, x64: None) -> None:
    w, extra, A, g = setting(loss)
    flat = g.reshape(-1)
    make = lambda time, **kwargs: gk.thermodynamic_ngd(1.0, damping=LAM, time=time, loss=loss, **kwargs)  # noqa: E731
    assert_equal(direction(make(0.0), w, g, **extra)[0], g)
    limit = jnp.linalg.solve(A, flat)
    for time in (1e4, float("inf")):
        assert_equal(direction(make(time), w, g, **extra)[0].reshape(-1), limit, rtol=1e-9)
    relaxed = limit + jax.scipy.linalg.expm(-1.5 * A) @ (flat - limit)
    assert_equal(direction(make(1.5), w, g, **extra)[0].reshape(-1), relaxed, rtol=1e-9)
    from_zero = limit - jax.scipy.linalg.expm(-1.5 * A) @ limit
    assert_equal(direction(make(1.5, init="zero"), w, g, **extra)[0].reshape(-1), from_zero, rtol=1e-9, atol=1e-12)


def test_euler_converges_to_the_exact_solution(x64: None) -> None:
    w, extra, _, g = setting()
    kwargs: Any = {"damping": LAM, "loss": "softmax_ce"}
    want, _ = direction(gk.thermodynamic_ngd(1.0, time=2.0, **kwargs), w, g, **extra)
    errors = []
    for n in (50, 100, 200):
        tx = gk.thermodynamic_ngd(1.0, time=2.0, num_steps=n, integrator="euler", **kwargs)
        errors.append(float(jnp.abs(direction(tx, w, g, **extra)[0] - want).max()))
    # Of first order: half the step, half the error.
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 2, rtol=0.1)
    by_step = gk.thermodynamic_ngd(1.0, step_size=0.01, num_steps=200, integrator="euler", **kwargs)
    assert abs(float(jnp.abs(direction(by_step, w, g, **extra)[0] - want).max()) - errors[2]) < 1e-12


def test_the_system_runs_on(x64: None) -> None:
    """From where it was, and through the delay after it was read."""
    w, extra, A, g = setting()
    flat = g.reshape(-1)
    limit = jnp.linalg.solve(A, flat)
    at = lambda t, v: limit + jax.scipy.linalg.expm(-t * A) @ (v - limit)  # noqa: E731
    for integrator in ("exact", "euler"):
        steps: Any = {"num_steps": 3000} if integrator == "euler" else {}
        tx = gk.thermodynamic_ngd(
            1.0, damping=LAM, time=1.0, delay=0.5, init="previous", integrator=integrator, loss="softmax_ce", **steps
        )
        first, state = direction(tx, w, g, **extra)
        second, _ = direction(tx, w, g, state, **extra)
        zero = jnp.zeros_like(flat)
        tolerance = 1e-9 if integrator == "exact" else 1e-3  # of first order in 1 / 3000, times A^2 |v|
        assert_equal(first.reshape(-1), at(1.0, zero), rtol=tolerance, atol=tolerance)
        assert_equal(second.reshape(-1), at(1.0, at(1.5, zero)), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("integrator", ["exact", "euler"])
def test_at_rest_the_noise_has_the_covariance_of_the_inverse(integrator: str, x64: None) -> None:
    w, extra, A, g = setting()
    steps: Any = {"num_steps": 400} if integrator == "euler" else {}
    tx = gk.thermodynamic_ngd(1.0, damping=LAM, time=20.0, noise=0.3, loss="softmax_ce", integrator=integrator, **steps)
    keys = jax.random.split(jax.random.key(0), 4000)
    many = jax.jit(jax.vmap(lambda k: -tx.update(g, tx.init(w), w, key=k, **extra)[0].reshape(-1)))(keys)
    want = 0.3 * jnp.linalg.inv(A)
    # Of 4000 draws an entry is known to sqrt(2 / 4000) of the largest variance, 0.3 / LAM: five of these. Euler's
    # step of 0.05 adds h A / 2 of a variance, at most 5 %.
    error = 5 * np.sqrt(2 / 4000) * 0.3 / LAM
    np.testing.assert_allclose(
        np.cov(np.asarray(many).T), want, atol=error + (0.05 * 0.3 if integrator == "euler" else 0)
    )
    relaxed = jnp.linalg.solve(A, g.reshape(-1))
    relaxed = relaxed + jax.scipy.linalg.expm(-20 * A) @ (g.reshape(-1) - relaxed)
    np.testing.assert_allclose(
        many.mean(0), relaxed, atol=5 * np.sqrt(0.3 / LAM / 4000) + (0.01 if integrator == "euler" else 0)
    )


def test_keys(x64: None) -> None:
    w, extra, _, g = setting()
    make = lambda **kwargs: gk.thermodynamic_ngd(1.0, damping=LAM, time=1.0, noise=0.1, loss="softmax_ce", **kwargs)  # noqa: E731
    with pytest.raises(ValueError, match="needs a random key"):
        direction(make(), w, g, **extra)
    own = make(key=jax.random.key(3))
    first, state = direction(own, w, g, **extra)
    second, _ = direction(own, w, g, state, **extra)
    again, _ = direction(own, w, g, **extra)
    assert_equal(first, again)
    assert float(jnp.abs(first - second).max()) > 1e-3


def test_a_step_that_is_not_stable_is_told(x64: None) -> None:
    w, extra, A, g = setting()
    largest = float(jnp.linalg.eigvalsh(A)[-1])
    kwargs: Any = {"damping": LAM, "loss": "softmax_ce", "integrator": "euler", "num_steps": 3}
    with pytest.warns(UserWarning, match="of the largest stable one"):
        direction(gk.thermodynamic_ngd(1.0, step_size=3 / largest, **kwargs), w, g, **extra)
    tx = gk.thermodynamic_ngd(1.0, step_size=1.0, **kwargs)
    state = jax.jit(lambda: tx.update(g, tx.init(w), w, **extra)[1])()
    share = float(gk.diagnostics.metrics(state)["euler_step"])
    assert 0.9 * largest / 2 < share <= largest / 2 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "time must be given"),
        ({"time": 1.0, "num_steps": 3}, "neither step_size nor num_steps"),
        ({"integrator": "euler", "time": 1.0}, "two of time, step_size and num_steps"),
        ({"integrator": "euler", "time": 1.0, "num_steps": 3, "step_size": 1.0}, "time must be step_size"),
        ({"time": 1.0, "delay": 0.5}, "delay must be 0 with init='gradient'"),
        ({"time": 1.0, "key": 0.5}, "typed random key"),
    ],
)
def test_bad_input(kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gk.thermodynamic_ngd(1.0, damping=0.1, **kwargs)
