"""Scalarizers: derivatives by finite differences of formulas in NumPy, and their limits."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.aggregation import cosmos, geometric_mean_loss, pbi, stch
from tests.papers.stacks import aggregate, draw

L = np.array([0.7, 2.0, 0.3, 1.1])
W, Z = np.array([0.1, 0.4, 0.3, 0.2]), np.array([0.1, 0.5, 0.0, -0.2])


def smooth_tchebycheff(L: np.ndarray) -> float:
    return 0.2 * np.log(np.exp(W * (L - Z) / 0.2).sum())


def cosine_drawn(L: np.ndarray) -> float:
    return W @ L - 2 * W @ L / np.linalg.norm(W) / np.linalg.norm(L)


def intersected(L: np.ndarray) -> float:
    u = W / np.linalg.norm(W)
    along = (L - Z) @ u
    return along + 3 * np.linalg.norm(L - Z - along * u)


CASES: list[tuple[Any, Callable[[np.ndarray], float]]] = [
    (stch(mu=0.2, weights=W, reference=Z), smooth_tchebycheff),
    (geometric_mean_loss(), lambda L: np.prod(L) ** 0.25),
    (cosmos(lambda_=2.0, weights=W), cosine_drawn),
    (pbi(theta=3.0, weights=W, reference=Z), intersected),
]


def weights(tx: Any, losses: np.ndarray) -> np.ndarray:
    J = draw(0)
    return np.linalg.lstsq(J.T, aggregate(tx, J, losses=jnp.asarray(losses)), rcond=None)[0]


@pytest.mark.parametrize(("tx", "value"), CASES, ids=["stch", "geometric_mean", "cosmos", "pbi"])
def test_weights_are_the_derivative_of_the_formula(tx: Any, value: Callable[[np.ndarray], float], x64: None) -> None:
    h = 1e-6
    slopes = [(value(L + h * e) - value(L - h * e)) / (2 * h) for e in np.eye(4)]
    # Central differences: h^2 times a third derivative, and roundings over h.
    np.testing.assert_allclose(weights(tx, L), slopes, atol=1e-8)


def test_limits(x64: None) -> None:
    """stch: the largest loss alone; the mean for large mu. geometric: blind to scales. pbi: towards the ray."""
    np.testing.assert_allclose(weights(stch(mu=1e-3), L), [0, 0.25, 0, 0], atol=1e-10)
    np.testing.assert_allclose(weights(stch(mu=1e6), L), 1 / 16, rtol=1e-5)
    w, scale = weights(geometric_mean_loss(), L), np.array([10.0, 0.1, 1.0, 1.0])
    np.testing.assert_allclose(scale * weights(geometric_mean_loss(), scale * L), w, rtol=1e-9)
    np.testing.assert_allclose(w * L, w[0] * L[0], rtol=1e-9)
    assert weights(pbi(), L)[1] > 0 > weights(pbi(), L)[2]
    np.testing.assert_allclose(weights(pbi(weights=L), 3 * L), L / np.linalg.norm(L), atol=1e-5)


def test_losses_that_are_all_zero_give_numbers() -> None:
    for tx in (stch(), cosmos(), pbi()):
        assert np.isfinite(aggregate(tx, draw(1).astype(np.float32), losses=jnp.zeros(4))).all()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="weights must be numbers >= 0 that are not all 0"):
        pbi(weights=[1.0, -1.0])
    with pytest.raises(ValueError, match=r"stch: reference has shape \(2,\), and 4 gradients came"):
        aggregate(stch(reference=[0.0, 1.0]), draw(0).astype(np.float32), losses=jnp.ones(4))
    with pytest.raises(ValueError, match="cosmos needs the extra argument losses"):
        aggregate(cosmos(), draw(0).astype(np.float32))
