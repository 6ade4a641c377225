"""Gradients without their mean, and divided by their spread (Wright, Demeure, 2021)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, descend, normal, updates


@pytest.mark.parametrize(
    ("name", "shape", "axes"),
    [
        ("Dense_0/kernel", (4, 5), (0,)),
        ("Conv_0/kernel", (3, 3, 4, 5), (0, 1, 2)),
        ("attention/query/kernel", (6, 2, 3), (0,)),
        ("attention/out/kernel", (2, 3, 6), (0, 1)),
        ("ScanBlock_0/Dense_0/kernel", (7, 4, 5), (1,)),
    ],
)
def test_the_mean_of_every_unit_is_taken_away(name: str, shape: tuple, axes: tuple, x64: None) -> None:
    g = np.asarray(1.0 + normal(0, *shape))
    out = updates(gk.centralize_gradients(), {name: g}, [{name: jnp.asarray(g)}])[0]
    assert_equal(out[name], g - g.mean(axes, keepdims=True))


@pytest.mark.parametrize(
    ("name", "shape"), [("scale", ()), ("bias", (5,)), ("ScanBlock_0/bias", (3, 5)), ("k", (1, 5))]
)
def test_vectors_and_units_of_one_entry_are_left_alone(name: str, shape: tuple, x64: None) -> None:
    g = {name: 1.0 + normal(0, *shape)}
    assert_equal(updates(gk.centralize_gradients(), g, [g])[0], g, rtol=0, atol=0)


def test_axes_of_ones_own_choice(x64: None) -> None:
    """Counted in one tensor: with axis 1 the outputs of one input, which is what optax's link does to a kernel."""
    g = {"kernel": normal(0, 4, 5), "ScanBlock_0": {"kernel": normal(1, 3, 4, 5)}}
    for axis in (1, -1, (1,)):
        out = updates(gk.centralize_gradients(axis=axis), g, [g])[0]
        assert_equal(out["kernel"], updates(optax.centralize(), g, [g])[0]["kernel"])
        inner = g["ScanBlock_0"]["kernel"]
        assert_equal(out["ScanBlock_0"]["kernel"], inner - inner.mean(2, keepdims=True))
    for axis in (2, (0, -2)):
        with pytest.raises(ValueError, match="does not fit"):
            updates(gk.centralize_gradients(axis=axis), g, [g])
    with pytest.raises(ValueError, match="axis must be"):
        gk.centralize_gradients(axis=0.5)


def test_weights_of_a_unit_keep_their_sum(x64: None) -> None:
    """Descent on centred gradients stays on the plane it starts from, and is a projection: twice is once."""
    tx = optax.chain(gk.centralize_gradients(), gk.sgd(0.1, momentum=0.9))
    x, a = normal(0, 4, 3), normal(1, 4, 3)
    path = descend(tx, x, jax.grad(lambda x: jnp.sum((x - a) ** 2)), 20)
    assert_equal(path[-1].sum(0), x.sum(0))
    assert np.abs(path[-1] - x).max() > 0.1
    once = updates(gk.centralize_gradients(), a, [a])[0]
    assert_equal(updates(gk.centralize_gradients(), a, [once])[0], once)


def test_the_deviation_is_that_of_n_minus_one(x64: None) -> None:
    g = {"k": 3 + normal(0, 4, 5), "b": 3 + normal(1, 3), "pair": normal(2, 2), "s": normal(3)}
    out = updates(gk.normalize_gradients(eps=0.01), g, [g])[0]
    for name in ("k", "b"):
        assert_equal(out[name], g[name] / (np.std(np.asarray(g[name]), ddof=1) + 0.01))
    for name in ("pair", "s"):
        assert_equal(out[name], g[name], rtol=0, atol=0)


def test_the_deviation_survives_a_large_mean() -> None:
    """In float32, squares of 1e4 are rounded by 1e8 * 2^-24 = 6: a variance of 1 would be lost in their mean."""
    g = 1e4 + normal(0, 1000)
    out = updates(gk.normalize_gradients(), g, [g])[0]
    # The entries carry a rounding of 1e4 * 2^-24 = 6e-4 each, independent ones; their mean square is far below it.
    np.testing.assert_allclose(np.asarray(g / out), np.std(np.asarray(g, np.float64), ddof=1), rtol=1e-5)


def test_a_constant_gradient_without_eps_is_zero_and_scale_does_not_count(x64: None) -> None:
    tx = gk.normalize_gradients(eps=0.0)
    assert_equal(updates(tx, jnp.ones(4), [jnp.full(4, 2.0)])[0], jnp.zeros(4), atol=0)
    g = normal(0, 4, 5)
    assert_equal(*(updates(tx, g, [k * g])[0] for k in (1.0, 1e-9)))
