"""Subspaces of policy gradients, of actor and critic apart (Schneider et al., 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.diagnostics import policy_gradient_subspace
from tests.papers.replay import normal


def test_actor_and_critic_apart(x64: None) -> None:
    """Quadratics in closed form: V is the first axes of each; a critic with fewer parameters than k has all of them."""
    curvature = {"actor": jnp.array([9.0, 5.0, 1.0, 0.5]), "critic": jnp.array([1.0, 2.0])}
    params = {"actor": jnp.ones(4), "critic": jnp.array([1.0, -1.0])}

    def loss(name: str) -> Any:
        return lambda x, batch: 0.5 * jnp.sum(curvature[name] * jnp.square(x)) + jnp.mean(batch) * jnp.sum(x)

    losses = {name: loss(name) for name in curvature}
    minibatches = normal(0, 3, 8)
    minibatches = minibatches - jnp.mean(minibatches)
    large = minibatches.reshape(-1)

    found = jax.jit(lambda x, k: policy_gradient_subspace(losses, x, k, large, minibatches, k=2))(
        params, jax.random.key(0)
    )
    actor, critic = found["actor"], found["critic"]
    np.testing.assert_allclose(actor.pairs.values, [9, 5], rtol=1e-10)
    np.testing.assert_allclose(critic.pairs.values, [2, 1], rtol=1e-10)
    # The large batch adds nothing to the gradient, whose mean is 0.
    assert float(actor.large_fraction) == pytest.approx((81 + 25) / (81 + 25 + 1 + 0.25), rel=1e-10)
    g = np.array([9, 5, 1, 0.5])[None] + np.asarray(minibatches).mean(1)[:, None]
    np.testing.assert_allclose(actor.fractions, (g[:, :2] ** 2).sum(1) / (g**2).sum(1), rtol=1e-10)
    assert actor.chance == 0.5 and critic.chance == 1.0
    np.testing.assert_allclose(critic.fractions, 1, rtol=1e-12)


def test_bad_input() -> None:
    loss = lambda x, b: jnp.sum(x * b)  # noqa: E731
    x = jnp.ones(2)
    with pytest.raises(ValueError, match="mappings with the same names"):
        policy_gradient_subspace({"actor": loss}, {"critic": x}, 0, x, x[None])
    with pytest.raises(ValueError, match="k must be an integer >= 1"):
        policy_gradient_subspace({"actor": loss}, {"actor": x}, 0, x, x[None], k=0)
    wrong: Any = 1.0
    with pytest.raises(ValueError, match="must be callable"):
        policy_gradient_subspace({"actor": wrong}, {"actor": x}, 0, x, x[None], k=1)
