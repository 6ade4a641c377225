"""Forward gradients along a guess (Fournier et al., 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.gradients import guided_forward_gradient, project_onto_guess
from tests.papers.replay import assert_equal, normal

BLOCK = pytest.mark.parametrize("block", ["example", "leaf", "global"])


def trees() -> tuple[dict, dict]:
    t = {"kernel": normal(0, 4, 3, 2), "bias": normal(1, 4, 2)}
    return t, jax.tree.map(lambda x: jnp.sin(3 * x), t)


def inner(a: dict, b: dict) -> float:
    return sum(float(np.sum(np.asarray(x) * np.asarray(y))) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@BLOCK
def test_a_projection(block: str, x64: None) -> None:
    """The target is its own projection; twice is once; never longer, and never against the target."""
    t, u = trees()
    assert_equal(project_onto_guess(t, t, block=block), t)
    g = project_onto_guess(t, u, block=block)
    assert_equal(project_onto_guess(g, u, block=block), g)
    assert inner(g, t) > 0 and inner(g, g) <= inner(t, t) * (1 + 1e-12)
    assert_equal(jnp.asarray(inner(g, t)), jnp.asarray(inner(g, g)))
    scaled = project_onto_guess(t, jax.tree.map(lambda x: 7 * x, u), block=block)
    assert_equal(scaled, g)
    zero = project_onto_guess(t, jax.tree.map(jnp.zeros_like, u), block=block, eps=0.0)
    assert not any(np.any(x) for x in jax.tree.leaves(zero))


def test_every_leaf_has_its_own_projection(x64: None) -> None:
    """Of a kernel and its bias: the released code puts the one of the bias into both places."""
    t, u = trees()
    for block, axes in (("leaf", None), ("example", "rows")):
        g = project_onto_guess(t, u, block=block)
        for name in t:
            a, b = np.asarray(t[name]), np.asarray(u[name])
            over = tuple(range(1, a.ndim)) if axes else tuple(range(a.ndim))
            assert_equal(g[name], np.sum(a * b, over, keepdims=True) / np.sum(b * b, over, keepdims=True) * b)


def test_orthonormal_guesses_that_span_give_the_target(x64: None) -> None:
    t = normal(0, 5)
    basis = np.linalg.qr(np.asarray(normal(1, 5, 5)))[0]
    assert_equal(sum(project_onto_guess(t, jnp.asarray(u)) for u in basis.T), t)


def test_a_random_guess_has_the_mean_t_over_n(x64: None) -> None:
    """So the estimate is biased; a normal guess with its length taken out has E u u^T / |u|^2 = I / n."""
    t, draws, n = normal(0, 6), 4000, 6
    guesses = jax.random.normal(jax.random.key(0), (draws, n))
    got = np.asarray(jax.vmap(lambda u: project_onto_guess(t, u))(guesses))
    assert np.all(np.abs(got.mean(0) - np.asarray(t) / n) < 5 * got.std(0) / np.sqrt(draws))


@pytest.mark.parametrize("block", ["leaf", "global"])
def test_the_source_is_the_projection_of_the_gradient(block: str, x64: None) -> None:
    params = {"kernel": normal(0, 3, 2), "bias": normal(1, 2)}
    x = normal(2, 5, 3)
    loss = lambda p, x: jnp.mean(jnp.tanh(x @ p["kernel"] + p["bias"][None]) ** 2)  # noqa: E731
    guess = lambda p, x: jax.grad(lambda p: jnp.mean(jnp.square(x[:2] @ p["kernel"] + p["bias"][None])))(p)  # noqa: E731
    value, g = jax.jit(guided_forward_gradient(loss, guess, block=block))(params, x)
    assert_equal(value, loss(params, x))
    assert_equal(g, project_onto_guess(jax.grad(loss)(params, x), guess(params, x), block=block))
    exact = jax.jit(guided_forward_gradient(loss, lambda p, x: jax.grad(loss)(p, x), block=block))(params, x)[1]
    assert_equal(exact, jax.grad(loss)(params, x), rtol=1e-10)


def test_replicas_share_guess_and_slope(x64: None) -> None:
    w, x = normal(0, 3), normal(1, 2, 4, 3)
    loss = lambda w, x: jnp.mean(jnp.sin(x @ w))  # noqa: E731
    guess = lambda w, x: jnp.mean(x, axis=0)  # noqa: E731
    fn = guided_forward_gradient(loss, guess, axis_name="replica")
    value, g = jax.vmap(lambda x: fn(w, x), axis_name="replica")(x)
    whole = guided_forward_gradient(loss, guess)(w, x.reshape(8, 3))
    for r in range(2):
        assert_equal((value[r], g[r]), whole)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="leading axis of examples"):
        project_onto_guess(jnp.array(1.0), jnp.array(1.0), block="example")
    with pytest.raises(ValueError, match="do not match"):
        guided_forward_gradient(jnp.sum, lambda p: {"a": p})(jnp.ones(2))
