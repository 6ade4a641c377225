"""RMSProp (Hinton et al., 2012; Ruder, 2016)."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("eps_in_sqrt", [False, True])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.7, False), (0.7, True)])
def test_equations(centered: bool, eps_in_sqrt: bool, momentum: float, nesterov: bool, x64: None) -> None:
    gradients = [normal(i, 6) for i in range(5)]
    v = m = b = np.zeros(6)
    tx = gk.rmsprop(
        lambda step: 0.1 * (step.astype(float) + 1),
        decay=0.8,
        eps=1e-2,
        centered=centered,
        eps_in_sqrt=eps_in_sqrt,
        momentum=momentum,
        nesterov=nesterov,
    )
    for t, (g, u) in enumerate(zip(gradients, updates(tx, gradients[0], gradients), strict=True)):
        g = np.asarray(g)
        v, m = 0.8 * v + 0.2 * g**2, 0.8 * m + 0.2 * g
        variance = v - m**2 if centered else v
        step = g / (np.sqrt(variance + 1e-2) if eps_in_sqrt else np.sqrt(variance) + 1e-2)
        b = momentum * b + step
        assert_equal(u, -0.1 * (t + 1) * (step + momentum * b if nesterov else b))


def test_a_chain_gives_the_order_of_optax(x64: None) -> None:
    """The rate in front of the momentum: one chain away, and different where the rate changes."""
    gradients = [normal(i, 6) for i in range(5)]
    rate = lambda step: 0.1 * (step.astype(float) + 1)  # noqa: E731
    mine = optax.chain(gk.scale_by_rms(eps_in_sqrt=True), gk.scale_by_learning_rate(rate), gk.trace(0.7))
    theirs = optax.rmsprop(rate, momentum=0.7)
    assert_equal(updates(mine, gradients[0], gradients), updates(theirs, gradients[0], gradients))


def test_with_bias_correction_it_is_adam_without_momentum(x64: None) -> None:
    gradients = [normal(i, 6) for i in range(5)]
    adam = updates(gk.scale_by_adam(b1=0.0, b2=0.8, eps=0.0), gradients[0], gradients)
    for t, (a, u) in enumerate(
        zip(adam, updates(gk.scale_by_rms(decay=0.8, eps=0.0), gradients[0], gradients), strict=True), 1
    ):
        assert_equal(u, a / np.sqrt(1 - 0.8**t))


def test_a_variance_of_zero_gives_no_nan() -> None:
    """A constant gradient's variance tends to 0, which float32 rounds to either side."""
    g = jnp.full(50, 0.1) * jnp.arange(1.0, 51.0)
    got = updates(gk.rmsprop(0.1, decay=0.5, eps_in_sqrt=True, centered=True), g, [g] * 60)
    assert all(jnp.isfinite(u).all() for u in got)


def test_refuses_nesterov_alone() -> None:
    with pytest.raises(ValueError, match=r"momentum must be in \(0, 1\] with nesterov=True"):
        gk.rmsprop(0.1, nesterov=True)
