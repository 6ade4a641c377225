"""Exact Gauss-Newton (Korbit et al., 2024), and the solver that it shares with natural gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import gradkit as gk
from tests.papers.replay import assert_equal, normal

B, C = 5, 3
X = np.random.default_rng(0).standard_normal((B, 4))


def params() -> Any:
    return {"first": normal(1, 4, 3), "second": normal(2, 3, C)}


def model(p: Any) -> jax.Array:
    return jnp.tanh(jnp.asarray(X, p["first"].dtype) @ p["first"]) @ p["second"]


def problems() -> dict[str, Any]:
    """loss -> (targets, its mean over the examples, written anew)."""
    labels, bits, numbers = jnp.array([0, 2, 1, 1, 0]), (normal(4, B, C) > 0).astype(float), normal(5, B, C)
    pick = jnp.eye(C)[labels]
    return {
        "mse": (numbers, lambda y: jnp.mean(jnp.sum((numbers - y) ** 2, axis=1)) / 2),
        "softmax_ce": (labels, lambda y: -jnp.mean(jnp.sum(pick * jax.nn.log_softmax(y), axis=1))),
        "sigmoid_bce": (
            bits,
            lambda y: jnp.mean(jnp.sum(-bits * jax.nn.log_sigmoid(y) - (1 - bits) * jax.nn.log_sigmoid(-y), axis=1)),
        ),
    }


def dense(loss: Any, damping: float) -> Any:
    """(J^T Q J / b + damping I)^{-1} (-gradient), with d x d matrices and derivatives of JAX's own."""
    flat, back = ravel_pytree(params())
    f = lambda w: model(back(w)).reshape(-1)  # noqa: E731
    of = lambda y: loss(y.reshape(B, C))  # noqa: E731
    J, H, g = jax.jacobian(f)(flat), jax.hessian(of)(f(flat)), jax.grad(lambda w: of(f(w)))(flat)
    return back(jnp.linalg.solve(J.T @ H @ J + damping * jnp.eye(flat.size), -g))


def step(tx: Any, x: Any, state: Any = None, **extra: Any) -> Any:
    g = jax.tree.map(jnp.zeros_like, x)
    return tx.update(g, tx.init(x) if state is None else state, x, **extra)


@pytest.mark.parametrize(
    ("loss", "solver"),
    [*((loss, "woodbury") for loss in ("mse", "softmax_ce", "sigmoid_bce")), ("softmax_ce", "cg"), ("mse", "dense")],
)
def test_the_direction_is_that_of_the_dense_system(loss: str, solver: str, x64: None) -> None:
    targets, value = problems()[loss]
    want = jax.jit(lambda: dense(value, 0.05))()
    tx = gk.egn(damping=0.05, loss=loss, solver=solver, cg_iterations=200, cg_tolerance=1e-12)
    update = jax.jit(lambda x: step(tx, x, model_fn=model, targets=targets)[0])
    assert_equal(update(params()), want, rtol=1e-8, atol=1e-9)


def test_least_squares_in_one_step(x64: None) -> None:
    """Linear regression, lambda -> 0, alpha = 1: the error is some lambda."""
    A, y = normal(0, 8, 3), normal(1, 8)
    u, _ = step(gk.egn(damping=1e-8), normal(2, 3), model_fn=lambda w: A @ w, targets=y)
    # lambda against eigenvalues of A^T A / b of about 1, and roundings of J J^T, of rank 3 of 8, over b lambda.
    assert_equal(normal(2, 3) + u, jnp.linalg.lstsq(A, y)[0], rtol=1e-6)


def test_residuals_and_products_do_for_a_model(x64: None) -> None:
    targets, _ = problems()["softmax_ce"]
    y, jvp = jax.linearize(model, params())
    back = jax.vjp(model, params())[1]
    p = jax.nn.softmax(y)
    own = {
        "residuals": jnp.eye(C)[targets] - p,
        "jvp": jvp,
        "vjp": lambda w: back(w)[0],
        "loss_hessian": jnp.stack([jnp.diag(q) - jnp.outer(q, q) for q in p]),
    }
    tx = gk.egn(loss="softmax_ce")
    got, _ = step(tx, params(), **own)
    assert_equal(got, step(tx, params(), model_fn=model, targets=targets)[0], rtol=1e-9)
    # Probabilities are targets, too.
    soft, _ = step(tx, params(), model_fn=model, targets=jnp.eye(C)[targets])
    assert_equal(got, soft, rtol=1e-9)


