"""Central flows (Cohen et al., 2024)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from gradkit.diagnostics import central_flow, central_flow_step, stable_flow_step
from tests.papers.replay import assert_equal, normal

C, D, RATE = 4.0, 0.2, 0.1


def toy(w: Any) -> jax.Array:
    """x^2 (1 + y) / 2 - c y + d y^2 / 2: the sharpness along x is 1 + y, and y grows until c / d."""
    return w["x"] ** 2 * (1 + w["y"]) / 2 - C * w["y"] + D * w["y"] ** 2 / 2


def follow(step: Any, w: Any, state: Any, steps: int) -> Any:
    """The last point, and what every step said."""

    def one(carry: Any, _: None) -> tuple[Any, Any]:
        new = step(*carry)
        return tuple(new[:2]), new

    return jax.jit(lambda w, state: jax.lax.scan(one, (w, state), None, steps))(w, state)


def test_a_two_cycle_that_is_known(x64: None) -> None:
    """Gradient descent ends in the cycle x = +-sqrt(0.4), y = 19 (2 / lr - 1), gradient flow at y = c / d = 20, and the
    central flow, on x = 0, at y = 19 with the variance 2 (c - d y) = 0.4 and the mean loss of the cycle."""
    start = {"x": jnp.array(0.6), "y": jnp.array(18.95)}

    def descend(w: Any, _: None) -> tuple[Any, Any]:
        w = jax.tree.map(lambda p, g: p - RATE * g, w, jax.grad(toy)(w))
        return w, (w, toy(w))

    _, (w, losses) = jax.jit(lambda w: jax.lax.scan(descend, w, None, 3000))(start)
    np.testing.assert_allclose(np.abs(w["x"][-2:]), np.sqrt(0.4), rtol=1e-6)
    assert w["x"][-1] * w["x"][-2] < 0
    np.testing.assert_allclose(w["y"][-2:], 19, rtol=1e-6)

    middle = {"x": jnp.array(0.0), "y": jnp.array(18.95)}
    step = partial(central_flow_step, "gd", toy, learning_rate=RATE)
    (end, _), found = follow(step, middle, None, 300)
    # The edge is met to the rounding of the linear problem: 2 - lr (1 + y) + dt (...) = 0.
    np.testing.assert_allclose([end["x"], end["y"]], [0, 19], atol=1e-9)
    assert float(found.X[-1, 0, 0]) * RATE == pytest.approx(0.4, rel=1e-6)
    assert float(found.eigenvalues[-1, 0]) == pytest.approx(2, rel=1e-9)
    assert float(found.time_averaged_loss[-1]) == pytest.approx(float(losses[-2:].mean()), rel=1e-6)
    # Below the edge nothing oscillates.
    assert float(found.X[0, 0, 0]) == 0 and float(found.eigenvalues[0, 0]) < 2

    step = partial(stable_flow_step, "gd", toy, learning_rate=RATE, dt=0.5)
    (end, _), _ = follow(step, middle, None, 3000)
    np.testing.assert_allclose(end["y"], 20, rtol=1e-6)


def test_with_one_critical_eigenvalue_it_moves_along_the_edge(x64: None) -> None:
    """dw/dt = -lr (I - n n^T) grad L, n = grad S / |grad S|, and sigma^2 = 2 <-grad L, grad S> / |grad S|^2."""
    h = jnp.array([1.0, 0.3, -0.5])

    def loss(w: jax.Array) -> jax.Array:
        # In the direction of w_0 the sharpness is 20 + h . (w_1, w_2, w_3), w_0 = 0.
        return w[0] ** 2 * (20 + jnp.dot(h, w[1:])) / 2 - 3 * w[1] + 0.5 * jnp.sum(w[1:] ** 2)

    w = jnp.array([0.0, 0.1, 0.5, 0.5])
    w = w.at[1].set(-(h[1] * w[2] + h[2] * w[3]) / h[0])
    found = jax.jit(lambda w: central_flow_step("gd", loss, w, None, learning_rate=0.1, dt=1e-3))(w)
    g, S = np.asarray(jax.grad(loss)(w)), np.concatenate([[0.0], np.asarray(h)])
    n = S / np.linalg.norm(S)
    want = -0.1 * (g - n * (n @ g))
    np.testing.assert_allclose((np.asarray(found.params) - np.asarray(w)) / 1e-3, want, atol=1e-9)
    assert float(found.X[0, 0]) * 0.1 == pytest.approx(-2 * (g @ S) / (S @ S), rel=1e-9)
    with_more = jax.jit(lambda w: central_flow_step("gd", loss, w, None, learning_rate=0.1, dt=1e-3, max_critical=2))(w)
    # The second eigenvalue is 0.1: masked, and the general solver finds the closed form.
    np.testing.assert_allclose(with_more.X, [[found.X[0, 0], 0], [0, 0]], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(with_more.params, found.params, rtol=1e-11)


def test_rmsprop_on_a_parabola(x64: None) -> None:
    """RMSProp on h x^2 / 2 ends in the cycle x = +-lr / 2: nu falls until lr h / sqrt(nu) = 2, and the variance
    lr^2 / 4 then keeps it there. The scalar rule and the elementwise one are the same in one dimension."""
    h, rate = 3.0, 0.1
    loss = lambda x: 0.5 * h * x**2  # noqa: E731
    x, nu = jnp.array(0.3), jnp.array(0.81)

    def descend(carry: Any, _: None) -> tuple[Any, Any]:
        x, nu = carry
        g = h * x
        nu = 0.9 * nu + 0.1 * g**2
        return (x - rate * g / jnp.sqrt(nu), nu), x

    _, xs = jax.jit(lambda c: jax.lax.scan(descend, c, None, 2000))((x, nu))
    np.testing.assert_allclose(np.abs(xs[-2:]), rate / 2, rtol=1e-6)
    for rule in ("scalar_rmsprop", "rmsprop"):
        step = partial(central_flow_step, rule, loss, learning_rate=rate, b2=0.9)
        (end, nu_end), found = follow(step, jnp.array(0.0), nu, 600)
        assert float(found.eigenvalues[-1, 0]) == pytest.approx(2, rel=1e-6)
        assert float(end) == 0 and float(nu_end) == pytest.approx((h * rate / 2) ** 2, rel=1e-6)
        # Sigma = u X u, u^2 P = 1.
        assert float(found.X[-1, 0, 0]) * rate / np.sqrt(float(nu_end)) == pytest.approx(rate**2 / 4, rel=1e-6)


def test_eps_is_outside_of_the_root(x64: None) -> None:
    """A step of the stable flow by hand: nu' = (1 - b2) / b2 (g^2 - nu), P = (sqrt(nu) + eps) / lr."""
    x, nu = jnp.array([2.0, -1.0]), jnp.array([4.0, 9.0])
    loss = lambda x: 0.5 * jnp.sum(jnp.array([1.0, 3.0]) * jnp.square(x))  # noqa: E731
    g = np.array([2.0, -3.0])
    new, state = stable_flow_step("rmsprop", loss, x, nu, learning_rate=0.1, b2=0.8, eps=0.5, dt=0.5)
    assert_equal(new, np.asarray(x) - 0.5 * 0.1 * g / (np.sqrt(np.asarray(nu)) + 0.5))
    assert_equal(state, np.asarray(nu) + 0.5 * 0.25 * (g**2 - np.asarray(nu)))
    new, state = stable_flow_step("scalar_rmsprop", loss, x, jnp.array(4.0), learning_rate=0.1, b2=0.8, eps=0.5, dt=0.5)
    assert_equal(new, np.asarray(x) - 0.5 * 0.1 * g / 2.5)
    assert_equal(state, 4 + 0.5 * 0.25 * (13.0 - 4.0))


