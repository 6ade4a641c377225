"""Weight decay as a link (Loshchilov, Hutter, 2017)."""

import jax.numpy as jnp
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_equals_optax(x64: None) -> None:
    x = {"a": normal(0, 3), "b": normal(1, 2, 2)}
    g = {"a": normal(2, 3), "b": normal(3, 2, 2)}
    mask = {"a": False, "b": True}
    ours = updates(gk.add_decayed_weights(0.3, weight_decay_mask=mask), x, [g])[0]
    assert_equal(ours, updates(optax.add_decayed_weights(0.3, mask=mask), x, [g])[0])


def test_zero_decay_needs_no_params() -> None:
    tx = gk.add_decayed_weights(0.0)
    g = jnp.ones(2)
    assert tx.update(g, tx.init(g))[0] is not None
    with pytest.raises(ValueError, match="add_decayed_weights needs params"):
        gk.add_decayed_weights(0.1).update(g, tx.init(g))


def test_masks_that_do_not_fit_are_refused_at_init() -> None:
    x = {"a": jnp.ones(2)}
    with pytest.raises(ValueError, match="structure"):
        gk.add_decayed_weights(0.1, weight_decay_mask={"b": True}).init(x)
    with pytest.raises(ValueError, match="True or False"):
        gk.add_decayed_weights(0.1, weight_decay_mask={"a": "yes"}).init(x)
