"""Adaptive gradient clipping (Brock et al., 2021)."""

import jax.numpy as jnp
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


@pytest.mark.parametrize(
    ("name", "shape", "unit"),
    [
        ("bias", (5,), (0,)),
        ("Dense_0/kernel", (4, 5), (0,)),
        ("Conv_0/kernel", (3, 3, 4, 5), (0, 1, 2)),
        ("attention/query/kernel", (6, 2, 3), (0,)),
        ("attention/out/kernel", (2, 3, 6), (0, 1)),
        ("Conv_1/kernel", (3, 4, 5), (0, 1)),
        ("ScanBlock_0/Dense_0/kernel", (7, 4, 5), (1,)),
        ("thin", (1, 5), (0, 1)),
    ],
)
def test_every_unit_is_within_its_limit(name: str, shape: tuple, unit: tuple, x64: None) -> None:
    w, g = {name: 0.1 * normal(0, *shape)}, {name: normal(1, *shape)}
    norm = lambda x: jnp.sqrt(jnp.sum(x[name] ** 2, axis=unit))  # noqa: E731
    tx = gk.adaptive_grad_clip(0.3)
    once = updates(tx, w, [g])[0]
    limit = 0.3 * jnp.maximum(norm(w), 1e-3)
    assert_equal(norm(once), jnp.minimum(norm(g), limit))
    assert_equal(tx.update(once, tx.init(w), w)[0], once)


def test_no_limit_is_the_identity_and_zero_weights_can_start(x64: None) -> None:
    w, g = normal(0, 4, 5), normal(1, 4, 5)
    assert_equal(updates(gk.adaptive_grad_clip(jnp.inf), w, [g])[0], g)
    started = updates(gk.adaptive_grad_clip(0.5, eps=0.2), 0 * w, [100 * g])[0]
    assert_equal(jnp.linalg.norm(started, axis=0), jnp.full(5, 0.5 * 0.2))


def test_equals_optax_where_that_is_right(x64: None) -> None:
    w = {"bias": normal(0, 5), "kernel": normal(1, 4, 5), "conv": normal(2, 2, 2, 3, 5)}
    g = {"bias": normal(3, 5), "kernel": normal(4, 4, 5), "conv": normal(5, 2, 2, 3, 5)}
    ours = updates(gk.adaptive_grad_clip(0.1), w, [g])[0]
    theirs = updates(optax.adaptive_grad_clip(0.1), w, [g])[0]
    assert_equal(ours["bias"], theirs["bias"])
    assert_equal(ours["kernel"], theirs["kernel"])


def test_masked_leaves_pass(x64: None) -> None:
    w, g = {"head": normal(0, 4, 5)}, {"head": 1e3 * normal(1, 4, 5)}
    assert_equal(updates(gk.adaptive_grad_clip(mask=~gk.leaves.by_role("head")), w, [g])[0], g)
