"""QK-clip (Kimi Team, 2025): attention logits bounded by the weights, head by head."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit import QKRole
from gradkit.leaves import by_path, layout
from tests.papers.replay import assert_equal, normal

ROLES = {"q": QKRole("query", "a", 4, 1), "k": QKRole("key", "a", 4, 1)}


def clipped(roles: Any, x: Any, logits: Any, step: Any = None, **options: Any) -> Any:
    """The weights after a step, and the state."""
    tx = gk.qk_clip(roles, **options)
    step = jax.tree.map(jnp.zeros_like, x) if step is None else step
    u, state = tx.update(step, tx.init(x), x, max_attention_logits=logits)
    return optax.apply_updates(x, u), state


def logits_of(x: Any, tokens: np.ndarray, heads: int = 4, key_heads: int = 4) -> np.ndarray:
    """The largest logit of every head, by NumPy."""
    q, k = (
        np.asarray(tokens @ np.asarray(x[name])).reshape(len(tokens), n, -1)
        for name, n in (("q", heads), ("k", key_heads))
    )
    k = np.repeat(k, heads // key_heads, axis=1)
    return np.einsum("ihd,jhd->hij", q, k).max(axis=(1, 2)) / np.sqrt(q.shape[-1])


@pytest.mark.parametrize("alpha", [None, 0.0, 0.3, 1.0])
def test_logits_are_those_of_the_threshold(alpha: float | None, x64: None) -> None:
    """Recomputed on the same inputs, after a step of 0: gamma_h S_h, whatever part of it the query takes."""
    x, tokens = {"q": normal(0, 6, 12), "k": normal(1, 6, 12)}, np.asarray(normal(2, 5, 6))
    S = logits_of(x, tokens)
    threshold = float(np.sort(S)[1] + 0.1)  # two heads are above it
    after, state = clipped(ROLES, x, {"a": S}, threshold=threshold, alpha=alpha)
    np.testing.assert_allclose(logits_of(after, tokens), np.minimum(S, threshold), rtol=1e-12)
    assert gk.diagnostics.metrics(state)["clipped_heads"] == 2
    share = 0.5 if alpha is None else alpha
    gamma = np.repeat(np.minimum(1, threshold / S), 3)[None]
    assert_equal(after, {"q": x["q"] * gamma**share, "k": x["k"] * gamma ** (1 - share)})


def test_below_the_threshold_nothing_changes() -> None:
    """Bit for bit, with a step; logits below 0 and those that are no number change nothing either, and are counted."""
    x = {"q": np.asarray(normal(0, 6, 12)).astype(np.float32), "k": np.asarray(normal(1, 6, 12)).astype(np.float32)}
    step = {"q": np.asarray(normal(2, 6, 12)).astype(np.float32), "k": np.asarray(normal(3, 6, 12)).astype(np.float32)}
    tx = gk.qk_clip(ROLES, threshold=50.0)
    S = {"a": jnp.array([49.0, -1e9, jnp.nan, -jnp.inf])}
    u, state = tx.update(step, tx.init(x), x, max_attention_logits=S)
    jax.tree.map(np.testing.assert_array_equal, u, step)
    told = gk.diagnostics.metrics(state)
    assert (told["clipped_heads"], told["nonfinite_logits"]) == (0, 2)


def test_the_clip_is_of_what_the_step_makes(x64: None) -> None:
    x, step = {"q": normal(0, 2, 4), "k": normal(1, 2, 4)}, {"q": normal(2, 2, 4), "k": normal(3, 2, 4)}
    after, _ = clipped(ROLES, x, {"a": jnp.full(4, 200.0)}, step)
    assert_equal(after, jax.tree.map(lambda w, u: 0.5**0.5 * (w + u), x, step))


@pytest.mark.parametrize("alpha", [None, 0.5, 1.0])
def test_grouped_queries(alpha: float | None, x64: None) -> None:
    """Two key heads for four query heads. Each query head has the factor of its own group: not those of the rows that
    are left when heads are counted by the query."""
    roles = {"q": QKRole("query", "a", 4, 1), "k": QKRole("key", "a", 2, 1)}
    x, tokens = {"q": normal(0, 6, 12), "k": normal(1, 6, 6)}, np.asarray(normal(2, 5, 6))
    S = logits_of(x, tokens, 4, 2)
    threshold = float(S.min() * 0.9)
    after, _ = clipped(roles, x, {"a": S}, threshold=threshold, alpha=alpha)
    got = logits_of(after, tokens, 4, 2)
    assert (got <= threshold * (1 + 1e-12)).all()
    if alpha in (None, 1.0):  # the queries alone move, and every head gets exactly its own
        np.testing.assert_allclose(got, threshold, rtol=1e-12)
        assert_equal(after["k"], x["k"])
    else:
        least = np.minimum(1, threshold / S).reshape(2, 2).min(axis=1)
        assert_equal(after["k"], x["k"] * np.repeat(least**0.5, 3)[None])


def test_rotary_queries_and_shared_kernels(x64: None) -> None:
    """Multi-head latent attention: content and rotary features in one kernel, keys and values in another."""
    gamma = np.array([0.5, 1.0, 0.25])
    roles = {
        "q": [QKRole("query", "a", 3, 1, (0, 2)), QKRole("query_rotary", "a", 3, 1, (2, 5))],
        "kv": QKRole("key", "a", 3, 1, (0, 2)),
    }
    x = {"q": normal(0, 4, 15), "kv": normal(1, 4, 12)}
    after, _ = clipped(roles, x, {"a": 100 / gamma})
    q, kv = np.asarray(x["q"]).reshape(4, 3, 5).copy(), np.asarray(x["kv"]).reshape(4, 3, 4).copy()
    q[..., :2] *= np.sqrt(gamma)[:, None]
    q[..., 2:] *= gamma[:, None]
    kv[..., :2] *= np.sqrt(gamma)[:, None]
    assert_equal(after, {"q": q.reshape(4, 15), "kv": kv.reshape(4, 12)})
    # The same kernels with an axis of their own for heads.
    split = {"q": x["q"].reshape(4, 3, 5), "kv": x["kv"].reshape(4, 3, 4)}
    assert_equal(clipped(roles, split, {"a": 100 / gamma})[0], {"q": q, "kv": kv})


def test_layers_of_a_scan_have_logits_of_their_own(x64: None) -> None:
    x = {"ScanBlock_0": {"query": {"kernel": normal(0, 2, 4, 3, 5)}, "key": {"kernel": normal(1, 2, 4, 3, 5)}}}
    roles = {rf"(.*)/{role}/kernel": QKRole(role, r"\1", 3, -2) for role in ("query", "key")}
    gamma = np.array([[0.5, 1.0, 0.25], [1.0, 0.1, 1.0]])
    after, _ = clipped(roles, x, {"ScanBlock_0": 100 / gamma})
    assert_equal(after, jax.tree.map(lambda w: w * np.sqrt(gamma)[:, None, :, None], x))
    after, _ = clipped(roles, x, {"ScanBlock_0": 100 / gamma[0]})  # the same for all layers
    assert_equal(after, jax.tree.map(lambda w: w * np.sqrt(gamma[:1])[:, None, :, None], x))
    with pytest.raises(ValueError, match=r"must be \(2, 'heads'\) or \('heads',\) for the stack 'ScanBlock_0/"):
        clipped(roles, x, {"ScanBlock_0": jnp.ones((3, 3))})


def test_the_maximum_over_devices_and_groups_of_heads(x64: None) -> None:
    x = {"q": normal(0, 2, 4), "k": normal(1, 2, 4)}
    S = jnp.array([[50.0, 400.0, 100.0, 1.0], [200.0, 100.0, 100.0, 1.0]])
    tx = gk.qk_clip(ROLES, axis_name="d")
    zero = jax.tree.map(jnp.zeros_like, x)
    u = jax.vmap(lambda s: tx.update(zero, tx.init(x), x, max_attention_logits={"a": s})[0], axis_name="d")(S)
    gamma = jnp.array([[0.5, 0.25, 1.0, 1.0]]) ** 0.5
    for device in range(2):
        assert_equal(x["q"] + u["q"][device], x["q"] * gamma)


def test_what_is_refused() -> None:
    x = {"q": jnp.ones((2, 4)), "k": jnp.ones((2, 4))}
    with pytest.raises(
        ValueError, match=r"qk_clip: max_attention_logits has no entry for the attention 'a' of 'k'.* missing='skip'"
    ):
        clipped(ROLES, x, {"b": jnp.ones(4)})
    after, _ = clipped(ROLES, x, {"b": jnp.ones(4)}, missing="skip")
    np.testing.assert_array_equal(after["q"], x["q"])
    with pytest.raises(ValueError, match=r"max_attention_logits\['a'\] must have the 4 heads of 'k', got 3"):
        clipped(ROLES, x, {"a": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"max_attention_logits\['a'\] must be \(heads,\), got a number"):
        clipped(ROLES, x, {"a": 1.0})
    with pytest.raises(ValueError, match="heads of 'q' must divide the length 4 of its axis 1, got 3"):
        gk.qk_clip({"q": QKRole("query", "a", 3, 1)}).init(x)
    with pytest.raises(ValueError, match="the path 'quary' of roles matches no leaf"):
        gk.qk_clip({"quary": QKRole("query", "a")}).init(x)
    with pytest.raises(ValueError, match="role must be one of 'query'"):
        gk.qk_clip({"q": QKRole("value", "a")})
    with pytest.raises(ValueError, match="features of 'q' must be within its 2 features"):
        clipped({"q": QKRole("query", "a", 2, 1, (1, 3))}, x, {"a": jnp.ones(2)})
    with pytest.raises(ValueError, match="roles must be a mapping"):
        gk.qk_clip([QKRole("query", "a")])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="qk_clip needs the extra argument max_attention_logits"):
        tx = gk.qk_clip(ROLES)
        tx.update(x, tx.init(x), x)


def test_layouts_say_what_is_a_stack(x64: None) -> None:
    x = {"w": normal(0, 3, 2, 4)}
    own = layout((by_path("w"), {"stack": (1,)}))
    gamma = np.array([[0.5, 1.0], [1.0, 0.25]])
    after, _ = clipped({"w": QKRole("query", "a", 2, -1)}, x, {"a": 100 / gamma}, alpha=1.0, layout=own)
    assert_equal(after["w"], x["w"] * np.repeat(gamma, 2, axis=1)[None])
