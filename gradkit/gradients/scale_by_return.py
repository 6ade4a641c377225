"""Errors of temporal differences in units that do not depend on the scale of the rewards."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment
from gradkit.types import Scalar

PAPER = Paper(
    "Deep Policy Gradient Methods Without Batch Updates, Target Networks, or Replay Buffers",
    "Vasan et al.",
    2024,
    "2411.15370",
)
FLOOR = 1e-4  # of sigma squared
QUIET = 1e-2  # below it, before the first episode has ended, sigma is 1


class Running(NamedTuple):
    """The running mean, and the sum of the squares of the deviations from it."""

    count: jax.Array
    mean: jax.Array
    squares: jax.Array

    def after(self, x: jax.Array, where: Any = True) -> "Running":
        """With one more value, by Welford's rule; without it where `where` is False."""
        count = jnp.where(where, increment(self.count), self.count)
        change = x - self.mean
        mean = self.mean + change / jnp.maximum(count, 1).astype(x.dtype)
        squares = self.squares + change * (x - mean)
        return Running(count, jnp.where(where, mean, self.mean), jnp.where(where, squares, self.squares))

    @property
    def variance(self) -> jax.Array:
        """Of the population."""
        return self.squares / jnp.maximum(self.count, 1).astype(self.squares.dtype)


class ScaleByReturnState(NamedTuple):
    """Statistics of rewards, discounts and squared returns; the return of this episode and the discount in it."""

    rewards: Running
    discounts: Running
    squared_returns: Running
    running_return: jax.Array
    weight: jax.Array


class ScaleByReturn(NamedTuple):
    """A running scale of temporal-difference errors.

    Attributes:
      init: () -> state.
      update: (state, reward, done) -> (sigma, state): the statistics of this transition enter before sigma is read.
    """

    init: Any
    update: Any


def scale_by_return(discount: Scalar = 0.99, *, discounted_return: bool = False) -> ScaleByReturn:
    """AVG's scale of temporal-difference errors, from running statistics of rewards and returns.

        gamma_t = discount, or 0 where the episode ends;    G the sum of the rewards of an episode
        sigma^2 = max(Var[r] + Var[gamma] E[G^2], 1e-4);    sigma = 1 until an episode has ended if sigma^2 <= 0.01
        delta  <- delta / sigma

    of the error delta in the loss of the critic alone; the actor's loss is not scaled. With it go penultimate features
    of norm 1, normalized observations, and Adam with b1 = 0 (the code has b2 = 0.999, learning rates 6.3e-3 for the
    actor and 8.7e-3 for the critic): one sample per step, without a target network or a replay buffer.

    Args:
      discount: gamma in [0, 1]. Default 0.99.
      discounted_return: whether G is discounted from the start of the episode. Default False (official code).

    Returns:
      `ScaleByReturn(init, update)`. `reward` has the entropy bonus of the policy in it, `done` is whether the episode
      ends. State: eleven numbers. No collective; of several environments, one state each (`jax.vmap`).

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> scale = scale_by_return()
      >>> state = scale.init()
      >>> for reward in (1.0, 3.0):
      ...     sigma, state = scale.update(state, reward, False)
      >>> float(sigma)  # the variance of 1 and 3 is 1
      1.0

    Reference: Vasan et al. Deep Policy Gradient Methods Without Batch Updates, Target Networks, or Replay Buffers.
    2024, arXiv 2411.15370. Its code sums undiscounted rewards; variances are those of the population.
    """
    checks.real("discount", discount, "[0, 1]")
    checks.switch(discounted_return=discounted_return)

    def init() -> ScaleByReturnState:
        def empty() -> Running:
            return Running(jnp.zeros((), jnp.int32), jnp.zeros((), float), jnp.zeros((), float))

        return ScaleByReturnState(empty(), empty(), empty(), jnp.zeros((), float), jnp.ones((), float))

    def update(state: ScaleByReturnState, reward: Any, done: Any) -> tuple[jax.Array, ScaleByReturnState]:
        dtype = state.running_return.dtype
        reward, done = jnp.asarray(reward).astype(dtype), jnp.asarray(done).astype(bool)
        gamma = jnp.asarray(discount).astype(dtype)
        own = jnp.where(done, jnp.zeros_like(gamma), gamma)
        total = state.running_return + (state.weight * reward if discounted_return else reward)
        rewards, discounts = state.rewards.after(reward), state.discounts.after(own)
        returns = state.squared_returns.after(jnp.square(total), done)
        square = jnp.maximum(rewards.variance + discounts.variance * returns.mean, jnp.asarray(FLOOR, dtype))
        sigma = jnp.where((returns.count == 0) & (square <= QUIET), jnp.ones_like(square), jnp.sqrt(square))
        after = ScaleByReturnState(
            rewards,
            discounts,
            returns,
            jnp.where(done, jnp.zeros_like(total), total),
            jnp.where(done, jnp.ones_like(gamma), state.weight * gamma),
        )
        return sigma, after

    return ScaleByReturn(init, update)


register(scale_by_return, form="program", paper=PAPER, golden=("second_shelf/scale_by_return",))
