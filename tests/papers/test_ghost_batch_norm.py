"""Ghost batch normalization (Hoffer, Hubara, Soudry, 2017)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gradkit.layers import RunningStatistics, ghost_batch_norm
from tests.papers.replay import assert_equal, normal

START = RunningStatistics(jnp.full(3, 0.5), jnp.full(3, 2.0))


def flax(x: jax.Array, scale: jax.Array, bias: jax.Array, state: RunningStatistics, decay: float) -> tuple:
    layer = nn.BatchNorm(use_running_average=False, momentum=decay, use_fast_variance=False)
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": state._asdict()}
    y, new = layer.apply(variables, x, mutable=["batch_stats"])
    return y, RunningStatistics(**new["batch_stats"])


def test_one_ghost_is_batch_normalization_and_several_are_one_after_another() -> None:
    """Outputs, gradients and running moments of Flax's layer, called ghost by ghost. A few roundings of float32."""
    x, scale, bias = (v.astype(jnp.float32) for v in (normal(0, 8, 2, 3), normal(1, 3), normal(2, 3)))
    for size in (8, 4, 2):
        y, state = ghost_batch_norm(x, scale, bias, START, ghost_size=size, decay=0.8)
        want, running = [], START
        for part in jnp.split(x, 8 // size):
            out, running = flax(part, scale, bias, running, 0.8)
            want.append(out)
        assert_equal(y, jnp.concatenate(want), rtol=1e-5, atol=1e-5)
        assert_equal(state, running, rtol=1e-5)
    ours = jax.grad(lambda x: jnp.sum(ghost_batch_norm(x, scale, bias, START, ghost_size=8)[0] ** 3))(x)
    theirs = jax.grad(lambda x: jnp.sum(flax(x, scale, bias, START, 0.99)[0] ** 3))(x)
    assert_equal(ours, theirs, rtol=1e-4, atol=1e-4)


def test_each_ghost_has_mean_0_and_variance_1(x64: None) -> None:
    x = 3 + 5 * normal(0, 12, 3)
    y, state = ghost_batch_norm(x, jnp.ones(3), jnp.zeros(3), START, ghost_size=4, decay=0.9)
    ghosts = y.reshape(3, 4, 3)
    assert_equal(ghosts.mean(1), np.zeros((3, 3)), atol=1e-14)
    var = x.reshape(3, 4, 3).var(1)
    assert_equal(ghosts.var(1), var / (var + 1e-5))
    weights = 0.1 * 0.9 ** np.array([2.0, 1.0, 0.0])
    assert_equal(state.mean, 0.9**3 * 0.5 + weights @ x.reshape(3, 4, 3).mean(1), rtol=1e-6)


def test_inference_uses_the_running_moments(x64: None) -> None:
    x = normal(0, 5, 3)
    y, state = ghost_batch_norm(x, jnp.ones(3), jnp.zeros(3), START, use_running_average=True, ghost_size=1)
    assert_equal(y, (x - 0.5) / np.sqrt(2.0 + 1e-5), rtol=1e-7)
    assert state is START


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="ghost_size must divide the examples"):
        ghost_batch_norm(jnp.ones((6, 3)), jnp.ones(3), jnp.ones(3), START, ghost_size=4)
    with pytest.raises(ValueError, match="decay must be in"):
        ghost_batch_norm(jnp.ones((6, 3)), jnp.ones(3), jnp.ones(3), START, ghost_size=2, decay=1.5)
    with pytest.raises(ValueError, match=r"scale must have shape \(3,\)"):
        ghost_batch_norm(jnp.ones((6, 3)), jnp.ones(1), jnp.ones(3), START, ghost_size=2)
