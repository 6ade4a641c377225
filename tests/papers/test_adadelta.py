"""AdaDelta (Zeiler, 2012; Ruder, 2016)."""

import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_equations(x64: None) -> None:
    gradients, e, d = [normal(i, 6) for i in range(7)], np.zeros(6), np.zeros(6)
    for g, u in zip(gradients, updates(gk.adadelta(2.0, rho=0.7, eps=1e-3), gradients[0], gradients), strict=True):
        e = 0.7 * e + 0.3 * np.asarray(g) ** 2
        step = np.sqrt(d + 1e-3) / np.sqrt(e + 1e-3) * np.asarray(g)
        d = 0.7 * d + 0.3 * step**2
        assert_equal(u, -2.0 * step)


def test_equals_optax(x64: None) -> None:
    gradients = [normal(i, 6) for i in range(7)]
    theirs = optax.adadelta(1.0, rho=0.8, eps=1e-5)
    assert_equal(
        updates(gk.adadelta(rho=0.8, eps=1e-5), gradients[0], gradients), updates(theirs, gradients[0], gradients)
    )


def test_steps_have_the_units_of_the_parameters(x64: None) -> None:
    """Gradients in other units change the steps only by way of eps, whose share of g^2 is below 1e-8 here."""
    gradients = [normal(i, 6) for i in range(7)]
    gradients = [jnp.sign(g) * (1 + jnp.abs(g)) for g in gradients]
    tx = gk.adadelta(eps=1e-12)
    near, far = (updates(tx, gradients[0], [scale * g for g in gradients])[-1] for scale in (1.0, 1e3))
    assert_equal(near, far, rtol=1e-8)


def test_without_eps_nothing_ever_moves(x64: None) -> None:
    g = normal(0, 3)
    assert_equal(updates(gk.adadelta(eps=0.0), g, [g, g])[1], 0 * g)
