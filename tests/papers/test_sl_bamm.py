"""sl-BAMM (Liu et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.gradients import bilevel_directions, sl_bamm
from tests.papers.replay import assert_equal


def upper(x: Any, y: Any, batch: Any) -> jax.Array:
    del batch
    return jnp.sum(jnp.square(x - y["b"])) / 2 + jnp.sum(jnp.square(y["a"] - 1)) / 2


def lower(x: Any, y: Any, batch: Any) -> jax.Array:
    """The paper's example: convex, and flat in b."""
    del batch
    return jnp.sum(jnp.square(y["a"])) / 2 - jnp.sum(x * y["a"])


def start() -> tuple[jax.Array, dict]:
    return jnp.array([0.2, -0.4]), {"a": jnp.array([0.1, 2.0]), "b": jnp.array([-1.0, 0.5])}


def test_three_steps_with_a_share_that_falls(x64: None) -> None:
    """In NumPy, all at the old point; the share of F in psi is another one in every step."""
    method = sl_bamm(upper, lower)
    x, y = start()
    state, step = method.init(x, y), jax.jit(method.step)
    X, a, b, va, vb = (np.asarray(p) for p in (x, y["a"], y["b"], np.zeros(2), np.zeros(2)))
    for k in range(1, 4):
        mu = 0.9 * k**-0.1
        g_a, g_b = (1 - mu) * (a - X) + mu * (a - 1), mu * (b - X)
        r_a, r_b = va - (a - 1), mu * vb - (b - X)
        eta = (r_a @ r_a + r_b @ r_b) / (r_a @ r_a + mu * r_b @ r_b + 1e-12)
        alpha = 0.1 * mu**3 * k ** (-3 / 80)
        d_x = (X - b) + (1 - mu) * va + mu * vb
        X, a, b, va, vb = X - alpha * d_x, a - 0.1 * g_a, b - 0.1 * g_b, va - eta * r_a, vb - eta * r_b
        state, _ = step(state)
        assert_equal((state.x, state.y, state.v), (X, {"a": a, "b": b}, {"a": va, "b": vb}), rtol=1e-9)


def test_the_merely_convex_example_of_the_paper(x64: None) -> None:
    """x = a = b = 1 is the solution; the method without the share stays away from it, as nothing moves b."""
    x, y = start()

    def run(**more: Any) -> Any:
        method = sl_bamm(upper, lower, **more)
        end, _ = jax.jit(lambda s: jax.lax.scan(lambda s, _: method.step(s), s, None, 20_000))(method.init(x, y))
        return end

    end = run()
    for value in (end.x, end.y["a"], end.y["b"]):
        np.testing.assert_allclose(value, 1, atol=0.02)
    flat = run(mu0=0.0, learning_rate=0.005, linear_learning_rate=0.1)
    np.testing.assert_array_equal(flat.y["b"], y["b"])


def test_without_the_share_it_is_the_single_loop_on_the_linear_system(x64: None) -> None:
    strong = lambda x, y, batch: lower(x, y, batch) + jnp.sum(jnp.square(y["b"] - x)) / 2  # noqa: E731
    method = sl_bamm(upper, strong, learning_rate=0.05, lower_learning_rate=0.3, linear_learning_rate=0.2, mu0=0.0)
    x, y = start()
    state, z = method.init(x, y), {"x": x, "y": y, "v": jax.tree.map(jnp.zeros_like, y)}
    rates = {"x": 0.05, "y": 0.3, "v": 0.2}
    for _ in range(3):
        _, d = bilevel_directions(upper, strong)(z)
        z = {name: jax.tree.map(lambda p, g, r=rates[name]: p - r * g, z[name], d[name]) for name in z}
        state, _ = method.step(state)
    assert_equal((state.x, state.y, state.v), (z["x"], z["y"], z["v"]))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="learning_rate must be given where mu0 is 0"):
        sl_bamm(upper, lower, mu0=0.0)
    for name, bad in (("mu0", 1.0), ("p0", 0.0), ("tau", -1.0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            sl_bamm(upper, lower, **{name: bad})
