"""UPGrad: the projections against a quadratic program, and the theorems of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

import gradkit as gk
from gradkit.aggregation import upgrad

pytestmark = pytest.mark.slow

m, n = 4, 9
REG = 1e-4


def draw(seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, n)) + shift


@jax.jit
def _run(J: jax.Array, p: jax.Array, norm_eps: jax.Array, reg_eps: jax.Array) -> jax.Array:
    # Over two leaves, so that inner products run over the tree.
    stacked = {"a": J[:, :3], "b": J[:, 3:].reshape(m, 2, -1)}
    tx = upgrad(pref_vector=p, norm_eps=norm_eps, reg_eps=reg_eps)
    out, _ = tx.update(stacked, optax.EmptyState())
    return jnp.concatenate([out["a"], out["b"].reshape(-1)])


def run(J: np.ndarray, pref_vector=None, norm_eps: float = 1e-4, reg_eps: float = REG) -> np.ndarray:
    """One program for all hyperparameters: they are traced."""
    p = np.full(m, 1 / m) if pref_vector is None else np.asarray(pref_vector)
    return np.asarray(_run(*(jnp.asarray(x, J.dtype) for x in (J, p, norm_eps, reg_eps))))


@pytest.mark.parametrize("p", [None, [0.5, 1.0, 0.0, 2.0], [0.5, -0.3, 1.0, 0.2]])
def test_against_a_quadratic_program(p: list[float] | None, x64: None) -> None:
    """Also for preferences that are zero or negative, which the equations allow."""
    J = draw(0)
    G = J @ J.T / np.sum(J**2) + REG * np.eye(m)
    w = np.zeros(m)
    for i in range(m):
        u = np.zeros(m)
        u[i] = 1 / m if p is None else p[i]
        start = np.maximum(u, 0) + 0.1
        v = minimize(lambda v: v @ G @ v, start, jac=lambda v: 2 * G @ v, bounds=[(b, None) for b in u], tol=1e-15)
        w += v.x
    # The reference stops when its gradient is about 1e-8; the least eigenvalue of G divides that.
    np.testing.assert_allclose(run(J, pref_vector=p), w @ J, atol=1e-5)


def test_no_task_gets_worse(x64: None) -> None:
    for seed in range(3):
        J = draw(seed)
        assert (J @ run(J) >= -3 * REG * np.sum(J**2)).all()
        assert (J @ run(J, reg_eps=1e-12) >= -1e-10 * np.sum(J**2)).all()


def test_linear_under_scaling_of_the_tasks(x64: None) -> None:
    J, c, d = draw(1), np.array([1.0, 0.5, 2.0, 3.0]), np.array([0.2, 4.0, 1.0, 1.0])
    tight = {"reg_eps": 1e-12, "norm_eps": 0.0}
    separate = run(c[:, None] * J, **tight) + run(d[:, None] * J, **tight)
    np.testing.assert_allclose(run((c + d)[:, None] * J, **tight), separate, atol=1e-9)


def test_without_conflict_it_is_the_mean(x64: None) -> None:
    J = np.abs(draw(2))
    np.testing.assert_allclose(run(J, reg_eps=1e-12), J.mean(0), rtol=1e-10)


def test_invariant_under_permutation_of_the_tasks(x64: None) -> None:
    """Preferences permuted along."""
    J, p, order = draw(3), np.array([0.1, 0.4, 0.3, 0.2]), [2, 0, 3, 1]
    np.testing.assert_allclose(run(J, pref_vector=p), run(J[order], pref_vector=p[order]), rtol=1e-10, atol=1e-12)


def test_small_gradients(x64: None) -> None:
    """Below norm_eps the result is the mean, conflicts and all; with norm_eps=0 it scales with the gradients."""
    J = draw(0)
    small = 1e-4 * J
    np.testing.assert_allclose(run(small), small.mean(0), rtol=1e-12, atol=1e-18)
    np.testing.assert_allclose(run(small, norm_eps=0.0), 1e-4 * run(J), rtol=1e-9, atol=1e-16)
    assert np.abs(run(J) - J.mean(0)).max() > 0.01
    assert (run(0 * J, norm_eps=0.0) == 0).all()


def test_what_is_not_finite_comes_through() -> None:
    J = draw(0).astype(np.float32)
    J[1, 2] = np.nan
    assert np.isnan(run(J)).all()


def test_one_task_and_the_defaults() -> None:
    """One gradient conflicts with none; the default preference of one task is 1."""
    g = jnp.array([[3.0, -4.0]])
    out, _ = upgrad().update(g, optax.EmptyState())
    np.testing.assert_allclose(np.asarray(out), g[0], rtol=2.0**-22)


def test_first_in_a_chain_with_parameters_without_the_axis() -> None:
    """bfloat16 parameters, None leaves: descends on two quadratics at once."""
    params = {"w": jnp.array([3.0, -2.0], jnp.bfloat16), "none": None}
    tx = optax.chain(upgrad(), gk.sgd(0.5))
    state = tx.init(params)
    centres = jnp.array([[1.0, 0.0], [0.0, 1.0]], jnp.bfloat16)
    step = jax.jit(lambda p, s: tx.update({"w": p["w"][None] - centres, "none": None}, s, p))
    for _ in range(8):
        updates, state = step(params, state)
        assert updates["w"].dtype == jnp.bfloat16 and updates["w"].shape == (2,)
        params = optax.apply_updates(params, updates)
    # Every point between the two centres is as good as any; the start is symmetric about none of them.
    assert 0.9 < float(params["w"].astype(float).sum()) < 1.1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pref_vector": [[1.0, 2.0]]}, "pref_vector must be a vector"),
        ({"pref_vector": 1.0}, "pref_vector must be a vector"),
        ({"pref_vector": [1.0, np.nan]}, "pref_vector must be finite"),
        ({"pref_vector": ["a", "b"]}, "pref_vector must be finite"),
        ({"norm_eps": -1.0}, "norm_eps must be in"),
        ({"reg_eps": 0.0}, "reg_eps must be in"),
        ({"max_iters": 0}, "max_iters must be an integer >= 1"),
    ],
)
def test_bad_hyperparameters(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        upgrad(**kwargs)


def test_preferences_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"pref_vector has shape \(3,\), and 2 gradients came"):
        upgrad(pref_vector=[1.0, 1.0, 1.0]).update(jnp.ones((2, 4)), optax.EmptyState())
