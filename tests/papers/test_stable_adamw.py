"""StableAdamW (Wortsman et al., 2023)."""

import jax.numpy as jnp
import numpy as np

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_first_step_is_adamw(x64: None) -> None:
    x = normal(0, 6)
    ours = updates(gk.stable_adamw(0.1, b2=0.99, eps=1e-8), x, [x])
    assert_equal(ours, updates(gk.adamw(0.1, b2=0.99, eps=1e-8), x, [x]), rtol=1e-9)


def test_spike_shortens_step_and_decay_alike(x64: None) -> None:
    """The same factor for the direction and for the decay, by a reference in NumPy."""
    x = np.asarray(normal(9, 5))
    gradients = [np.asarray(normal(i, 5)) for i in range(6)] + [50 * np.asarray(normal(7, 5))]
    m, v, want, largest = np.zeros(5), np.zeros(5), [], 0.0
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.9 * v + 0.1 * g**2
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.9**t)
        rms = np.sqrt(np.mean(g**2 / np.maximum(v_hat, 1e-12)))
        assert rms <= np.sqrt((1 - 0.9**t) / 0.1) * (1 + 1e-12)
        largest = max(largest, rms)
        want.append(-0.1 / max(1, rms) * (m_hat / (np.sqrt(v_hat) + 1e-6) + 0.5 * x))
        x = x + want[-1]
    assert largest > 2
    tx = gk.stable_adamw(0.1, b2=0.9, weight_decay=0.5)
    assert_equal(updates(tx, normal(9, 5), [jnp.asarray(g) for g in gradients]), [jnp.asarray(u) for u in want])
