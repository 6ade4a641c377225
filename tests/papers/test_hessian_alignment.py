"""Hessian alignment: on quadratic losses, whose Hessians are known, and the constants of its derivative."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.losses import hgp_penalty, hutchinson_penalty
from tests.papers.stacks import draw


def loss(head: dict, batch: dict) -> jax.Array:
    residual = batch["x"] @ head["w"] + head["b"] - batch["y"]
    return jnp.mean(jnp.square(residual)) / 2


def problem(domains: int = 3, apart: float = 1.0) -> tuple[dict, list[dict], list[np.ndarray], list[np.ndarray]]:
    """The head, the batches (of which `apart` is not the same in all domains), and by hand the gradients and Hessians
    over (w, b); the mean over domains last."""
    head = {"w": jnp.asarray(draw(0, 1, 4)[0]), "b": jnp.asarray(0.3)}
    batches = [
        {"x": jnp.asarray(draw(20, 6, 4) + apart * draw(i + 1, 6, 4)), "y": jnp.asarray(draw(i + 9, 1, 6)[0])}
        for i in range(domains)
    ]
    theta, g, H = np.append(np.asarray(head["w"]), 0.3), [], []
    for batch in batches:
        X = np.column_stack([batch["x"], np.ones(6)])
        H.append(X.T @ X / 6)
        g.append(X.T @ (X @ theta - np.asarray(batch["y"])) / 6)
    return head, batches, [*g, np.mean(g, axis=0)], [*H, np.mean(H, axis=0)]


def by_hand(v: list[np.ndarray], g: list[np.ndarray], alpha: float, beta: float) -> float:
    apart = [alpha * np.sum((a - v[-1]) ** 2) + beta * np.sum((b - g[-1]) ** 2) for a, b in zip(v, g, strict=True)]
    return float(np.mean(apart[:-1]))


def test_hgp_has_the_products_with_the_dense_hessians(x64: None) -> None:
    head, batches, g, H = problem()
    want = by_hand([h @ x for h, x in zip(H, g, strict=True)], g, 0.2, 0.7)
    got = jax.jit(lambda head: hgp_penalty(loss, head, batches, alpha=0.2, beta=0.7))(head)
    np.testing.assert_allclose(float(got), want, rtol=1e-12)


def test_hutchinson_estimates_the_diagonals(x64: None) -> None:
    """Between domains that are nearly the same, signs that are shared take most of the noise out of the differences."""
    head, batches, g, H = problem(apart=0.1)
    want = by_hand([np.diagonal(h) for h in H], g, 1.0, 0.0)

    @functools.partial(jax.jit, static_argnums=1)
    def many(keys: jax.Array, shared: bool) -> jax.Array:
        one = functools.partial(hutchinson_penalty, loss, head, batches, alpha=1.0, beta=0.0, num_samples=100)
        return jax.lax.map(lambda key: one(key=key, share_probes=shared), keys)

    keys = jax.random.split(jax.random.key(0), 20)
    errors = {shared: np.abs(np.asarray(many(keys, shared)) - want).mean() for shared in (True, False)}
    # Of 100 samples the noise of a diagonal is a tenth of the other entries of its row; shared, of their differences.
    assert 5 * errors[True] < errors[False] and errors[True] < 0.3 * want


def test_equal_domains_have_no_penalty_and_the_mean_is_a_constant(x64: None) -> None:
    head, batches, g, H = problem()
    same = [batches[0]] * 3
    assert float(hgp_penalty(loss, head, same)) < 1e-25
    assert float(hutchinson_penalty(loss, head, same, key=0, num_samples=3)) < 1e-25
    # d/dtheta of beta mean |g_e - sg(g)|^2 is 2 beta mean H_e (g_e - g).
    got = jax.grad(lambda head: hgp_penalty(loss, head, batches, alpha=0.0, beta=0.7))(head)
    want = 1.4 * np.mean([h @ (x - g[-1]) for h, x in zip(H[:-1], g[:-1], strict=True)], axis=0)
    np.testing.assert_allclose(np.append(np.asarray(got["w"]), got["b"]), want, rtol=1e-10)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="domain_batches must be"):
        hgp_penalty(loss, jnp.ones(2), [])
    with pytest.raises(ValueError, match="key must be"):
        hutchinson_penalty(loss, jnp.ones(2), [jnp.ones(2)], key=None)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, inf\)"):
        hgp_penalty(loss, jnp.ones(2), [jnp.ones(2)], alpha=-1.0)
