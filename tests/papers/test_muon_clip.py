"""MuonClip (Kimi Team, 2025): Muon with a sum for its momentum and AdamW's sizes, then QK-clip."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from gradkit import QKRole
from tests.papers.replay import assert_equal, normal

ROLES = {"q/kernel": QKRole("query", "a", 2, 1), "k/kernel": QKRole("key", "a", 2, 1)}


def test_it_is_muon_and_then_the_clip(x64: None) -> None:
    """Muon's mean of gradients and the paper's sum are one direction; vectors take AdamW with the same rate."""
    x = {name: {"kernel": normal(i, 6, 4), "bias": normal(10 + i, 4)} for i, name in enumerate(("k", "q", "v"))}
    gradients = [jax.tree.map(lambda a, i=i: jnp.roll(a, 1 + i, axis=-1) + i, x) for i in range(3)]
    S = {"a": jnp.array([150.0, 20.0])}
    tx = gk.muon_clip(0.1, roles=ROLES, method="svd", eps=0.0)
    plain = optax.chain(
        gk.muon(
            0.1,
            nesterov=False,
            scale="match_rms_adamw",
            method="svd",
            eps=0.0,
            weight_decay=0.1,
            adam_weight_decay=0.1,
            adam_eps=1e-8,
        ),
        gk.qk_clip(ROLES),
    )
    states, points = [tx.init(x), plain.init(x)], [x, x]
    for g in gradients:
        for i, one in enumerate((tx, plain)):
            u, states[i] = one.update(g, states[i], points[i], max_attention_logits=S)
            points[i] = optax.apply_updates(points[i], u)
    assert_equal(points[0], points[1], rtol=1e-9)


def test_the_momentum_is_not_clipped(x64: None) -> None:
    """A step whose weights are halved has the direction that it would have had."""
    x = {"q": {"kernel": normal(0, 6, 4)}, "k": {"kernel": normal(1, 6, 4)}}
    tx = gk.muon_clip(0.1, roles=ROLES, method="svd", weight_decay=0.0)
    ends: list[Any] = []
    for high in (1.0, 400.0):
        state = tx.init(x)
        _, state = tx.update(x, state, x, max_attention_logits={"a": jnp.full(2, high)})
        ends.append(tx.update(x, state, x, max_attention_logits={"a": jnp.ones(2)})[0])
    assert_equal(*ends)
    assert np.abs(ends[0]["q"]["kernel"]).max() > 0.01
