"""The second moments of KL-Shampoo as a link (Lin et al., 2025)."""

import jax
import numpy as np

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def test_updates_pass_and_factors_are_those_of_the_method(x64: None) -> None:
    options = {"shampoo_beta": 0.9, "update_interval": 2, "damping": 0.1}
    link, method = gk.kl_statistics(**options), gk.scale_by_kl_shampoo(**options)
    g = [{"a": normal(i, 4, 6), "b": normal(9 + i, 5)} for i in range(5)]
    own, other = link.init(g[0]), method.init(g[0])
    pass_on, step = jax.jit(link.update), jax.jit(method.update)
    for x in g:
        u, own = pass_on(x, own)
        _, other = step(x, other)
        assert_equal(u, x)
    for field in ("S", "Q", "r"):
        assert_equal(getattr(own, field), getattr(other, field), 1e-12)


def test_each_side_is_whitened_by_the_other_and_divided_by_its_length(x64: None) -> None:
    """Second call: r = init_factor^(-1/2), so that S is that of Shampoo over the length and the factor."""
    a, b = np.asarray(normal(0, 4, 6)), np.asarray(normal(1, 4, 6))
    tx = gk.kl_statistics(shampoo_beta=0.5, init_factor=0.25)
    _, state = tx.update(normal(0, 4, 6), tx.init(normal(0, 4, 6)))
    assert_equal(state.S["0"], 0.5 * a @ a.T / 6, 1e-12)
    _, state = tx.update(normal(1, 4, 6), state)
    assert_equal(state.S["0"], 0.25 * a @ a.T / 6 + 0.5 * b @ b.T / 6 / 0.25, 1e-10, 1e-12)
    assert_equal(state.S["1"], 0.25 * a.T @ a / 4 + 0.5 * b.T @ b / 4 / 0.25, 1e-10, 1e-12)
