"""Uncertainty weighting and IMTL-L: their rules in NumPy, and where they come to rest."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.aggregation import imtl_l, uncertainty_weighting
from tests.papers.stacks import draw, runner


def rule(name: str, s: np.ndarray, L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and the derivative by s."""
    if name == "imtl_l":
        return np.exp(s), np.exp(s) * L - 1
    return np.exp(-s) / 2, (1 - np.exp(-s) * L) / 2


FACTORIES = {"imtl_l": imtl_l, "uncertainty_weighting": uncertainty_weighting}


@pytest.mark.parametrize("name", FACTORIES)
def test_three_steps(name: str, x64: None) -> None:
    """The weights of a step are those before it."""
    run = runner(FACTORIES[name](num_tasks=4, weight_learning_rate=0.1))
    s, state = np.zeros(4), None
    for t in range(3):
        J, L = draw(t), np.abs(draw(t + 10, 1)[0, :4]) + 0.1
        w, slope = rule(name, s, L)
        out, state = run(J, state, losses=jnp.asarray(L))
        np.testing.assert_allclose(out, w @ J, rtol=1e-12, atol=1e-14)
        s = s - 0.1 * slope
    np.testing.assert_allclose(state.learned, s, rtol=1e-12)


@pytest.mark.parametrize("name", FACTORIES)
def test_at_rest_every_loss_weighs_by_its_inverse(name: str, x64: None) -> None:
    """Of losses that stay as they are; with any optimizer."""
    L, tx = np.array([0.1, 1.0, 5.0, 30.0]), FACTORIES[name](num_tasks=4, weight_tx=gk.adam(0.1))
    run, state = runner(tx), None
    for _ in range(400):
        out, state = run(draw(0), state, losses=jnp.asarray(L))
    share = {"imtl_l": 1.0, "uncertainty_weighting": 0.5}[name]
    np.testing.assert_allclose(out, (share / L) @ draw(0), rtol=1e-2, atol=1e-2)


def test_the_optimizer_is_any_transformation_and_nothing_else() -> None:
    def learned(tx: Any) -> np.ndarray:
        run = runner(tx)
        return np.asarray(run(draw(0).astype(np.float32), losses=jnp.full(4, 3.0))[1].learned)

    np.testing.assert_array_equal(
        learned(imtl_l(num_tasks=4, weight_tx=optax.sgd(0.025))), learned(imtl_l(num_tasks=4))
    )
    with pytest.raises(ValueError, match="weight_tx must be an optax transformation"):
        imtl_l(num_tasks=4, weight_tx=0.1)
    with pytest.raises(ValueError, match="imtl_l: num_tasks is 3, and 4 gradients came; write num_tasks=4"):
        learned(imtl_l(num_tasks=3))
