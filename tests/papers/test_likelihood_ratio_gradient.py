"""Gradients by the likelihood ratio (Jiang et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.gradients import likelihood_ratio_gradient, lr_dense
from tests.papers.replay import assert_equal, normal

B, IN, OUT, DRAWS = 6, 3, 2, 20_000
SIGMA = np.array([0.5, 0.8])


def setting() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    return normal(0, B, IN), normal(1, IN, OUT), normal(2, OUT), normal(3, B, OUT)


def estimates(losses: Any, *, antithetic: bool = False, **more: Any) -> Any:
    x, W, b, _ = setting()

    def draw(key: jax.Array) -> Any:
        noise = jax.random.normal(key, (B, OUT))
        v, tape = lr_dense(x, W, b, noise, jnp.asarray(SIGMA))
        mirrored = losses(lr_dense(x, W, b, -noise, jnp.asarray(SIGMA))[0]) if antithetic else None
        return likelihood_ratio_gradient(losses(v), tape, mirrored_losses=mirrored, **more)

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), DRAWS)))


def near(got: np.ndarray, want: Any) -> None:
    """Within four standard errors of the mean."""
    want = np.asarray(want)
    assert np.all(np.abs(got.mean(0) - want) < 4 * got.std(0) / np.sqrt(DRAWS))


@pytest.mark.parametrize(
    "more", [{}, {"antithetic": True}, {"baseline": "leave_one_out"}, {"antithetic": True, "baseline": "leave_one_out"}]
)
def test_the_mean_is_the_gradient_of_the_smoothed_quadratic(more: dict, x64: None) -> None:
    """E of |v + z - y|^2 is |v - y|^2 + sum sigma^2: in W and b the gradient without noise, in sigma 2 sigma."""
    x, W, b, y = setting()
    got = estimates(lambda v: jnp.sum(jnp.square(v - y), axis=1), **more)
    smooth = lambda W, b, s: jnp.mean(jnp.sum(jnp.square(x @ W + b[None] - y) + jnp.square(s)[None], axis=1))  # noqa: E731
    for a, want in zip(got, jax.grad(smooth, (0, 1, 2))(W, b, jnp.asarray(SIGMA)), strict=True):
        near(a, want)


def test_a_step_that_has_no_derivative_has_a_smoothed_one(x64: None) -> None:
    """Of the sign of v, E = 2 Phi(v / sigma) - 1, in closed form."""
    x, W, b, _ = setting()
    got = estimates(lambda v: jnp.sum(jnp.sign(v), axis=1), antithetic=True)
    smooth = lambda W, b: jnp.mean(jnp.sum(jax.lax.erf((x @ W + b[None]) / (SIGMA[None] * np.sqrt(2))), axis=1))  # noqa: E731
    for a, want in zip(got[:2], jax.grad(smooth, (0, 1))(W, b), strict=True):
        near(a, want)


def test_antithetic_pairs_and_baselines_take_out_the_constant(x64: None) -> None:
    """A constant added to the loss changes nothing; without them it changes every draw, and its variance."""
    x, W, b, _ = setting()
    noise = normal(5, B, OUT)
    v, tape = lr_dense(x, W, b, noise, 0.5)
    w, _ = lr_dense(x, W, b, -noise, 0.5)
    loss = lambda v: v @ jnp.array([1.0, -2.0])  # noqa: E731
    pair = [likelihood_ratio_gradient(loss(v) + c, tape, mirrored_losses=loss(w) + c) for c in (0.0, 100.0)]
    assert_equal(pair[0][:2], pair[1][:2], rtol=1e-10)
    # Of a linear loss the difference is that of z alone.
    z = 0.5 * np.asarray(noise)
    assert_equal(pair[0].bias, ((z @ [1.0, -2.0])[:, None] * z / 0.25).mean(0), rtol=1e-10)
    based = [likelihood_ratio_gradient(loss(v) + c, tape, baseline="leave_one_out") for c in (0.0, 100.0)]
    assert_equal(based[0], based[1], rtol=1e-10)
    plain = [likelihood_ratio_gradient(loss(v) + c, tape).bias for c in (0.0, 100.0)]
    assert np.abs(plain[0] - plain[1]).max() > 1
    losses, others = np.asarray(loss(v)), (np.sum(loss(v)) - np.asarray(loss(v))) / (B - 1)
    assert_equal(based[0].bias, ((losses - others)[:, None] * z / 0.25).mean(0), rtol=1e-10)
    mean = likelihood_ratio_gradient(loss(v), tape, baseline="mean")
    assert_equal(jax.tree.map(lambda m: m * B / (B - 1), mean), based[0], rtol=1e-10)


def test_one_sigma_has_the_sum_over_the_outputs(x64: None) -> None:
    x, W, b, _ = setting()
    noise = normal(5, B, OUT)
    v, tape = lr_dense(x, W, b, noise, 0.5)
    each = likelihood_ratio_gradient(v[:, 0], tape._replace(sigma=jnp.full(OUT, 0.5)))
    one = likelihood_ratio_gradient(v[:, 0], tape)
    assert_equal(one, each._replace(sigma=jnp.sum(each.sigma)))


def test_bad_input() -> None:
    x, W, b, _ = setting()
    noise = jnp.zeros((B, OUT))
    for sigma in (0.0, jnp.array([1.0, -1.0]), jnp.ones(3)):
        with pytest.raises(ValueError, match="sigma must be"):
            lr_dense(x, W, b, noise, sigma)
    with pytest.raises(ValueError, match="must fit"):
        lr_dense(x, W, b, noise[:2], 0.5)
    tape = lr_dense(x, W, b, noise, 0.5)[1]
    with pytest.raises(ValueError, match=r"losses must be one number per example, \(6,\), got shape \(\)"):
        likelihood_ratio_gradient(jnp.ones(()), tape)
    with pytest.raises(ValueError, match="baseline must be 'none' for a batch of one"):
        likelihood_ratio_gradient(jnp.ones(1), jax.tree.map(lambda t: t[:1] if t.ndim else t, tape), baseline="mean")
