"""Lookahead on one set of parameters (Wright, Demeure, 2021)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, descend, normal


def test_equals_optax_with_two_sets_of_parameters(x64: None) -> None:
    """The fast weights of `optax.lookahead`, momentum and all."""
    x, a = normal(0, 5), normal(1, 5)
    gradient = jax.grad(lambda x: jnp.sum((x - a) ** 4))
    inner = lambda: gk.sgd(0.02, momentum=0.9)  # noqa: E731
    ours = descend(optax.chain(inner(), gk.lookahead_in_chain(sync_every=3, slow_step_size=0.3)), x, gradient, 10)
    theirs = optax.lookahead(inner(), sync_period=3, slow_step_size=0.3)
    both = optax.LookaheadParams.init_synced(x)
    state = theirs.init(both)
    for want in ours[1:]:
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies booleans by floats
            u, state = theirs.update(gradient(both.fast), state, both)
        both = optax.apply_updates(both, u)
        assert_equal(want, both.fast)


def test_a_straight_run_makes_a_share_of_its_way(x64: None) -> None:
    """Steps of 1: after n whole periods of k steps the parameters have gone n k a; in between they run on."""
    tx = optax.chain(gk.lookahead_in_chain(sync_every=4, slow_step_size=0.25))
    path = np.array(descend(tx, jnp.zeros(()), lambda _: jnp.ones(()), 8))
    assert_equal(path, np.array([0, 1, 2, 3, 1, 2, 3, 4, 2]))


@pytest.mark.parametrize("settings", [{"slow_step_size": 1.0}, {"sync_every": 99}])
def test_nothing_is_pulled(settings: dict, x64: None) -> None:
    x, a = normal(0, 5), normal(1, 5)
    gradient = jax.grad(lambda x: jnp.sum((x - a) ** 2))
    got = descend(optax.chain(gk.adam(0.1), gk.lookahead_in_chain(**settings)), x, gradient, 12)
    assert_equal(got, descend(gk.adam(0.1), x, gradient, 12), rtol=1e-11)


def test_bfloat16_parameters_never_run_backwards() -> None:
    """Steps too small for bfloat16 move nothing, and there is nothing to pull back."""
    x = jnp.ones(3, jnp.bfloat16)
    path = descend(gk.lookahead_in_chain(sync_every=2), x, lambda x: jnp.full_like(x, 1e-4), 8)
    assert all((p == x).all() for p in path)


def test_shapes_have_a_state_of_the_right_form() -> None:
    tx, x = gk.lookahead_in_chain(), {"w": jnp.ones((2, 3), jnp.bfloat16)}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), x)
    assert jax.tree.map(jnp.result_type, tx.init(x)) == jax.tree.map(jnp.result_type, tx.init(shapes))
    assert tx.init(x).slow["w"].dtype == jnp.float32 and (tx.init(x).slow["w"] == 1).all()