def test_two_critical_eigenvalues_at_once(x64: None) -> None:
    """Two copies of the toy: X is diagonal with the value of each, or only of the one that is at the edge."""

    def two(w: Any) -> jax.Array:
        return toy(w["one"]) + toy(w["two"])

    one, low = ({"x": jnp.array(0.0), "y": jnp.array(y)} for y in (19.0, 10.0))
    step = jax.jit(lambda w: central_flow_step("gd", two, w, None, learning_rate=RATE, max_critical=2))
    found = step({"one": one, "two": one})
    np.testing.assert_allclose(np.linalg.eigvalsh(found.X) * RATE, [0.4, 0.4], rtol=1e-6)
    for name in ("one", "two"):
        np.testing.assert_allclose(found.params[name]["y"], 19, rtol=1e-9)
    found = step({"one": one, "two": low})
    np.testing.assert_allclose(np.linalg.eigvalsh(found.X) * RATE, [0, 0.4], rtol=1e-6, atol=1e-12)
    # That one moves as gradient flow does.
    assert float(found.params["two"]["y"]) == pytest.approx(10 + 0.25 * RATE * (C - D * 10), rel=1e-9)


def test_the_complementarity_problem(x64: None) -> None:
    """X >= 0, A + B[X] >= 0 and their product 0, for a random A and a random convex B on 3 x 3 matrices."""
    k = 3
    first, second = np.triu_indices(k)
    place = np.zeros((k, k), int)
    place[first, second] = place[second, first] = np.arange(len(first))
    twice = jnp.asarray(np.where(first == second, 1.0, 2.0))
    rng = np.random.default_rng(0)
    L = rng.standard_normal((6, 6))
    B = L @ L.T + 0.1 * np.eye(6)
    A = rng.standard_normal((k, k))
    A = A + A.T
    X = np.asarray(
        jax.jit(lambda A, B: central_flow._oscillation(A, B, twice, place, jnp.ones((k, k)), 3000))(
            jnp.asarray(A), jnp.asarray(B)
        )
    )
    S = A + (B @ (np.asarray(twice) * X[first, second]))[place]
    assert np.linalg.eigvalsh(X)[0] > -1e-12 and np.linalg.eigvalsh(X)[-1] > 1e-2
    assert np.linalg.eigvalsh(S)[0] > -1e-6
    np.testing.assert_allclose(X @ S, 0, atol=1e-6)


