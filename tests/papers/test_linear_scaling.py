"""Linear scaling: the rate alone, as a group action, and what it is for."""

import jax
import jax.numpy as jnp
import pytest

from gradkit.batches import linear_scaling

HPARAMS = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}


def test_only_the_rate_changes() -> None:
    """The paper's ImageNet recipe: 0.1 at 256 is 3.2 at 8192."""
    new = linear_scaling(HPARAMS, 8192 / 256)
    assert new == {**HPARAMS, "learning_rate": 3.2} and HPARAMS["learning_rate"] == 0.1


def test_composition() -> None:
    twice = linear_scaling(linear_scaling(HPARAMS, 4), 0.5)
    assert twice == linear_scaling(HPARAMS, 2) and linear_scaling(HPARAMS, 1) == HPARAMS
    assert linear_scaling(linear_scaling(HPARAMS, 4), 1 / 4) == HPARAMS


def test_kappa_steps_of_the_small_batch_are_one_of_the_large() -> None:
    """Where the gradient is constant, exactly: powers of two."""
    small, kappa, g = 0.125, 4, 0.5
    assert kappa * small * g == linear_scaling({"learning_rate": small}, kappa)["learning_rate"] * g


def test_traced() -> None:
    rates = jax.vmap(lambda k: linear_scaling({"learning_rate": 0.5}, k)["learning_rate"])(jnp.array([1.0, 2.0]))
    assert rates.tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("hparams", "kappa", "message"),
    [
        (HPARAMS, 0, r"kappa must be in \(0, inf\)"),
        (HPARAMS, float("nan"), "kappa must be in"),
        ({"lr": 0.1}, 2, "linear_scaling is about learning_rate"),
        ({"learning_rate": -0.1}, 2, "learning_rate must be in"),
        ({"learning_rate": lambda step: 0.1}, 2, "learning_rate must be a number"),
    ],
)
def test_bad_input(hparams: dict, kappa: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_scaling(hparams, kappa)