def test_a_singular_loss_curvature_and_certain_predictions_are_solved() -> None:
    """In float32, with softmax outputs that are 0 and 1 to rounding, right and wrong."""
    scaled = lambda p: 200 * model(p)  # noqa: E731
    u, _ = step(gk.egn(loss="softmax_ce"), params(), model_fn=scaled, targets=jnp.array([0, 2, 1, 1, 0]))
    assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(u))


def test_momentum_is_a_corrected_mean_of_directions(x64: None) -> None:
    targets, _ = problems()["mse"]
    tx, plain = gk.egn(0.5, momentum=0.9), gk.egn(0.5)
    x, state, m = params(), tx.init(params()), jax.tree.map(jnp.zeros_like, params())
    for t in (1, 2, 3):
        p, _ = step(plain, x, model_fn=model, targets=targets)
        m = jax.tree.map(lambda m, p: 0.9 * m + 0.1 * p, m, p)
        u, state = step(tx, x, state, model_fn=model, targets=targets)
        assert_equal(u, jax.tree.map(lambda m, t=t: m / (1 - 0.9**t), m), rtol=1e-10)
        x = optax.apply_updates(x, u)


def test_the_line_search_takes_the_first_step_that_decreases_enough(x64: None) -> None:
    """f is too curved for alpha = 8: the model of a sharp sine. Against the loop written out."""
    model_fn, targets = (lambda w: jnp.sin(6 * w)), jnp.array([0.9])
    f = lambda w: float(jnp.sum((targets - jnp.sin(6 * w)) ** 2) / 2)  # noqa: E731
    tx = gk.egn(8.0, damping=0.1, line_search=True)
    x, state, last = jnp.array([-0.1]), None, 8.0
    state = tx.init(x)
    for _ in range(3):
        p, _ = step(gk.egn(1.0, damping=0.1), x, model_fn=model_fn, targets=targets)
        slope = float(jnp.sum(-(targets - jnp.sin(6 * x)) * 6 * jnp.cos(6 * x) * p))
        alpha = min(1.5 * last, 8.0)
        for _ in range(15):
            if f(x + alpha * p) <= f(x) + 0.1 * alpha * slope:
                break
            alpha *= 0.8
        u, state = step(tx, x, state, model_fn=model_fn, targets=targets)
        assert_equal(u, alpha * p, rtol=1e-6)  # the last step size is kept in float32
        x, last = x + u, alpha
    assert alpha < 8.0


def test_damping_follows_the_quality_of_the_model(x64: None) -> None:
    """Least squares of a linear model are predicted exactly, rho = 1; a step of 15 on a cubic makes the loss worse."""
    kwargs = {"damping": 1.0, "adaptive_damping": True, "damping_increase": 1.5, "damping_decrease": 0.5}
    _, state = step(gk.egn(**kwargs), normal(0, 3), model_fn=lambda w: 2 * w, targets=normal(1, 3))
    assert float(gk.diagnostics.metrics(state)["damping"]) == 0.5
    _, state = step(gk.egn(100.0, **kwargs), jnp.array([0.1]), model_fn=lambda w: w**3, targets=jnp.array([5.0]))
    assert float(gk.diagnostics.metrics(state)["damping"]) == 1.5


def test_it_trains_a_small_classifier() -> None:
    x = jnp.asarray(np.random.default_rng(3).standard_normal((32, 4)), jnp.float32)
    labels = (x[:, 0] * x[:, 1] > 0).astype(jnp.int32)
    net = lambda p: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    start = jax.tree.map(lambda v: 0.5 * v.astype(jnp.float32), {"a": normal(1, 4, 8), "b": normal(2, 8, 2)})
    tx = gk.egn(1.0, damping=0.05, loss="softmax_ce", line_search=True, adaptive_damping=True)
    f = lambda p: optax.softmax_cross_entropy_with_integer_labels(net(p), labels).mean()  # noqa: E731

    def one(carry: Any, _: None) -> Any:
        p, state = carry
        u, state = tx.update(p, state, p, model_fn=net, targets=labels)
        return (optax.apply_updates(p, u), state), f(p)

    _, losses = jax.jit(lambda p: jax.lax.scan(one, (p, tx.init(p)), None, 25))(start)
    assert losses[-1] < 0.1 * losses[0]


