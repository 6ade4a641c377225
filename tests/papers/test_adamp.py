"""AdamP and SGDP (Heo et al., 2020)."""

import jax
import jax.numpy as jnp
import numpy as np

import gradkit as gk
from tests.papers.replay import assert_equal, descend, normal, updates


def scale_invariant_gradient(target: jax.Array):
    """The gradient of a loss that depends on the direction of every column alone."""

    def loss(w: jax.Array) -> jax.Array:
        return jnp.sum((w / jnp.linalg.norm(w, axis=0, keepdims=True) - target) ** 2)

    return jax.grad(loss)


def test_delta_zero_is_adamw_and_sgd(x64: None) -> None:
    gradients = [normal(i, 4, 3) for i in range(5)]
    x = normal(9, 4, 3)
    assert_equal(
        updates(gk.adamp(0.1, weight_decay=0.2, delta=0.0), x, gradients),
        updates(gk.adamw(0.1, weight_decay=0.2), x, gradients),
    )
    assert_equal(
        updates(gk.sgdp(0.1, momentum=0.9, delta=0.0), x, gradients), updates(gk.sgd(0.1, momentum=0.9), x, gradients)
    )


def test_norms_grow_slower_on_scale_invariant_weights(x64: None) -> None:
    """The paper's claim: momentum SGD lengthens such weights, its projected form by second order only."""
    target = normal(1, 8, 4)
    target = target / jnp.linalg.norm(target, axis=0, keepdims=True)
    w, gradient = normal(0, 8, 4), scale_invariant_gradient(target)
    norm = lambda xs: float(jnp.linalg.norm(xs[-1]))  # noqa: E731
    plain = descend(gk.sgd(0.2, momentum=0.9), w, gradient, 60)
    ours = descend(gk.sgdp(0.2, momentum=0.9), w, gradient, 60)
    start = float(jnp.linalg.norm(w))
    assert norm(ours) - start < 0.5 * (norm(plain) - start)
    assert norm(ours) >= start - 1e-12  # tangential steps never shorten


def test_sgdp_keeps_its_momentum_unprojected(x64: None) -> None:
    x, gradients = normal(0, 4, 3), [normal(i, 4, 3) for i in (1, 2)]
    tx = gk.sgdp(1.0, momentum=0.5, delta=np.inf)
    state = tx.init(x)
    for g in gradients:
        _, state = tx.update(g, state, x)
    assert_equal(state[0].trace, gradients[1] + 0.5 * gradients[0])


def test_decay_of_sgdp_is_that_of_its_momentum(x64: None) -> None:
    x = normal(0, 3)
    assert_equal(updates(gk.sgdp(0.1, momentum=0.9, weight_decay=0.2), x, [0 * x])[0], -0.1 * 0.2 / 0.1 * x)
