"""TrAct (Petersen, Borgelt, Ermon, 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.layers import tract, tract_conv, tract_linear
from tests.papers.replay import assert_equal, normal


@pytest.mark.parametrize("b", [3, 9], ids=["fewer rows than inputs", "more"])
def test_both_branches_are_the_closed_form(b: int, x64: None) -> None:
    x, g = np.asarray(normal(0, b, 5)), np.asarray(normal(1, b, 4))
    want = np.linalg.solve(x.T @ x / b + 0.3 * np.eye(5), x.T @ g)
    assert_equal(tract(jnp.asarray(x), jnp.asarray(g), damping=0.3), want, rtol=1e-11)


def test_it_is_the_step_nearest_to_moving_the_outputs(x64: None) -> None:
    """dW is the ridge regression of b g on x: it minimises |x dW - b g|^2 + b damping |dW|^2."""
    b, damping = 7, 0.2
    x, g = normal(0, b, 5), normal(1, b, 2)
    ridge = lambda W: jnp.sum((x @ W - b * g) ** 2) + b * damping * jnp.sum(W**2)  # noqa: E731
    assert_equal(jax.grad(ridge)(tract(x, g, damping=damping)), np.zeros((5, 2)), atol=1e-12)


def test_a_large_damping_gives_the_plain_gradient(x64: None) -> None:
    """damping dW = x^T g (1 + O(|x^T x / b| / damping))."""
    x, g = normal(0, 6, 3), normal(1, 6, 2)
    np.testing.assert_allclose(1e9 * tract(x, g, damping=1e9), x.T @ g, rtol=1e-6)


def test_everything_else_of_the_layer_is_ordinary(x64: None) -> None:
    x, w, bias = normal(0, 2, 4, 3), normal(1, 3, 5), normal(2, 5)

    def of(f: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda x, w, b: jnp.mean(jnp.tanh(f(x, w, b)) ** 2), argnums=(0, 1, 2)))(
            x, w, bias
        )

    plain = of(lambda x, w, b: x @ w + b.reshape(1, 1, 5))
    ours = of(tract_linear)
    assert_equal(ours[0], plain[0])
    assert_equal((ours[1][0], ours[1][2]), (plain[1][0], plain[1][2]))
    M = jnp.einsum("abi,abj->ij", x, x) / 8
    assert_equal(ours[1][1], jnp.linalg.solve(M + 0.1 * jnp.eye(3), plain[1][1]), rtol=1e-10)


@pytest.mark.parametrize(("strides", "padding"), [(1, "SAME"), (2, 1), ((2, 1), "VALID"), (1, [(0, 1), (2, 0)])])
def test_a_convolution_is_a_linear_map_of_patches(strides: Any, padding: Any, x64: None) -> None:
    """Forward that of JAX; backward, the plain gradient multiplied by the inverse moment of patches cut out by hand."""
    x, k = normal(0, 2, 6, 5, 2), normal(1, 3, 2, 2, 4)
    steps = (strides,) * 2 if isinstance(strides, int) else strides
    pads = [(padding, padding)] * 2 if isinstance(padding, int) else padding

    def plain(k: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, k, steps, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    want, back = jax.vjp(plain, k)
    got, ours = jax.vjp(lambda k: tract_conv(x, k, strides=strides, padding=padding, damping=0.5), k)
    assert_equal(got, want, rtol=1e-11, atol=1e-13)
    G = normal(2, *want.shape)
    # The patches: what a kernel of a single one picks out, entry by entry of (window, in).
    units = jnp.moveaxis(jnp.eye(k.size // 4).reshape(-1, 3, 2, 2), 0, -1)
    rows = plain(units).reshape(-1, k.size // 4)
    M = rows.T @ rows / len(rows)
    flat = jnp.linalg.solve(M + 0.5 * jnp.eye(len(M)), back(G)[0].reshape(-1, 4))
    assert_equal(ours(G)[0], flat.reshape(k.shape), rtol=1e-9, atol=1e-12)


def test_half_precision_is_solved_in_float32() -> None:
    x, g = normal(0, 64, 3).astype(jnp.bfloat16), normal(1, 64, 2).astype(jnp.bfloat16)
    got, want = tract(x, g), tract(x.astype(jnp.float32), g.astype(jnp.float32))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2**-8)


def test_bad_input() -> None:
    for damping in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="damping must be in"):
            tract_linear(jnp.ones((2, 3)), jnp.ones((3, 1)), damping=damping)
    with pytest.raises(ValueError, match="same rows"):
        tract(jnp.ones((2, 3)), jnp.ones((3, 3)))
    with pytest.raises(ValueError, match=r"kernel must have shape \(in, out\)"):
        tract_linear(jnp.ones((2, 3)), jnp.ones((2, 1)))
    with pytest.raises(ValueError, match=r"kernel must have shape \(\*window, in, out\)"):
        tract_conv(jnp.ones((2, 3, 3)), jnp.ones((3, 3, 3, 1)))
