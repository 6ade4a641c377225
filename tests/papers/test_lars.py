"""LARS and LARC (You, Gitman, Ginsburg, 2017)."""

import jax
import jax.numpy as jnp
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_step_of_every_layer_is_in_proportion_to_its_weights(x64: None) -> None:
    x = {"a": normal(0, 4, 3), "b": 100 * normal(1, 5, 2)}
    for scale in (1e-3, 1.0, 1e6):
        g = jax.tree.map(lambda w, scale=scale: scale * jnp.cos(w), x)
        got = updates(gk.lars(2.0, momentum=0.0, trust_coefficient=0.01), x, [g])[0]
        for name, u in got.items():
            assert_equal(jnp.linalg.norm(u), 2.0 * 0.01 * jnp.linalg.norm(x[name]))


def test_vectors_take_plain_momentum_steps_by_default(x64: None) -> None:
    x = {"bias": normal(0, 3), "kernel": normal(1, 2, 3)}
    gradients = [jax.tree.map(lambda w, i=i: jnp.sin(w + i), x) for i in range(3)]
    got = updates(gk.lars(0.1, weight_decay=0.3), x, gradients)
    want = updates(gk.sgd(0.1, momentum=0.9), x["bias"], [g["bias"] for g in gradients])
    assert_equal([u["bias"] for u in got], want)


@pytest.mark.parametrize("nesterov", [False, True])
def test_joint_form_with_every_leaf_is_optax(nesterov: bool, x64: None) -> None:
    x = {"bias": normal(0, 3), "kernel": normal(1, 2, 3)}
    gradients = [jax.tree.map(lambda w, i=i: jnp.sin(w + i), x) for i in range(4)]
    ours = gk.lars(
        0.1, weight_decay=0.2, denominator="joint", nesterov=nesterov, weight_decay_mask=None, trust_ratio_mask=None
    )
    theirs = optax.lars(0.1, weight_decay=0.2, nesterov=nesterov)
    assert_equal(updates(ours, x, gradients), updates(theirs, x, gradients))


def test_separate_form_is_never_longer_than_joint_bound(x64: None) -> None:
    """|g| + wd |w| >= |g + wd w|: the paper's denominator gives the smaller step, unless g and w are parallel."""
    w, g = normal(0, 4, 3), normal(1, 4, 3)
    separate, joint = (updates(gk.lars(1.0, weight_decay=0.5, denominator=d), w, [g])[0] for d in ("separate", "joint"))
    assert jnp.linalg.norm(separate) < jnp.linalg.norm(joint)
    assert_equal(
        *(updates(gk.lars(1.0, weight_decay=0.5, denominator=d), w, [2 * w])[0] for d in ("separate", "joint"))
    )


def test_rate_is_inside_the_momentum(x64: None) -> None:
    w, g = normal(0, 4, 3), normal(1, 4, 3)
    first, second = updates(gk.lars(lambda step: jnp.where(step == 0, 1.0, 0.0)), w, [g, g])
    assert_equal(second, 0.9 * first)


def test_larc_never_exceeds_the_rate(x64: None) -> None:
    w, g = normal(0, 4, 3), normal(1, 4, 3)
    ratio = jnp.linalg.norm(w) / jnp.linalg.norm(g)
    for coefficient in (1e-3, 10.0):
        got = updates(gk.larc(0.05, momentum=0.0, trust_coefficient=coefficient), w, [g])[0]
        assert_equal(got, -jnp.minimum(coefficient * ratio, 0.05) * g)
