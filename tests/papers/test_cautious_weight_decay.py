"""Cautious weight decay (Chen et al., 2025)."""

import jax.numpy as jnp
import optax

import gradkit as gk
from tests.papers.replay import assert_equal, descend, normal, updates


def test_minimum_is_not_moved(x64: None) -> None:
    """Gradient descent on (x - 1)^2 / 2 ends at 1, with plain decay at 1 / (1 + decay)."""
    x = jnp.asarray([3.0, -2.0])
    ends = []
    for link in (gk.cautious_weight_decay(0.5), gk.add_decayed_weights(0.5)):
        tx = optax.chain(link, gk.scale_by_learning_rate(0.1))
        ends.append(descend(tx, x, lambda x: x - 1.0, 300)[-1])
    assert_equal(ends, [jnp.ones(2), jnp.full(2, 2 / 3)], rtol=1e-9)


def test_where_there_is_no_direction_it_is_plain_decay(x64: None) -> None:
    x = normal(0, 6)
    assert_equal(updates(gk.cautious_weight_decay(0.5), x, [0 * x])[0], 0.5 * x)


def test_no_decay_where_the_step_makes_an_entry_larger(x64: None) -> None:
    """Also where the product of direction and parameter is rounded to 0."""
    for scale in (1.0, 1e-200):
        x = scale * normal(0, 6)
        tx = gk.cautious_weight_decay(0.5)
        assert_equal(tx.update(-x, tx.init(x), x)[0], -x, atol=0)
        assert_equal(tx.update(x, tx.init(x), x)[0], 1.5 * x, atol=0)


def test_decay_of_a_schedule(x64: None) -> None:
    x = jnp.ones(3)
    tx = gk.cautious_weight_decay(lambda step: 0.5 * step.astype(float))
    state = tx.init(x)
    for want in (0.0, 0.5, 1.0):
        u, state = tx.update(0 * x, state, x)
        assert_equal(u, jnp.full(3, want))
