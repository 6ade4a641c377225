"""TernGrad (Wen et al., 2017)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit import parallel
from gradkit.parallel.terngrad import pack, unpack
from tests.parallel.exchanges import W, gradients

G = np.asarray(np.random.default_rng(0).standard_normal((W, 6)), np.float32)
KEYS = 4000


def sampled(tx: Any, g: np.ndarray) -> np.ndarray:
    """Results for many keys: (keys, entries)."""
    state = tx.init(g[0])
    step = jax.vmap(lambda g, key: tx.update(g, state, key=key)[0], axis_name="replica", in_axes=(0, None))

    def one(key: jax.Array) -> jax.Array:
        return step(jnp.asarray(g), key)[0]

    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(1), KEYS)))


@pytest.mark.parametrize("sharing", [True, False])
def test_the_mean_is_right_and_the_variance_is_known(sharing: bool) -> None:
    """E = mean of gradients; of one replica the variance is |g| (s - |g|)."""
    x = sampled(parallel.ternary_compressor(scale_sharing=sharing), G)
    s = np.abs(G).max() if sharing else np.abs(G).max(1, keepdims=True)
    variance = (np.abs(G) * (s - np.abs(G))).sum(0) / W**2
    # Six entries of means that are normal to 1 / sqrt(4000): five standard errors fail once in 300,000.
    assert np.abs(x.mean(0) - G.mean(0)).max() < 5 * np.sqrt(variance.max() / KEYS)
    # A sample variance of a bounded number is within 4 sqrt(2 / 4000) of it, and its kurtosis is below 3.
    np.testing.assert_allclose(x.var(0), variance, rtol=4 * np.sqrt(2 / KEYS), atol=1e-3)


def test_clipping_is_at_standard_deviations_from_zero() -> None:
    g = np.zeros((1, 50), np.float32)
    g[0, :2] = [10.0, 1.0]
    x = sampled(parallel.terngrad(clip_factor=2.0), g)
    bound = 2 * g.std()
    np.testing.assert_allclose(np.abs(x).max(), bound, rtol=1e-5)
    np.testing.assert_allclose(x[:, 0], bound, rtol=1e-5)  # the clipped entry is the largest: it is always sent
    assert abs(x[:, 1].mean() - 1.0) < 5 * np.sqrt(1.0 * (bound - 1.0) / KEYS)


def test_the_results_are_multiples_of_the_shared_scale() -> None:
    tx = parallel.ternary_compressor(key=0)
    out, _ = jax.vmap(tx.update, axis_name="replica")(jnp.asarray(G), jax.vmap(tx.init)(jnp.asarray(G)))
    steps = np.asarray(out[0]) * W / np.abs(G).max()
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-5)
    assert np.abs(steps).max() <= W


def test_both_wires_say_the_same_to_the_last_bit() -> None:
    g = {k: x.astype(jnp.float32) for k, x in gradients(0).items()}
    outs = []
    for wire in ("packed", "int8"):
        tx = parallel.terngrad(key=7, wire=wire)
        state, step = parallel.init_replicas(tx, g), jax.jit(jax.vmap(tx.update, axis_name="replica"))
        first, state = step(g, state)
        outs.append((first, step(g, state)[0]))
    for a, b in zip(jax.tree.leaves(outs[0]), jax.tree.leaves(outs[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    # And another step draws anew.
    assert np.any(outs[0][0]["kernel"] != outs[0][1]["kernel"])


def test_replicas_draw_by_themselves() -> None:
    """Equal gradients on all: what each sends differs, so that the mean is nearer than any of them."""
    g = jnp.broadcast_to(jnp.linspace(0.1, 1.0, 64), (W, 64))
    tx = parallel.ternary_compressor(key=0)
    exchange = tx.update.compressor.exchange
    _, sent, _ = jax.vmap(lambda g: exchange(g, tx.init(g), "replica"), axis_name="replica")(g)
    assert all(np.any(np.asarray(sent[0]) != np.asarray(sent[w])) for w in range(1, W))


@pytest.mark.parametrize("size", [1, 3, 4, 5, 64])
def test_packing_is_undone(size: int) -> None:
    t = jnp.asarray(np.random.default_rng(size).integers(-1, 2, size), jnp.int8)
    packed = pack(t)
    assert packed.dtype == jnp.uint8 and packed.size == -(-size // 4)
    np.testing.assert_array_equal(unpack(packed, size), t)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="scale_sharing must be True with wire='int8'"):
        parallel.terngrad(key=0, wire="int8", scale_sharing=False)
    with pytest.raises(ValueError, match="wire must be one of 'packed', 'int8'"):
        parallel.terngrad(wire="float")
    tx = parallel.terngrad(key=0, wire="int8")
    with pytest.raises(ValueError, match="at most 127 replicas, got 128"):
        jax.eval_shape(
            lambda g: jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="replica")(g), jnp.ones((128, 2))
        )
    with pytest.raises(ValueError, match="terngrad needs a random key"):
        jax.vmap(lambda g: parallel.terngrad().update(g, parallel.terngrad().init(g)), axis_name="replica")(
            jnp.ones((2, 2))
        )
