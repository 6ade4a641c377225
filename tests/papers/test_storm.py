"""STORM (Cutkosky and Orabona, 2019)."""

import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def test_the_recursion_with_both_gradients_of_one_batch(x64: None) -> None:
    """In NumPy, with a gradient per batch; a = 1 is the gradient itself."""
    A, b = np.asarray(normal(0, 4, 3, 3)), np.asarray(normal(1, 4, 3))
    for a in (0.3, 1.0):
        tx = optax.chain(gk.storm(a=a), optax.sgd(0.1))
        w = want = np.ones(3)
        state, d, before = tx.init(jnp.asarray(w)), None, None
        x = jnp.asarray(w)
        for t in range(4):
            grad = lambda w, t=t: jnp.asarray(A[t]) @ w + jnp.asarray(b[t])  # noqa: E731
            g = A[t] @ want + b[t]
            d = g if d is None else g + (1 - a) * (d - (A[t] @ before + b[t]))
            before, want = want, want - 0.1 * d
            updates, state = tx.update(grad(x), state, x, grad_fn=grad)
            x = x + updates
            assert_equal(x, want, rtol=1e-10)


def test_the_noise_of_batches_averages_out(x64: None) -> None:
    """Near a point that does not move, the error of d has a variance a / (2 - a) of the batch's own."""
    rng, a, n = np.random.default_rng(0), 0.1, 20_000
    tx = gk.storm(a=a)
    w = jnp.zeros(n)
    state = tx.init(w)
    for _ in range(60):
        noise = jnp.asarray(rng.standard_normal(n))
        d, state = tx.update(noise, state, w, grad_fn=lambda w, noise=noise: w + noise)
    # What 60 steps leave of the first gradient is (0.9)^118, 4e-6.
    assert abs(float(np.var(np.asarray(d))) / (a / (2 - a)) - 1) < 5 * np.sqrt(2 / n) + 1e-4
