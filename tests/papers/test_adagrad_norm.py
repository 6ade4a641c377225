"""AdaGrad-Norm (as in Lau, Liu, Kolar, 2024)."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_one_number_for_the_whole_tree(x64: None) -> None:
    gradients = [{"a": normal(i, 3), "b": normal(i + 9, 2, 2)} for i in range(5)]
    square = 0.25
    for g, u in zip(gradients, updates(gk.scale_by_adagrad_norm(0.25), gradients[0], gradients), strict=True):
        square += sum(float(jnp.sum(x**2)) for x in g.values())
        assert_equal(u, {k: np.asarray(x) / np.sqrt(square) for k, x in g.items()})
    state = gk.scale_by_adagrad_norm().init(gradients[0])
    assert state.sum_of_squares == 1e-2 and state.sum_of_squares.shape == ()


def test_the_first_step_has_norm_one_without_an_accumulator(x64: None) -> None:
    g = {"a": 7 * normal(0, 3), "b": normal(1, 2)}
    (u,) = updates(gk.scale_by_adagrad_norm(0.0), g, [g])
    assert_equal(sum(jnp.sum(x**2) for x in u.values()), 1.0)
    (still,) = updates(gk.scale_by_adagrad_norm(0.0), g, [{k: 0 * x for k, x in g.items()}])
    assert_equal(still, {k: 0 * x for k, x in g.items()})


@pytest.mark.parametrize("bad", [-1.0, float("nan"), "high"])
def test_bad_input(bad: object) -> None:
    with pytest.raises(ValueError, match="initial_accumulator_value must be"):
        gk.scale_by_adagrad_norm(bad)
