"""The largest attention logits of models of Flax, and training in which they stay bounded."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradkit as gk
from gradkit.layers import collect_attention_logits, max_attention_logits, recorded_attention
from tests.papers.replay import normal


def test_the_maximum_over_batch_and_positions(x64: None) -> None:
    """Scaled, with a bias, without what is masked; of grouped queries by their own keys."""
    q, k = np.asarray(normal(0, 2, 5, 4, 3)), np.asarray(normal(1, 2, 5, 2, 3))
    bias = np.asarray(normal(2, 4, 5, 5))
    mask = np.asarray(normal(3, 2, 1, 5, 5)) > 0
    logits = np.einsum("bihd,bjhd->bhij", q, np.repeat(k, 2, axis=2)) / np.sqrt(3)
    got = functools.partial(max_attention_logits, jnp.asarray(q), jnp.asarray(k))
    np.testing.assert_allclose(got(), logits.max(axis=(0, 2, 3)), rtol=1e-13)
    seen = np.where(mask & np.tri(5, dtype=bool), logits + bias, -np.inf)
    np.testing.assert_allclose(got(bias=bias, mask=mask, is_causal=True), seen.max(axis=(0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(got(scale=2.0), 2 * np.sqrt(3) * logits.max(axis=(0, 2, 3)), rtol=1e-13)
    assert np.isneginf(got(mask=np.zeros((5, 5), bool))).all()
    with pytest.raises(ValueError, match="heads of the keys must divide those of the queries"):
        max_attention_logits(jnp.ones((2, 4, 3)), jnp.ones((2, 3, 3)))


class Block(nn.Module):
    """One attention, with queries and keys that have biases."""

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        return nn.MultiHeadDotProductAttention(
            num_heads=2, qkv_features=8, attention_fn=recorded_attention(), name="attention"
        )(x, mask=mask)


def by_hand(params: Any, x: Any) -> np.ndarray:
    q, k = (
        np.einsum("bif,fhd->bihd", x, np.asarray(params[n]["kernel"])) + np.asarray(params[n]["bias"])
        for n in ("query", "key")
    )
    logits = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(q.shape[-1])
    return np.where(np.tri(x.shape[1], dtype=bool), logits, -np.inf).max(axis=(0, 2, 3))


def test_the_hook_records_and_changes_nothing() -> None:
    """Under the path of the attention, in linen and in NNX; without someone who asks it records nothing."""
    x = np.asarray(normal(0, 2, 5, 4)).astype(np.float32)
    params = Block().init(jax.random.key(0), x)["params"]
    y, recorded = Block().apply({"params": params}, x, mutable=["intermediates"])
    logits = collect_attention_logits(recorded)
    assert logits.keys() == {"attention"}
    np.testing.assert_allclose(logits["attention"], by_hand(params["attention"], x), rtol=1e-5)
    plain = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)
    want: Any = plain.apply({"params": params["attention"]}, x, mask=nn.make_causal_mask(jnp.ones(x.shape[:2])))
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(Block().apply({"params": params}, x), y)

    layer = nnx.MultiHeadAttention(2, 4, 8, attention_fn=recorded_attention(), decode=False, rngs=nnx.Rngs(0))
    _, recorded = nnx.capture(layer, nnx.Intermediate)(x, sow_weights=True)
    (S,) = collect_attention_logits(recorded).values()
    own = {
        n: {"kernel": np.asarray(getattr(layer, n).kernel[...]), "bias": np.asarray(getattr(layer, n).bias[...])}
        for n in ("query", "key")
    }
    q, k = (np.einsum("bif,fhd->bihd", x, own[n]["kernel"]) + own[n]["bias"] for n in ("query", "key"))
    np.testing.assert_allclose(S, (np.einsum("bihd,bjhd->bhij", q, k) / 2).max(axis=(0, 2, 3)), rtol=1e-5)


ROLES = {rf"(.*)/{role}/.*": gk.QKRole(role, r"\1", heads=2, heads_axis=-2) for role in ("query", "key")}


def run(tx: Any, steps: int = 60) -> np.ndarray:
    """The largest logit before each step of a run that asks for sharper and sharper attention."""
    x = np.asarray(normal(0, 2, 6, 8)).astype(np.float32)
    model, update = Block(), optax.with_extra_args_support(tx).update
    params = model.init(jax.random.key(1), x)["params"]

    def loss(params: Any) -> Any:
        y, recorded = model.apply({"params": params}, x, mutable=["intermediates"])
        logits = collect_attention_logits(recorded)
        own = params["attention"]
        q, k = (jnp.einsum("bif,fhd->bihd", x, own[n]["kernel"]) + own[n]["bias"][None, None] for n in ("query", "key"))
        return jnp.sum(y**2) * 1e-3 - jnp.mean(jnp.einsum("bihd,bihd->bh", q, k)), logits

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        (_, logits), g = jax.value_and_grad(loss, has_aux=True)(params)
        u, state = update(g, state, params, max_attention_logits=logits)
        return (optax.apply_updates(params, u), state), jnp.max(logits["attention"])

    return np.asarray(jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), None, length=steps)[1])(params))


def test_logits_stay_bounded() -> None:
    """A loss that rewards large logits: with Muon alone they pass any bound, with MuonClip they stay at 10, but for
    what one step adds."""
    free = run(gk.muon(0.05, scale="match_rms_adamw"))
    bound = run(gk.muon_clip(0.05, roles=ROLES, threshold=10.0, weight_decay=0.0, adam_weight_decay=0.0))
    assert free[-1] > 40
    first = int(np.argmax(bound > 10))
    assert 0 < first < 40 and bound[first:].max() < 10 * 1.35 and bound[first:].min() > 5
