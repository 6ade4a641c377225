"""Zeroth-order gradients: exact slopes of quadratics, the sizes of the estimates, and what public codes get wrong."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk

A = np.array([[3.0, 1.0], [1.0, 2.0]])


def quadratic(x: jax.Array) -> jax.Array:
    return jnp.einsum("i,ij,j->", x, jnp.asarray(A, x.dtype), x) / 2


def test_two_sides_are_exact_on_a_quadratic_and_one_side_is_not(x64: None) -> None:
    x, z, epsilon = np.array([1.0, -2.0]), np.array([0.5, 1.5]), 0.1
    difference = gk.gradients.directional_difference
    slope = z @ A @ x
    # Rounding: losses near 10 of 2^-53, divided by 0.2.
    np.testing.assert_allclose(difference(quadratic, x, z, epsilon), slope, rtol=1e-13)
    np.testing.assert_allclose(difference(quadratic, x, z, epsilon, False), slope + epsilon * z @ A @ z / 2, rtol=1e-13)


@pytest.mark.parametrize("two_sided", [True, False])
def test_the_mean_is_over_all_directions(two_sided: bool, x64: None) -> None:
    """The low-memory step of a public code keeps the last direction alone, undivided."""
    x, z = np.array([1.0, -2.0]), np.array([[0.5, 1.5], [1.0, -1.0], [2.0, 0.0]])
    fn = jax.jit(gk.gradients.zeroth_order_gradient(quadratic, 0.1, 3, two_sided))
    value, g = fn(x, direction=z)
    slopes = z @ A @ x + (0 if two_sided else 0.1 * np.einsum("ki,ij,kj->k", z, A, z) / 2)
    np.testing.assert_allclose(g, np.mean(slopes[:, None] * z, axis=0), rtol=1e-12)
    at = x @ A @ x / 2 + (np.mean(np.einsum("ki,ij,kj->k", z, A, z)) * 0.01 / 2 if two_sided else 0)
    np.testing.assert_allclose(value, at, rtol=1e-13)


@pytest.mark.parametrize(("distribution", "size"), [("normal", 22.0), ("rademacher", 20.0), ("sphere", 20.0)])
def test_mean_and_size_of_the_estimates(distribution: str, size: float) -> None:
    """E g is the gradient; E |g|^2 is (d + 2) |grad|^2 for normal directions, d |grad|^2 for |z|^2 = d."""
    slope = jnp.asarray(np.linspace(-1, 1, 20), jnp.float32)
    fn = gk.gradients.zeroth_order_gradient(lambda x: jnp.sum(slope * x), distribution=distribution, epsilon=1.0)
    keys = jax.random.split(jax.random.key(0), 4096)
    g = np.asarray(jax.jit(jax.vmap(lambda key: fn(jnp.zeros(20), key=key)[1]))(keys), np.float64)
    square = float(jnp.sum(slope**2))
    # The mean of an entry deviates by sqrt(E |g|^2 / d / 4096) <= sqrt(1.1 square / 4096); 5 of them.
    np.testing.assert_allclose(g.mean(0), slope, atol=5 * np.sqrt(1.1 * square / 4096))
    # |g|^2 / |grad|^2 has a relative deviation of about sqrt(2) for normal c, over sqrt(4096): 5 of them.
    np.testing.assert_allclose((g**2).sum(1).mean() / square, size, rtol=5 * 1.5 / 64)


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.1])
def test_so_many_entries_are_kept(fraction: float) -> None:
    """Public codes compare a normal number with the sparsity: a sparsity of 0 then removes half of the entries."""
    fn = gk.gradients.zeroth_order_gradient(lambda x: jnp.sum(x), nonzero_fraction=fraction, epsilon=1.0)
    g = np.asarray(fn(jnp.zeros(4096), key=1)[1])
    # Five standard deviations of a binomial share, at most 1 / 128 each.
    assert abs((g != 0).mean() - fraction) <= (0 if fraction == 1 else 5 / 128)


def test_a_distance_below_the_spacing_of_bfloat16_is_not_lost() -> None:
    """1 + 1e-3 z rounds to 1 in bfloat16: the points are in float32."""
    x = jnp.ones(8, jnp.bfloat16)
    z = jnp.ones((1, 8), jnp.float32)
    _, g = gk.gradients.zeroth_order_gradient(lambda x: jnp.sum(x))(x, direction=z)
    assert g.dtype == jnp.bfloat16
    # The slope 8 within the roundings of sums near 8 (2^-21) over 2e-3, and that of bfloat16.
    np.testing.assert_allclose(np.asarray(g, np.float64), 8.0, rtol=2**-8)


def test_the_sign_is_that_of_the_number() -> None:
    x, z = jnp.array([1.0, -2.0]), jnp.array([[0.5, 1.5]])
    _, g = gk.gradients.zeroth_order_gradient(quadratic, scalar_sign=True)(x, direction=z)
    np.testing.assert_array_equal(g, -z[0])  # <A x, z> = 0.5 - 4.5


def test_a_loss_that_is_not_finite_makes_the_gradient_nan() -> None:
    _, g = gk.gradients.zeroth_order_gradient(lambda x: jnp.sum(jnp.log(x)))(jnp.zeros(2), key=0)
    assert np.isnan(g).all()


def test_members_share_directions_and_average_their_slopes(x64: None) -> None:
    """Two members with parts of a batch have the gradient of the mean loss."""
    x, scales = np.array([1.0, -2.0]), np.array([1.0, 3.0])
    loss = lambda x, s: s * quadratic(x)  # noqa: E731
    own = gk.gradients.zeroth_order_gradient(loss, axis_name="data")
    value, g = jax.vmap(lambda s: own(x, s, key=3), axis_name="data")(scales)
    want_value, want = gk.gradients.zeroth_order_gradient(loss)(x, 2.0, key=3)
    np.testing.assert_allclose(g, [want, want], rtol=1e-10)  # 2^-53 over 1e-3
    np.testing.assert_allclose(value, [want_value] * 2, rtol=1e-14)


@pytest.mark.full_pipeline
def test_no_activation_is_kept() -> None:
    """What a step needs beyond a forward pass is copies of the parameters, whatever the batch: the direction and one
    perturbed copy. In one program the activations of both evaluations would be there together if these were not one
    after the other: 72 copies here. A backward pass keeps the activations of every layer."""
    shapes = {"into": (8, 32), "layers": (3, 32, 32), "out": (32, 128)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    copy = 4 * sum(x.size for x in params.values())

    def loss(params: Any, x: jax.Array) -> jax.Array:
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x @ params["into"], params["layers"])
        return jnp.mean(jax.nn.logsumexp(h @ params["out"], axis=1))

    fn = gk.gradients.zeroth_order_gradient(loss)
    zeroth = lambda params, x: fn(params, x, key=jax.random.key(0))[1]  # noqa: E731

    def beyond(function: Any, rows: int) -> int:
        """Temporary bytes, without those of a forward pass."""
        x = jax.ShapeDtypeStruct((rows, 8), jnp.float32)
        programs = (jax.jit(each).lower(params, x).compile().memory_analysis() for each in (function, loss))
        return int(np.subtract(*(program.temp_size_in_bytes for program in programs)))

    assert beyond(zeroth, 64) <= 2 * copy and beyond(zeroth, 4096) <= 2 * copy
    # The inputs of three layers, and the probabilities at the end.
    assert beyond(jax.grad(loss), 4096) > 3 * 4 * 4096 * 32


def test_what_is_wrong_is_said() -> None:
    fn = gk.gradients.zeroth_order_gradient(quadratic)
    with pytest.raises(ValueError, match="needs a random key"):
        fn(jnp.zeros(2))
    with pytest.raises(ValueError, match="leading axis of length num_directions=1"):
        fn(jnp.zeros(2), direction=jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="must return a scalar"):
        gk.gradients.zeroth_order_gradient(lambda x: x)(jnp.zeros(2), key=0)
    with pytest.raises(ValueError, match="epsilon must be"):
        gk.gradients.zeroth_order_gradient(quadratic, 0.0)