def network() -> tuple[Any, Any]:
    """A small regression on which gradient descent trains at the edge of stability."""
    rng = np.random.default_rng(3)
    inputs = jnp.asarray(rng.standard_normal((16, 3)))
    targets = jnp.asarray(np.sin(2 * np.asarray(inputs)).sum(1, keepdims=True))
    params = {"w": normal(0, 3, 8) / 2, "head": normal(1, 8, 1) / 2}

    def loss(x: Any) -> jax.Array:
        return jnp.mean(jnp.square(jnp.tanh(inputs @ x["w"]) @ x["head"] - targets)) / 2

    return params, loss


def test_below_the_edge_it_is_gradient_flow(x64: None) -> None:
    params, loss = network()
    for rule, state in (("gd", None), ("rmsprop", jax.tree.map(lambda x: jnp.full_like(x, 0.04), params))):
        central, stable = jax.jit(
            lambda x, s, rule=rule: (
                central_flow_step(rule, loss, x, s, learning_rate=0.01),
                stable_flow_step(rule, loss, x, s, learning_rate=0.01),
            )
        )(params, state)
        assert float(central.eigenvalues[0]) < 1.9
        assert_equal(tuple(central[:2]), stable)
        assert float(central.time_averaged_loss) == float(central.loss)


@pytest.mark.slow
def test_it_follows_gradient_descent_where_the_stable_flow_does_not(x64: None) -> None:
    """At the edge of stability of a small network: the sharpness of the central flow stays at 2 / lr to the error of a
    step of dt, and its distance to gradient descent is a small share of that of the stable flow."""
    params, loss = network()
    rate, steps = 0.9, 300
    flat = lambda x: ravel_pytree(x)[0]  # noqa: E731

    def descend(x: Any, _: None) -> tuple[Any, Any]:
        return jax.tree.map(lambda p, g: p - rate * g, x, jax.grad(loss)(x)), flat(x)

    def central(x: Any, _: None) -> tuple[Any, Any]:
        first, found = flat(x), None
        for _i in range(4):
            found = central_flow_step("gd", loss, x, None, learning_rate=rate, max_critical=1)
            x = found.params
        return x, (first, found.eigenvalues[0])

    def stable(x: Any, _: None) -> tuple[Any, Any]:
        first = flat(x)
        for _i in range(8):
            x, _ = stable_flow_step("gd", loss, x, None, learning_rate=rate, dt=0.125)
        return x, first

    run = jax.jit(lambda x: tuple(jax.lax.scan(f, x, None, steps)[1] for f in (descend, central, stable)))
    discrete, (middle, eigenvalues), other = (jax.tree.map(np.asarray, x) for x in run(params))
    assert eigenvalues.max() < 2.02
    at_edge = eigenvalues > 1.99
    assert at_edge.sum() > 100
    # Averages over two steps take the oscillation out.
    mean = (discrete[1:] + discrete[:-1]) / 2
    far = np.linalg.norm(other[1:] - mean, axis=1)[-1]
    near = np.linalg.norm(middle[1:] - mean, axis=1)[-1]
    assert near < 0.2 * far


def test_bad_input() -> None:
    loss = lambda x: jnp.sum(x**2)  # noqa: E731
    x = jnp.ones(2)
    with pytest.raises(ValueError, match="rule must be one of"):
        central_flow_step("adam", loss, x, None, learning_rate=0.1)
    with pytest.raises(ValueError, match="state must be one number for scalar_rmsprop"):
        central_flow_step("scalar_rmsprop", loss, x, x, learning_rate=0.1)
    with pytest.raises(ValueError, match="state must be None for gd"):
        stable_flow_step("gd", loss, x, x, learning_rate=0.1)
    with pytest.raises(ValueError, match="has shape"):
        stable_flow_step("rmsprop", loss, x, jnp.ones(3), learning_rate=0.1)
    with pytest.raises(ValueError, match="dt must be"):
        stable_flow_step("gd", loss, x, None, learning_rate=0.1, dt=0.0)
    with pytest.raises(ValueError, match="threshold must be"):
        central_flow_step("gd", loss, x, None, learning_rate=0.1, threshold=3.0)
    with pytest.raises(ValueError, match="k must be at most"):
        central_flow_step("gd", loss, x, None, learning_rate=0.1, max_critical=3)
