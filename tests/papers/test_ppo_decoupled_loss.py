"""The decoupled losses of PPO (Hilton, Cobbe, Schulman, 2021)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.losses import ppo_decoupled_kl_loss, ppo_decoupled_loss
from tests.papers.replay import assert_equal, normal


def numbers() -> list[jax.Array]:
    """Log-probabilities of three policies that differ by about 0.4, and advantages."""
    return [0.4 * normal(i, 40) - 2 for i in range(3)] + [normal(3, 40)]


def test_with_one_old_policy_it_is_ppo(x64: None) -> None:
    lp, old, _, A = numbers()
    ratio = np.exp(lp - old)
    want = -np.mean(np.minimum(A * ratio, A * np.clip(ratio, 0.8, 1.2)))
    assert_equal(ppo_decoupled_loss(lp, old, old, A), want)


def test_against_numpy(x64: None) -> None:
    """The behavior policy weighs, the proximal one clips."""
    lp, behavior, proximal, A = numbers()
    weight, step = np.exp(proximal - behavior), np.exp(lp - proximal)
    want = np.mean(weight * np.maximum(-A * step, -A * np.clip(step, 0.7, 1.3)))
    assert_equal(ppo_decoupled_loss(lp, behavior, proximal, A, epsilon=0.3), want)
    want = np.mean(-A * np.exp(lp - behavior)) + 0.35 * np.mean((lp - proximal) ** 2)
    assert_equal(ppo_decoupled_kl_loss(lp, behavior, proximal, A, kl_coefficient=0.7), want)


def test_the_gradient_is_of_the_policy_alone(x64: None) -> None:
    """-A exp(lp - behavior) / n where nothing is clipped, 0 where it is; none for the rest."""
    lp, behavior, proximal, A = numbers()
    g = jax.grad(ppo_decoupled_loss, argnums=(0, 1, 2, 3))(lp, behavior, proximal, A)
    step = np.exp(lp - proximal)
    clipped = ((A > 0) & (step > 1.2)) | ((A < 0) & (step < 0.8))
    assert clipped.any() and not clipped.all()
    assert_equal(g[0], np.where(clipped, 0, -A * np.exp(lp - behavior)) / 40)
    assert not any(np.any(x) for x in g[1:])


def test_the_ratio_is_capped_and_still_pulls(x64: None) -> None:
    """A ratio beyond the cap counts as the cap, with the gradient of one that is there."""
    lp, behavior, A = jnp.zeros(1), jnp.full(1, -50.0), jnp.ones(1)
    for loss in (ppo_decoupled_loss, ppo_decoupled_kl_loss):
        value, g = jax.value_and_grad(lambda lp, loss=loss: loss(lp, behavior, jnp.zeros(1), A))(lp)
        assert_equal(value, -100.0)
        assert_equal(g, np.array([-100.0]))


def test_low_precision_and_bad_input() -> None:
    low = [x.astype(jnp.bfloat16) for x in numbers()]
    assert ppo_decoupled_loss(*low).dtype == ppo_decoupled_kl_loss(*low).dtype == jnp.float32
    lp = jnp.zeros(3)
    with pytest.raises(ValueError, match="must have one shape"):
        ppo_decoupled_loss(lp, lp, lp, jnp.zeros((3, 1)))
    with pytest.raises(ValueError, match="advantages must be floating point"):
        ppo_decoupled_loss(lp, lp, lp, jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match=r"epsilon must be in \(0, 1\)"):
        ppo_decoupled_loss(lp, lp, lp, lp, epsilon=1.0)
    with pytest.raises(ValueError, match=r"kl_coefficient must be in \[0, inf\)"):
        ppo_decoupled_kl_loss(lp, lp, lp, lp, kl_coefficient=-1.0)
    with pytest.raises(ValueError, match=r"ratio_max must be in \(0, inf\]"):
        ppo_decoupled_loss(lp, lp, lp, lp, ratio_max=0.0)
