"""Norm loss and stable weight decay (Wright, Demeure, 2021)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates

TREE = {"kernel": (4, 5), "bias": (3,), "ScanBlock_0": {"kernel": (2, 4, 5)}}


def tree(seed: int) -> dict:
    leaves, structure = jax.tree.flatten(TREE, is_leaf=lambda x: isinstance(x, tuple))
    return structure.unflatten([normal(seed + i, *shape) for i, shape in enumerate(leaves)])


def test_norm_loss_is_the_gradient_of_its_penalty(x64: None) -> None:
    """factor sum_j (|x_j| - 1)^2 over output units, added to the direction."""

    def penalty(x: dict) -> jax.Array:
        norms = (
            jnp.linalg.norm(x["kernel"], axis=0),
            jnp.linalg.norm(x["bias"], keepdims=True),
            jnp.linalg.norm(x["ScanBlock_0"]["kernel"], axis=1),
        )
        return jnp.asarray(0.3 * sum(jnp.sum((n - 1) ** 2) for n in norms))

    x, d = tree(0), tree(10)
    out = updates(gk.norm_loss(0.3, eps=0.0), x, [d])[0]
    assert_equal(out, jax.tree.map(jnp.add, d, jax.grad(penalty)(x)))


def test_norms_converge_to_one_and_directions_stay(x64: None) -> None:
    """A norm n moves to n - 2 rate factor (n - 1): the distance to 1 shrinks by 1 - 0.2 in each step."""
    x = start = {"kernel": normal(0, 4, 5)}
    tx = optax.chain(gk.norm_loss(0.2, eps=0.0), gk.scale_by_learning_rate(0.5))
    for _ in range(10):
        x = optax.apply_updates(x, updates(tx, x, [jax.tree.map(jnp.zeros_like, x)])[0])
    n, before = (jnp.linalg.norm(v["kernel"], axis=0) for v in (x, start))
    assert_equal(n - 1, 0.8**10 * (before - 1), rtol=1e-10)
    assert_equal(x["kernel"] / n[None], start["kernel"] / before[None])


def test_masked_leaves_and_units_of_norm_zero_pass(x64: None) -> None:
    x, d = {"a": normal(0, 3, 2), "b": jnp.zeros((3, 2))}, {"a": normal(1, 3, 2), "b": normal(2, 3, 2)}
    for eps in (0.0, 1e-8):
        assert_equal(updates(gk.norm_loss(1.0, eps=eps, mask=gk.leaves.by_path("b")), x, [d])[0], d)


def test_eps_is_the_callers_in_both_decays(x64: None) -> None:
    """Twice the norm loss of factor 1/2 is the stable decay towards norm 1, when the mean square is 1."""
    x = {"kernel": normal(0, 4, 5)}
    norm = np.linalg.norm(np.asarray(x["kernel"]), axis=0)
    g = {"kernel": jnp.ones((4, 5))}
    plain = gk.stable_weight_decay(optax.identity(), weight_decay=0.3, toward_unit_norm=True, eps=0.1)
    for tx in (gk.norm_loss(0.15, eps=0.1), plain):
        got = updates(tx, x, [g])[0]["kernel"]
        np.testing.assert_allclose(got, 1 + 0.3 * (1 - 1 / (norm + 0.1)) * np.asarray(x["kernel"]), rtol=1e-12)


@pytest.mark.parametrize("per_tensor", [False, True])
def test_stable_decay_against_the_second_moment_of_adam(per_tensor: bool, x64: None) -> None:
    """The decay is that of the mean of v / (1 - b2^t): over all coordinates of all leaves, or of one tensor."""
    b2, wd, gradients, x = 0.9, 0.3, [tree(10 * t) for t in range(1, 4)], tree(0)
    tx = gk.stable_weight_decay(optax.identity(), weight_decay=wd, b2=b2, per_tensor=per_tensor)
    v, state = jax.tree.map(jnp.zeros_like, x), tx.init(x)
    for t, g in enumerate(gradients, 1):
        u, state = tx.update(g, state, x)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, v, g)
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(v)]) / (1 - b2**t)
        if per_tensor:
            mean = jax.tree.map(lambda v, t=t: jnp.mean(v) / (1 - b2**t), v)
            layers = v["ScanBlock_0"]["kernel"].mean((1, 2), keepdims=True) / (1 - b2**t)
            mean["ScanBlock_0"]["kernel"] = layers
        else:
            whole = flat.mean()
            mean = jax.tree.map(lambda _, whole=whole: whole, v)
        assert_equal(u, jax.tree.map(lambda g, x, m: g + wd / jnp.sqrt(m) * x, g, x, mean))


def test_the_merged_form_decays_to_norm_one(x64: None) -> None:
    """With mean square 1 it is norm loss with a factor of half the decay."""
    x = tree(0)
    g = jax.tree.map(lambda x: jnp.where(x > 0, 1.0, -1.0), x)
    got = updates(gk.stable_weight_decay(optax.identity(), weight_decay=0.4, toward_unit_norm=True), x, [g])[0]
    assert_equal(got, updates(gk.norm_loss(0.2), x, [g])[0])


def test_what_decays_and_when(x64: None) -> None:
    """Masked leaves count in the mean and do not decay; nothing decays before a gradient was seen; schedules count
    earlier steps; the decay has no part in what the inner transformation remembers."""
    x, g = {"a": normal(0, 3), "b": normal(1, 3)}, {"a": normal(2, 3), "b": 10 * normal(3, 3)}
    tx = gk.stable_weight_decay(
        gk.trace(0.5),
        weight_decay=lambda t: 0.1 * (t.astype(float) + 1),
        b2=0.0,
        weight_decay_mask=gk.leaves.by_path("a"),
    )
    zero = jax.tree.map(jnp.zeros_like, g)
    first, second = updates(tx, x, [zero, g])
    assert_equal(first, zero, atol=0)
    root = np.sqrt(np.mean(np.square(np.concatenate([g["a"], g["b"]]))))
    assert_equal(second, {"a": g["a"] + 0.2 / root * x["a"], "b": g["b"]})


def test_a_rescaled_loss_changes_nothing_behind_adam(x64: None) -> None:
    """Adam's step does not depend on the scale of gradients; with the plain decay their balance would be kept too, but
    here the decay grows as gradients shrink: by exactly that factor."""
    x, g = normal(0, 5), normal(1, 5)
    inner = gk.scale_by_adam(eps=0.0)
    plain = updates(inner, x, [g])[0]
    one, small = (updates(gk.stable_weight_decay(inner), x, [k * g])[0] - plain for k in (1.0, 1e-3))
    assert_equal(1e3 * one, small, rtol=1e-9)
