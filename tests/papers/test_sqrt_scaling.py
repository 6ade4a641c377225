"""Square root scaling: its four rules, as a group action, its domain, and the noise it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.batches import sqrt_scaling

HPARAMS = {"learning_rate": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "nesterov": False}


def close(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        # 1 - b of 0.999 has lost ten bits.
        assert a[name] == pytest.approx(b[name], rel=2.0**-40)


def test_the_four_rules() -> None:
    new = sqrt_scaling(HPARAMS, 4)
    close(new, {**HPARAMS, "learning_rate": 2e-3, "b1": 0.6, "b2": 0.996, "eps": 5e-9})
    assert HPARAMS["b1"] == 0.9


def test_composition() -> None:
    close(sqrt_scaling(sqrt_scaling(HPARAMS, 2.5), 3), sqrt_scaling(HPARAMS, 7.5))
    close(sqrt_scaling(sqrt_scaling(HPARAMS, 4), 1 / 4), HPARAMS)
    close(sqrt_scaling({**HPARAMS, "b1": 0.0}, 1), {**HPARAMS, "b1": 0.0})


def test_rmsprop_has_no_b1() -> None:
    assert sqrt_scaling({"learning_rate": 0.5, "b2": 0.75}, 2.25) == {"learning_rate": 0.75, "b2": 0.4375}


def test_the_averages_span_the_same_examples() -> None:
    """1 / (1 - b) steps of B examples, whatever the batch."""
    for kappa in (0.25, 2, 8):
        new = sqrt_scaling(HPARAMS, kappa)
        for b in ("b1", "b2"):
            assert kappa / (1 - new[b]) == pytest.approx(1 / (1 - HPARAMS[b]), rel=1e-9)


def test_the_noise_of_the_trajectory_is_kept() -> None:
    """Pure noise of variance 1 / batch, eps small: one large step moves like kappa small ones, in variance.

    The update is learning_rate g / rms(g) with rms = sqrt(1 / batch), so a small step has variance
    learning_rate^2 and the kappa of them kappa learning_rate^2.
    """
    kappa = 9.0
    new = sqrt_scaling(HPARAMS, kappa)["learning_rate"]
    assert new**2 == pytest.approx(kappa * HPARAMS["learning_rate"] ** 2)


def test_traced() -> None:
    new = jax.vmap(lambda k: sqrt_scaling(HPARAMS, k))(jnp.array([1.0, 4.0]))
    np.testing.assert_allclose(new["learning_rate"], [1e-3, 2e-3], rtol=1e-6)
    np.testing.assert_allclose(new["b1"], [0.9, 0.6], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "kappa", "message"),
    [
        ({}, 10, "no b1 for kappa=10.*kappa below 10"),
        ({}, 11, "no b1"),
        ({"b1": 0.99}, 1000, "no b1 for kappa=1000"),
        ({"b1": 0.9999}, 1000, "no b2 for kappa=1000"),
        ({"b1": 0.0}, 2, "no b1"),
        ({"b1": 1.0}, 2, r"b1 must be in \[0, 1\)"),
        ({"eps": -1.0}, 2, "eps must be in"),
        ({"learning_rate": float("nan")}, 2, "learning_rate must be in"),
        ({}, 0.0, "kappa must be in"),
        ({}, -1.0, "kappa must be in"),
        ({}, float("nan"), "kappa must be in"),
    ],
)
def test_bad_input(changes: dict, kappa: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sqrt_scaling({**HPARAMS, **changes}, kappa)


def test_nothing_to_scale() -> None:
    with pytest.raises(ValueError, match="sqrt_scaling is about learning_rate, b1, b2, eps"):
        sqrt_scaling({"momentum": 0.9}, 2)
