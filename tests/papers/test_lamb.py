"""LAMB (You et al., 2019)."""

import jax
import jax.numpy as jnp
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates

X = {"bias": (4,), "kernel": (3, 4)}


def tree(seed: int) -> dict:
    return {name: normal(seed + i, *shape) for i, (name, shape) in enumerate(X.items())}


def test_every_step_has_the_norm_of_the_weights(x64: None) -> None:
    """Also with decay, which is inside the norm, and whatever the scale of the loss."""
    for scale in (1e-4, 1e4):
        x, state = tree(0), None
        tx = gk.lamb(0.1, weight_decay=0.3, eps=1e-15)
        state = tx.init(x)
        for step in range(3):
            g = jax.tree.map(lambda v, scale=scale: scale * v, tree(10 * step + 5))
            u, state = tx.update(g, state, x)
            for name in X:
                assert_equal(jnp.linalg.norm(u[name]), 0.1 * jnp.linalg.norm(x[name]))
            x = optax.apply_updates(x, u)


def test_first_direction_is_the_sign_plus_decay(x64: None) -> None:
    w, g = normal(0, 3, 4), normal(1, 3, 4)
    d = jnp.sign(g) + 0.2 * w
    got = updates(gk.lamb(1.0, eps=0.0, weight_decay=0.2), w, [g])[0]
    assert_equal(got, -jnp.linalg.norm(w) / jnp.linalg.norm(d) * d)


def test_equals_optax(x64: None) -> None:
    gradients = [tree(10 * i) for i in range(5)]
    with jax.numpy_dtype_promotion("standard"):
        want = updates(optax.lamb(0.1, weight_decay=0.1), tree(3), gradients)
    # optax takes 1 - b^t in float32.
    assert_equal(updates(gk.lamb(0.1, weight_decay=0.1), tree(3), gradients), want, rtol=1e-5)


def test_unit_ratio_is_adamw(x64: None) -> None:
    """Where no leaf is rescaled, LAMB is AdamW."""
    gradients = [tree(10 * i) for i in range(4)]
    ours = gk.lamb(0.1, eps=1e-8, weight_decay=0.1, trust_ratio_mask=False)
    assert_equal(updates(ours, tree(3), gradients), updates(gk.adamw(0.1, weight_decay=0.1), tree(3), gradients))


def test_lambc_limits_the_ratio(x64: None) -> None:
    w, g = 50 * normal(0, 3, 4), normal(1, 3, 4)
    assert_equal(updates(gk.lamb(0.1, eps=0.0, ratio_max=1.0), w, [g])[0], -0.1 * jnp.sign(g))


def test_clipping_comes_first(x64: None) -> None:
    """Adam forgets the scale of a constant gradient, so clipping shows on the second, longer gradient only."""
    w, g = normal(0, 3, 4), normal(1, 3, 4)
    norm = float(jnp.linalg.norm(g))
    clipped = updates(gk.lamb(0.1, max_norm=norm), w, [g, 100 * g])
    assert_equal(clipped[1], updates(gk.lamb(0.1), w, [g, g])[1])


def test_variants_are_what_their_names_say(x64: None) -> None:
    gradients = [tree(10 * i) for i in range(3)]
    hyper = {"weight_decay": 0.1, "eps_root": 1e-9, "max_norm": 2.0, "param_norm_max": 3.0}
    for variant, switch in ((gk.nlamb, {"nesterov": True}), (gk.lambc, {"ratio_max": 1.0})):
        got = updates(variant(0.1, **hyper), tree(3), gradients)
        assert_equal(got, updates(gk.lamb(0.1, **hyper, **switch), tree(3), gradients))


def test_nlamb_looks_ahead(x64: None) -> None:
    """Two steps by hand, where nothing is rescaled: the direction is that of Nesterov's Adam."""
    w, g = normal(0, 3, 4), [normal(1, 3, 4), normal(2, 3, 4)]
    got = updates(gk.nlamb(0.1, eps=0.0, trust_ratio_mask=False), w, g)
    m = v = 0.0
    for t, (g_t, u) in enumerate(zip(g, got, strict=True), 1):
        m, v = 0.9 * m + 0.1 * g_t, 0.999 * v + 0.001 * g_t**2
        ahead = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g_t / (1 - 0.9**t)
        # 1 - 0.999^t by subtraction is off by 2^-53 of 1 in 0.001.
        assert_equal(u, -0.1 * ahead / jnp.sqrt(v / (1 - 0.999**t)), rtol=1e-11)


def test_lambc_never_steps_further_than_adam(x64: None) -> None:
    for scale in (1e-2, 1e2):
        x, g = jax.tree.map(lambda w, s=scale: s * w, tree(0)), [tree(5), tree(15)]
        adam = updates(gk.adam(0.1, eps=1e-6), x, g)
        for u, a in zip(updates(gk.lambc(0.1), x, g), adam, strict=True):
            for name in X:
                ratio = float(jnp.linalg.norm(u[name]) / jnp.linalg.norm(a[name]))
                assert ratio == pytest.approx(1.0) if scale == 1e2 else ratio < 0.1
