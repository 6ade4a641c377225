"""AVG's scale of temporal-difference errors against the statistics in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk

REWARDS = np.random.default_rng(0).standard_normal(12)
DONE = np.isin(np.arange(12), [4, 9])


def sigmas(rewards: np.ndarray, done: np.ndarray = DONE, **how: object) -> np.ndarray:
    scale = gk.gradients.scale_by_return(0.9, **how)

    def step(state: object, row: tuple) -> tuple:
        sigma, state = scale.update(state, *row)
        return state, sigma

    return np.asarray(jax.jit(lambda *rows: jax.lax.scan(step, scale.init(), rows)[1])(jnp.asarray(rewards), done))


@pytest.mark.parametrize("discounted", [False, True])
def test_is_the_statistics_so_far(discounted: bool, x64: None) -> None:
    got, returns, G, weight = sigmas(REWARDS, discounted_return=discounted), [], 0.0, 1.0
    for t in range(12):
        G += (weight if discounted else 1.0) * REWARDS[t]
        weight *= 0.9
        if DONE[t]:
            returns.append(G**2)
            G, weight = 0.0, 1.0
        gammas = np.where(DONE[: t + 1], 0, 0.9)
        square = REWARDS[: t + 1].var() + gammas.var() * (np.mean(returns) if returns else 0.0)
        want = 1.0 if not returns and square <= 0.01 else np.sqrt(max(square, 1e-4))
        np.testing.assert_allclose(got[t], want, rtol=1e-12)


def test_is_in_units_of_the_rewards(x64: None) -> None:
    np.testing.assert_allclose(sigmas(100 * REWARDS)[1:], 100 * sigmas(REWARDS)[1:], rtol=1e-12)


def test_constant_rewards_have_the_floor_once_an_episode_has_ended_and_one_before() -> None:
    got = sigmas(np.zeros(6, np.float32), np.arange(6) == 3)
    np.testing.assert_allclose(got, [1, 1, 1, 0.01, 0.01, 0.01], rtol=1e-6)
