"""Scaled weight standardization and the gains of activations (Brock et al., 2021)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.layers import nf_gain, scaled_standardize_weight
from gradkit.layers.scaled_standardize_weight import GAINS
from tests.golden import fixture
from tests.papers.replay import assert_equal, normal


def test_units_have_mean_0_and_the_norm_of_the_gain(x64: None) -> None:
    w, gain = normal(0, 3, 3, 2, 5), jnp.arange(1.0, 6.0)
    W = scaled_standardize_weight(w, gain)
    assert_equal(W.sum((0, 1, 2)), np.zeros(5), atol=1e-14)
    assert_equal(jnp.sqrt(jnp.sum(W**2, (0, 1, 2))), gain)
    assert_equal(scaled_standardize_weight(3 * w - 7, gain), W, rtol=1e-11)
    assert_equal(scaled_standardize_weight(w, jnp.asarray(2.0)), 2 * scaled_standardize_weight(w))


def test_the_floor_is_a_floor(x64: None) -> None:
    """Below it a unit is divided by sqrt(eps), above it eps does not enter."""
    w = normal(0, 8, 2) * jnp.array([[1e-4, 1.0]])
    W, centred = scaled_standardize_weight(w, eps=1e-4), w - w.mean(0, keepdims=True)
    assert_equal(W[:, 0], centred[:, 0] / 1e-2)
    assert_equal(W[:, 1], scaled_standardize_weight(w, eps=0.0)[:, 1])


@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_equal_weights_give_zero_and_a_finite_gradient(eps: float) -> None:
    w = jnp.ones((3, 2))
    assert (scaled_standardize_weight(w, eps=eps) == 0).all()
    assert np.isfinite(jax.grad(lambda w: scaled_standardize_weight(w, eps=eps)[0].sum())(w)).all()


def test_golden_weights_of_the_last_step(x64: None) -> None:
    golden = fixture.read(fixture.Path(fixture.__file__).parent / "data/large_batch/scaled_weight_standardization.npz")
    for leaf, latent in golden.steps[-2].items():
        hyper = golden.meta["hyper"]
        got = scaled_standardize_weight(jnp.asarray(latent), hyper["gain"], eps=hyper["eps"])
        assert_equal(got, golden.extra()[f"effective_last/{leaf}"])


@pytest.mark.parametrize("name", sorted(GAINS))
def test_a_gain_restores_the_variance(name: str, x64: None) -> None:
    """By the trapezoidal rule on 20001 points, whose error is far below that of the published sample, a thousandth."""
    x = jnp.linspace(-12, 12, 20001)
    density = jnp.exp(-(x**2) / 2) / jnp.sqrt(2 * jnp.pi)
    f = x if name == "identity" else getattr(jax.nn, name)(x)
    mean, square = (float(jnp.trapezoid(v * density, x)) for v in (f, f**2))
    assert abs(nf_gain(name) ** 2 * (square - mean**2) - 1) < 2e-3


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="did you mean 'relu'"):
        nf_gain("rellu")
    with pytest.raises(ValueError, match="gain must be a number or have one entry per unit, 2"):
        scaled_standardize_weight(jnp.ones((3, 2)), jnp.ones(3))
    with pytest.raises(ValueError, match="eps must be in"):
        scaled_standardize_weight(jnp.ones((3, 2)), eps=float("nan"))