def test_bad_input() -> None:
    tx, x = gk.egn(), jnp.ones(3)
    with pytest.raises(ValueError, match="egn needs the extra argument model_fn"):
        step(tx, x)
    with pytest.raises(ValueError, match=r"targets must have shape \(3,\) for mse, got \(3, 1\)"):
        step(tx, x, model_fn=lambda w: w, targets=jnp.ones((3, 1)))
    with pytest.raises(ValueError, match=r"model_fn must give \(examples, outputs\) for softmax_ce"):
        step(gk.egn(loss="softmax_ce"), x, model_fn=lambda w: w, targets=jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match=r"system of 4097 rows, more than 4096; give solver='cg'"):
        step(tx, x, model_fn=lambda w: jnp.ones((4097, 1)) * w[0], targets=jnp.ones((4097, 1)))
    with pytest.raises(ValueError, match=r"damping must be in \(0, inf\)"):
        gk.linalg.damped_gauss_newton_solve(lambda v: v, lambda w: w, x, damping=0.0)
    with pytest.raises(ValueError, match=r"loss_hessian must be \(3, 1, 1\)"):
        gk.linalg.damped_gauss_newton_solve(lambda v: v, lambda w: w, x, damping=1.0, loss_hessian=jnp.ones((3, 3)))
    with pytest.raises(ValueError, match="value_fn"):
        products = {"residuals": x, "jvp": lambda v: v, "vjp": lambda w: w}
        step(gk.egn(line_search=True), x, **products)


@pytest.mark.parametrize(
    "how", [{}, {"solver": "dense"}, {"solver": "cg"}, {"line_search": True}, {"momentum": 0.9}], ids=str
)
def test_a_damping_that_rounding_hides_ends_in_no_nan(how: dict[str, Any]) -> None:
    """1-16-1 tanh fitted to exp on 8 points in float32: the damping falls below what can be told from a singular
    matrix, and the fit stays at what float32 resolves: half squares of 1e-3 are far above its rounding."""
    x = np.linspace(-1, 1, 8, dtype=np.float32)
    rng = np.random.default_rng(0)
    w = {"a": rng.standard_normal(16), "b": np.zeros(16), "c": rng.standard_normal(16) / 4, "d": np.zeros(())}
    w = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), w)

    def net(p: Any) -> jax.Array:
        return jnp.tanh(x[:, None] * p["a"][None] + p["b"][None]) @ p["c"] + p["d"]

    def value(p: Any) -> jax.Array:
        return jnp.mean((net(p) - np.exp(x)) ** 2) / 2

    tx = gk.egn(1.0, adaptive_damping=True, damping_decrease=0.5, damping_increase=1.5, **how)

    def one(carry: Any, _: None) -> Any:
        w, state = carry
        u, state = tx.update(w, state, w, model_fn=net, targets=jnp.exp(x), value_fn=value)
        return (optax.apply_updates(w, u), state), value(w)

    (w, state), values = jax.jit(lambda w: jax.lax.scan(one, (w, tx.init(w)), None, 100))(w)
    assert np.isfinite(values).all() and float(values[50:].min()) < 1e-5
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((w, state)))
    assert float(gk.diagnostics.metrics(state)["damping"]) < 1e-5 or how


def test_a_step_that_is_not_finite_is_not_made_and_counted() -> None:
    """The damping is doubled at least, mean and step size stay, and the next good step is made."""
    tx = gk.egn(0.5, adaptive_damping=True, momentum=0.9, damping=0.25)
    x = {"w": jnp.ones(3)}
    A = np.asarray(X[:, :3], np.float32)

    def step_at(scale: float, state: Any) -> Any:
        told: dict[str, Any] = {"model_fn": lambda p: scale * (A @ p["w"]), "targets": jnp.ones(B)}
        told["value_fn"] = lambda p: jnp.mean((scale * (A @ p["w"]) - 1) ** 2) / 2
        states: Any
        u, states = tx.update(x, state, x, **told)
        return u, states[0]

    _, state = step_at(1.0, tx.init(x))
    u, broken = step_at(float("nan"), (state,))
    assert not np.any(u["w"]) and float(broken.metrics["failed_solves"]) == 1
    assert float(broken.lam) == 2 * float(state.lam)
    assert np.array_equal(broken.mean["w"], state.mean["w"]) and float(broken.step) == 0.5
    u, later = step_at(1.0, (broken,))
    assert np.isfinite(u["w"]).all() and np.any(u["w"]) and float(later.metrics["failed_solves"]) == 1
