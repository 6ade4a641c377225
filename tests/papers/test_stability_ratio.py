"""The edge of stability: the ratio crosses 1 exactly where gradient descent and the heavy ball diverge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.diagnostics import stability_ratio, top_hessian_eigenvalue

CURVATURES = np.array([0.5, 2.0, 8.0])


def grows(rate: float, b1: float) -> bool:
    """Whether the iteration on the quadratic has an eigenvalue outside the unit circle."""
    # (x, m) -> (x - rate (b1 m + h x), b1 m + h x)
    steps = [np.array([[1 - rate * h, -rate * b1], [h, b1]]) for h in CURVATURES]
    return max(np.abs(np.linalg.eigvals(step)).max() for step in steps) > 1 + 1e-9


@pytest.mark.parametrize("b1", [0.0, 0.5, 0.9])
def test_the_ratio_crosses_one_where_training_diverges(b1: float) -> None:
    edge = 2 * (1 + b1) / 8.0
    for rate in (0.2 * edge, 0.99 * edge, 1.01 * edge, 3 * edge):
        assert (stability_ratio(8.0, rate, b1=b1) > 1) == grows(rate, b1)
    assert stability_ratio(8.0, edge, b1=b1) == pytest.approx(1.0)


def test_the_largest_eigenvalue_of_a_hessian(x64: None) -> None:
    """Of a matrix with eigenvalues of both signs, through a loss with a batch; the largest, not the longest."""
    rng = np.random.default_rng(0)
    Q, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    values = np.array([-9.0, -1, -0.5, 0, 0, 0.2, 1, 1, 2, 3, 4, 5])
    A = jnp.asarray(Q @ np.diag(values) @ Q.T)
    params = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(6)}

    def loss(p: dict, scale: float) -> jax.Array:
        x = jnp.concatenate([p["a"].ravel(), p["b"]])
        return 0.5 * scale * x @ A @ x

    found = jax.jit(lambda key: top_hessian_eigenvalue(loss, params, key, 3.0))(jax.random.key(1))
    np.testing.assert_allclose(found, 15.0, rtol=1e-10)


def test_few_eigenvalues_and_concave_losses(x64: None) -> None:
    """More iterations than there are eigenvalues: what follows has no weight, also where all are negative."""
    for c in (4.0, -4.0):
        found = top_hessian_eigenvalue(lambda x, c=c: c / 2 * jnp.sum(x * x), jnp.ones(7), 0)
        np.testing.assert_allclose(found, c, rtol=1e-12)


def test_of_a_preconditioned_method(x64: None) -> None:
    """D^(-1/2) H D^(-1/2): with D the diagonal of a diagonal Hessian it is 1."""
    H, D = jnp.asarray(CURVATURES), jnp.array([0.5, 1.0, 16.0])

    def loss(x: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(H * x * x)

    for d, want in ((H, 1.0), (D, 2.0)):
        found = top_hessian_eigenvalue(loss, jnp.ones(3), 0, preconditioner=d)
        np.testing.assert_allclose(found, want, rtol=1e-10)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="iterations must be an integer >= 1"):
        top_hessian_eigenvalue(jnp.sum, jnp.ones(2), 0, iterations=0)
    with pytest.raises(ValueError, match="loss_fn must be callable"):
        top_hessian_eigenvalue(1.0, jnp.ones(2), 0)
    with pytest.raises(ValueError, match="learning_rate must be in"):
        stability_ratio(1.0, -1.0)
    with pytest.raises(ValueError, match="b1 must be in"):
        stability_ratio(1.0, 0.1, b1=1.0)
