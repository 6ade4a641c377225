"""Sums of squares as denominators (Duchi et al., 2011; Chezhegov et al., 2024)."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("delayed", [False, True])
def test_equations(norm: bool, delayed: bool, x64: None) -> None:
    gradients = [{"a": normal(i, 3), "b": normal(9 + i, 2, 2)} for i in range(5)]
    s = {name: np.full(x.shape, 0.3) for name, x in gradients[0].items()}
    function = gk.scale_by_delayed_rss if delayed else gk.scale_by_rss
    tx = function(initial_accumulator_value=0.3, reweight=0.7, norm=norm, eps=1e-2)
    for g, u in zip(gradients, updates(tx, gradients[0], gradients), strict=True):
        total = sum(float((np.asarray(x) ** 2).sum()) for x in g.values())
        new = {name: s[name] + 0.7 * (total if norm else np.asarray(x) ** 2) for name, x in g.items()}
        assert_equal(u, {n: x / (np.sqrt((s if delayed else new)[n]) + 1e-2) for n, x in g.items()})
        s = new


def test_eps_under_the_root_is_the_one_of_optax(x64: None) -> None:
    gradients = [normal(i, 6) for i in range(5)]
    mine = gk.scale_by_rss(initial_accumulator_value=0.1, eps=1e-3, eps_in_sqrt=True)
    theirs = optax.scale_by_rss(initial_accumulator_value=0.1, eps=1e-3)
    assert_equal(updates(mine, gradients[0], gradients), updates(theirs, gradients[0], gradients))


def test_the_delayed_denominator_does_not_know_the_gradient_above_it(x64: None) -> None:
    """Linear in the current gradient: a gradient ten times as long is a step ten times as long."""
    past, g = normal(0, 6), normal(1, 6)
    tx = gk.scale_by_delayed_rss()
    assert_equal(updates(tx, g, [past, 10 * g])[1], 10 * updates(tx, g, [past, g])[1])


def test_delay_needs_a_start() -> None:
    with pytest.raises(ValueError, match=r"initial_accumulator_value must be in \(0, inf\)"):
        gk.scale_by_delayed_rss(initial_accumulator_value=0.0)


def test_the_sum_goes_on_with_bfloat16_parameters() -> None:
    """In bfloat16, 256 + 1 is 256; the sum is kept in float32."""
    g = jnp.ones(1, jnp.bfloat16)
    tx = gk.scale_by_rss(initial_accumulator_value=256.0)
    assert float(tx.update(g, tx.init(g))[1].sum_of_squares[0]) == 257.0
