"""Rate and decay over the width of a model (Fan et al., 2025)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.batches import weight_decay_width_scaling
from gradkit.diagnostics import sublayer_gain

HPARAMS = {"learning_rate": 0.01, "weight_decay": 0.1, "b1": 0.9}


def test_the_rule_and_what_it_keeps() -> None:
    for kappa in (0.25, 1, 3, 64):
        new = weight_decay_width_scaling(HPARAMS, kappa)
        assert new["learning_rate"] == pytest.approx(0.01 / kappa) and new["b1"] == 0.9
        assert new["weight_decay"] == pytest.approx(0.1 * kappa**0.5)
        # sqrt(rate / decay) width^(3/4), the singular value in the steady state.
        assert (new["learning_rate"] / new["weight_decay"]) ** 0.5 * kappa**0.75 == pytest.approx(0.1**0.5)


def test_per_leaf() -> None:
    labels = {"up": {"kernel": "matrix", "bias": "vector"}, "embedding": "vector"}
    new = weight_decay_width_scaling(HPARAMS, 4, labels=labels)
    assert new["learning_rate"] == {"up": {"kernel": 0.0025, "bias": 0.01}, "embedding": 0.01}
    assert new["weight_decay"] == {"up": {"kernel": 0.2, "bias": 0.0}, "embedding": 0.0}
    assert new["b1"] == 0.9
    assert weight_decay_width_scaling({"weight_decay": 0.1}, 4, labels=labels)["weight_decay"]["embedding"] == 0.0


def test_noise_alone_makes_matrices_of_a_known_size() -> None:
    """AdamW on random gradients: entries settle at sqrt(rate / (2 decay)), the singular values in proportion."""

    def settled(rate: float, decay: float) -> jax.Array:
        tx = gk.adamw(rate, b1=0.0, b2=0.99, weight_decay=decay)
        w = jnp.zeros((32, 32))

        def step(carry, key):
            w, state = carry
            u, state = tx.update(jax.random.normal(key, w.shape), state, w)
            return (optax.apply_updates(w, u), state), None

        (w, _), _ = jax.lax.scan(step, (w, tx.init(w)), jax.random.split(jax.random.key(0), 600))
        return jnp.stack([jnp.sqrt(jnp.mean(w**2)), sublayer_gain(w)])

    pairs = jnp.array([[0.02, 0.5], [0.02, 2.0], [0.08, 0.5]])
    sizes = np.asarray(jax.jit(jax.vmap(lambda p: settled(p[0], p[1])))(pairs))
    want = np.sqrt(np.asarray(pairs[:, 0] / (2 * pairs[:, 1])))
    # An rms of 1024 entries is known to 1 / sqrt(2048); the second moment of the unit noise to a few per cent.
    np.testing.assert_allclose(sizes[:, 0], want, rtol=0.1)
    # The edge of a square Gaussian matrix is 2 sqrt(32) deviations, from below.
    np.testing.assert_allclose(sizes[:, 1], 2 * np.sqrt(32) * want, rtol=0.2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weight_decay_width_scaling(HPARAMS, 0), "kappa must be in"),
        (lambda: weight_decay_width_scaling({"b1": 0.9}, 2), "is about learning_rate, weight_decay"),
        (lambda: weight_decay_width_scaling({"weight_decay": -1.0}, 2), "weight_decay must be in"),
        (lambda: weight_decay_width_scaling(HPARAMS, 2, labels={"w": "matrx"}), "did you mean 'matrix'"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
