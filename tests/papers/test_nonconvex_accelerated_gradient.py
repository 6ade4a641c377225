"""Accelerated gradients with SCAD and MCP (Yang, Asgharian, Bhatnagar, 2020)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso

import gradkit as gk
from gradkit.linalg import prox_l1, prox_mcp, prox_scad
from tests.papers.replay import assert_equal, normal


def solve(tx: Any, gradient: Any, x: Any, steps: int) -> tuple[Any, list[Any]]:
    """The solution, and the points z after every step."""
    update, state, path = jax.jit(tx.update), tx.init(x), []
    for _ in range(steps):
        u, state = update(gradient(x), state, x)
        x = jax.tree.map(jnp.add, x, u)
        path.append(gk.eval_params(state, x))
    return path[-1], path


@pytest.mark.parametrize(
    ("penalty", "threshold"),
    [("scad", partial(prox_scad, l1=0.5)), ("mcp", partial(prox_mcp, l1=0.5)), (None, partial(prox_l1, threshold=0.5))],
)
def test_orthogonal_design_gives_the_threshold_of_least_squares(penalty: str, threshold: Any, x64: None) -> None:
    """|x - ols|^2 / 2 + penalty is what the proximal operator minimises."""
    ols = jnp.linspace(-3, 3, 25)
    tx = gk.nonconvex_accelerated_gradient(1.0, l1=0.5, penalty=penalty)
    x, _ = solve(tx, lambda x: x - ols, jnp.zeros(25), 150)
    assert_equal(x, threshold(ols), rtol=1e-9, atol=1e-9)
    assert np.array_equal(x == 0, threshold(ols) == 0)


def test_without_penalty_it_is_accelerated(x64: None) -> None:
    """On a badly conditioned quadratic k^2 times the gap stays below Nesterov's 2 L |x0 - x*|^2 = 2 |x0|^2 / 0.99, and
    gradient descent at the same step is slower by then."""
    a, x = jnp.logspace(-4, 0, 20), jnp.ones(20)
    tx = gk.nonconvex_accelerated_gradient(1.0, penalty=None, restart=False)
    _, path = solve(tx, lambda x: a * x, x, 200)
    gap = np.array([float(jnp.sum(a * z * z)) / 2 for z in path])
    assert (gap * np.arange(1, 201) ** 2 <= 2 * 20 / 0.99).all()
    assert gap[-1] < 0.1 * float(jnp.sum(a * jnp.square((1 - 0.99 * a) ** 200))) / 2


def test_penalised_leaves_are_those_of_the_mask(x64: None) -> None:
    ols = {"coef": 0.3 * jnp.ones(3), "intercept": 0.3 * jnp.ones(1)}
    gradient = partial(jax.tree.map, lambda o, x: x - o, ols)
    tx = gk.nonconvex_accelerated_gradient(1.0, l1=0.5, mask={"coef": True, "intercept": False})
    x, _ = solve(tx, gradient, jax.tree.map(jnp.zeros_like, ols), 60)
    assert_equal(x, {"coef": jnp.zeros(3), "intercept": 0.3 * jnp.ones(1)}, atol=1e-9)


def regression() -> tuple:
    """100 examples, 40 correlated standardised features, 5 of which count."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((100, 40)) @ np.linalg.cholesky(0.5 ** np.abs(np.subtract.outer(range(40), range(40)))).T
    X = (X - X.mean(0)) / X.std(0)
    b = np.zeros(40)
    b[[3, 11, 19, 27, 35]] = [3.0, -2.0, 2.0, -3.0, 2.5]
    y = X @ b + rng.standard_normal(100)
    return X, y - y.mean(), b


def sweeps(X: np.ndarray, y: np.ndarray, threshold: Any) -> np.ndarray:
    """Coordinate descent: with columns of norm sqrt(n) each coordinate is one proximal operator of step 1."""
    b, r = np.zeros(X.shape[1]), y.copy()
    for _ in range(200):
        for j in range(len(b)):
            new = threshold(X[:, j] @ r / len(y) + b[j])
            r -= X[:, j] * (new - b[j])
            b[j] = new
    return b


def in_numpy(penalty: str, lam: float) -> Any:
    """The thresholds at step 1, once more, in NumPy."""

    def soft(z: float, t: float) -> float:
        return np.sign(z) * max(abs(z) - t, 0.0)

    def scad(z: float) -> float:
        if abs(z) <= 2 * lam:
            return soft(z, lam)
        return soft(z, 3.7 * lam / 2.7) / (1 - 1 / 2.7) if abs(z) <= 3.7 * lam else z

    return scad if penalty == "scad" else lambda z: soft(z, lam) / (1 - 1 / 2.0) if abs(z) <= 2 * lam else z


def test_recovery(x64: None) -> None:
    """The lasso is that of scikit-learn's coordinate descent; SCAD and MCP, started there, reach the solutions of
    coordinate descent, find exactly the five features, and are nearer the truth than the lasso."""
    X, y, truth = regression()
    lam, L = 0.35, float(np.linalg.eigvalsh(X.T @ X / 100)[-1])
    gradient = lambda b: jnp.asarray(X.T) @ (jnp.asarray(X) @ b - jnp.asarray(y)) / 100  # noqa: E731
    lasso = Lasso(alpha=lam, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(X, y).coef_
    start = jnp.zeros(40)
    plain, _ = solve(gk.nonconvex_accelerated_gradient(L, l1=lam, penalty=None), gradient, start, 400)
    # scikit-learn stops at a duality gap of 1e-14 |y|^2: the square root of that, over the least curvature.
    assert_equal(plain, lasso, rtol=1e-5, atol=1e-5)
    for penalty in ("scad", "mcp"):
        tx = gk.nonconvex_accelerated_gradient(L, l1=lam, penalty=penalty)
        got, _ = solve(tx, gradient, start, 600)
        assert_equal(got, sweeps(X, y, in_numpy(penalty, lam)), rtol=1e-7, atol=1e-8)
        assert np.flatnonzero(got).tolist() == np.flatnonzero(truth).tolist()
        assert np.linalg.norm(got - truth) < 0.5 * np.linalg.norm(lasso - truth)
    assert np.count_nonzero(lasso) >= 5


def test_bad_input() -> None:
    bad = ({"lipschitz": 0.0}, {"a": 2.0}, {"gamma": 1.0}, {"step_fraction": 1.0}, {"penalty": "lasso"}, {"l1": -1.0})
    for kwargs in bad:
        with pytest.raises(ValueError, match=rf"{next(iter(kwargs))} must be"):
            gk.nonconvex_accelerated_gradient(**{"lipschitz": 1.0, **kwargs})
    with pytest.raises(ValueError, match="mask"):
        gk.nonconvex_accelerated_gradient(1.0, mask={"b": 1}).init({"b": normal(0, 2)})
