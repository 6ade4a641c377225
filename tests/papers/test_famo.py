"""FAMO: its two rules in NumPy, and that all losses fall alike."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit.aggregation import famo
from tests.papers.stacks import draw, runner


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


def test_three_steps_with_the_losses_of_the_same_batch(x64: None) -> None:
    """Adam with L2 decay, by hand."""
    run = runner(famo(num_tasks=4, weight_learning_rate=0.1, weight_decay=0.01))
    xi = m = v = np.zeros(4)
    J, state, after = draw(0), None, None
    for t in range(3):
        before = np.abs(draw(t + 1, 1)[0, :4]) + 0.5
        extra = {} if after is None else {"losses_after": jnp.asarray(after)}
        out, state = run(J, state, losses=jnp.asarray(before), **extra)
        shares = softmax(xi) / (before + 1e-8)
        np.testing.assert_allclose(out, shares / shares.sum() @ J, rtol=1e-10, atol=1e-12)
        after = before * np.array([0.9, 0.99, 1.1, 0.5])
        d = np.log(before + 1e-8) - np.log(after + 1e-8)
        z = softmax(xi)
        g = z * (d - z @ d) + 0.01 * xi
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        xi = xi - 0.1 * (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)


def test_losses_of_very_different_scales_fall_at_one_rate() -> None:
    """Three quadratics, a thousand times as large as each other: with the sum the smallest would hardly fall."""
    scales, tx = jnp.array([1.0, 1e3, 1e-3]), famo(num_tasks=3)

    def losses(x: jax.Array) -> jax.Array:
        return scales * jnp.sum(jnp.square(x - jnp.eye(3)), axis=1) + scales * 1e-3

    def step(carry: tuple, _: None) -> tuple:
        x, state = carry
        u, state = tx.update(jax.jacobian(losses)(x), state, x, losses=losses(x))
        return (optax.apply_updates(x, -0.5 * u / (1e-8 + jnp.linalg.norm(u)) * 0.1), state), None

    start = jnp.array([[4.0, 4.0, 4.0]])
    (x, _), _ = jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), length=40))(start)
    falls = np.log(np.asarray(losses(start))) - np.log(np.asarray(losses(x)))
    assert falls.min() > 0.5 and falls.max() < 1.1 * falls.min()
