"""Adafactor (Shazeer, Stern, 2018), its factored second moment and its two links of root mean squares."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.golden.translate import ARRAYS
from tests.papers.replay import assert_equal, normal, updates

STACKED = gk.leaves.layout((gk.leaves.by_rank(3), {"stack": (0,)}), default=ARRAYS)


def of(layout: Any, **changes: Any) -> optax.GradientTransformation:
    return gk.adafactor(0.1, b1=0.9, weight_decay=0.2, **{"min_dim_size_to_factor": 2, "layout": layout, **changes})


def test_layers_of_a_stack_are_as_if_they_were_leaves(x64: None) -> None:
    """Moments, both root mean squares and the decay; of one layer the gradients are 100 times larger."""
    x = normal(9, 2, 6, 4) * jnp.asarray([1.0, 0.01]).reshape(2, 1, 1)
    gradients = [normal(i, 2, 6, 4) * jnp.asarray([1.0, 100.0]).reshape(2, 1, 1) for i in range(4)]
    together = updates(of(STACKED), x, gradients)
    for layer in range(2):
        apart = updates(of(ARRAYS), x[layer], [g[layer] for g in gradients])
        assert_equal([u[layer] for u in together], apart)


def test_the_algorithm_in_numpy(x64: None) -> None:
    """Three steps with every part: the factors of rows and columns, the clip, the size of the parameters, momentum and
    decay; squares have rank two, so that the transposed factors would show."""
    x, m, R, C = np.asarray(normal(8, 6, 4)), np.zeros((6, 4)), np.zeros((6, 1)), np.zeros((1, 4))
    start, gradients, want = x, [np.asarray(normal(i, 6, 4)) for i in range(3)], []
    for t, g in enumerate(gradients, 1):
        b = 1 - t**-0.8
        R = b * R + (1 - b) * ((g**2).mean(1, keepdims=True) + 1e-30)
        C = b * C + (1 - b) * ((g**2).mean(0, keepdims=True) + 1e-30)
        u = g / np.sqrt(R / R.mean() * C)
        u = u / max(1, np.sqrt((u**2).mean()) / 0.7)
        a = 0.1 * max(1e-3, np.sqrt((x**2).mean()))
        m = 0.9 * m + 0.1 * a * u
        want.append(-m - 0.2 * a * x)
        x = x + want[-1]
    tx = of(None, clipping_threshold=0.7)
    assert_equal(updates(tx, jnp.asarray(start), [jnp.asarray(g) for g in gradients]), [jnp.asarray(u) for u in want])


def test_a_transposed_matrix_under_its_layout_gives_the_transpose(x64: None) -> None:
    other_way = gk.leaves.layout((gk.leaves.by_rank(2), {"inputs": (1,), "outputs": (0,)}), default=ARRAYS)
    x, gradients = normal(9, 6, 4), [normal(i, 6, 4) for i in range(3)]
    straight = updates(of(ARRAYS), x, gradients)
    turned = updates(of(other_way), x.T, [g.T for g in gradients])
    assert_equal(straight, [u.T for u in turned])


def test_the_scale_of_gradients_does_not_matter(x64: None) -> None:
    """1e-30 beside squares of 1e-4 and more."""
    x, gradients = normal(9, 6, 4), [normal(i, 6, 4) for i in range(3)]
    assert_equal(updates(of(None), x, gradients), updates(of(None), x, [1e3 * g for g in gradients]))


def test_heads_are_one_matrix_of_all_their_outputs(x64: None) -> None:
    heads = gk.leaves.layout((gk.leaves.by_rank(3), {"stack": (), "inputs": (0,), "outputs": (1, 2)}))
    x, gradients = normal(9, 6, 2, 3), [normal(i, 6, 2, 3) for i in range(3)]
    apart = updates(of(heads), x, gradients)
    flat = updates(of(ARRAYS), x.reshape(6, 6), [g.reshape(6, 6) for g in gradients])
    assert_equal([u.reshape(6, 6) for u in apart], flat)


def test_the_root_mean_square_of_an_update_is_bounded(x64: None) -> None:
    tx = gk.adafactor(1.0, scale_by_param=False, clipping_threshold=0.5, min_dim_size_to_factor=2)
    spike = [normal(0, 6, 4), normal(1, 6, 4), 100 * normal(2, 6, 4)]
    sizes = [float(jnp.sqrt(jnp.mean(u**2))) for u in updates(tx, spike[0], spike)]
    assert max(sizes) <= 0.5 * (1 + 1e-12)
    assert_equal(sizes[-1], 0.5)  # the spike would have been longer


def test_relative_steps_have_no_learning_rate(x64: None) -> None:
    """1e-2 at first, 1 / sqrt(t) from t = 10^4 on; with a warm-up 1e-6 t."""
    from gradkit.optimizers.adaptive.adafactor import relative_rate

    counts = [0, 9, 9_999, 39_999]
    assert_equal([float(relative_rate(False)(jnp.asarray(t))) for t in counts], [0.01, 0.01, 0.01, 0.005])
    assert_equal([float(relative_rate(True)(jnp.asarray(t))) for t in counts], [1e-6, 1e-5, 0.01, 0.005])
    for given in ({"learning_rate": 0.1, "relative_step": True}, {"learning_rate": None}):
        with pytest.raises(ValueError, match="learning_rate must be given, or relative_step=True"):
            gk.adafactor(**given)
    with pytest.raises(ValueError, match="warmup_init must be False where a learning_rate is given"):
        gk.adafactor(0.1, warmup_init=True)


def test_the_decay_is_multiplied_by_the_rate() -> None:
    """In optax it is not: with half the learning rate our decay is halved, and theirs is not."""
    x, none = jnp.full((6, 4), 2.0), jnp.zeros((6, 4))

    def decayed(tx: optax.GradientTransformation) -> float:
        return float(np.asarray(tx.update(none, tx.init(x), x)[0])[0, 0])

    ours = [decayed(gk.adafactor(rate, weight_decay=0.5)) for rate in (0.1, 0.05)]
    # In units of the size of the parameters, 2: of x a share of 0.1 * 0.5 * 2.
    np.testing.assert_allclose(ours, [-0.2, -0.1], rtol=1e-6)
    with jax.numpy_dtype_promotion("standard"):
        theirs = [decayed(optax.adafactor(rate, weight_decay_rate=0.5)) for rate in (0.1, 0.05)]
    assert theirs[0] == theirs[1] != 0
