"""The running mean of PPO-EWMA (Hilton, Cobbe, Schulman, 2021)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal

STEPS = 6


def iterates(decay: float, reset_at: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The parameters of a run, the start included, and the mean after each."""
    x, gradients = normal(0, 3), normal(1, STEPS, 3)
    tx = optax.chain(gk.sgd(0.5), gk.proximal_ewma(decay))

    def step(carry: tuple, now: tuple) -> tuple:
        x, state = carry
        g, t = now
        u, state = tx.update(g, state, x, reset=t == reset_at) if reset_at else tx.update(g, state, x)
        x = optax.apply_updates(x, u)
        return (x, state), (x, state[-1].proximal_params(x))

    _, (xs, means) = jax.jit(lambda c, n: jax.lax.scan(step, c, n))(
        (x, tx.init(x)), (gradients, jnp.arange(1, STEPS + 1))
    )
    return np.concatenate([x[None], xs]), np.concatenate([x[None], means])


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.889, 1.0])
def test_is_the_weighted_mean_of_all_iterates(decay: float, x64: None) -> None:
    """The start is one of them; with decay 1 the mean is arithmetic, with 0 it is the last iterate."""
    xs, means = iterates(decay)
    for t in range(STEPS + 1):
        weights = decay ** np.arange(t, -1, -1)
        assert_equal(means[t], np.average(xs[: t + 1], axis=0, weights=weights))
    if decay in (0.0, 1.0):
        assert_equal(means[-1], xs[-1] if decay == 0.0 else xs.mean(0))


def test_a_reset_forgets_earlier_iterates(x64: None) -> None:
    xs, means = iterates(0.7, reset_at=3)
    assert_equal(means[3], xs[3])
    for t in range(3, STEPS + 1):
        assert_equal(means[t], np.average(xs[3 : t + 1], axis=0, weights=0.7 ** np.arange(t - 3, -1, -1)))


def test_the_run_and_its_evaluation_are_not_changed_and_the_mean_begins_at_the_start() -> None:
    x = jnp.ones(3, jnp.bfloat16)
    tx = gk.proximal_ewma(0.9)
    state = tx.init(x)
    assert state.proximal_params(x).tolist() == x.tolist()
    assert gk.eval_params(state, x) is x
    u, state = tx.update(-x, state, x)
    assert u.tolist() == (-x).tolist() and state.mean.dtype == jnp.float32
    # A mean of 1 with weight 0.9 and 0 with weight 1, rounded to bfloat16 when it is read.
    np.testing.assert_allclose(np.asarray(state.mean), np.full(3, 0.9 / 1.9), rtol=1e-6)
    assert state.proximal_params(x).dtype == jnp.bfloat16
