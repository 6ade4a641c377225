"""Spectral decoupling: its derivative, and per example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.losses import spectral_decoupling
from tests.papers.stacks import draw


def test_the_derivative_by_the_logits(x64: None) -> None:
    y, coef, target = draw(0, 5, 3), 0.3, 1.5
    got = jax.grad(lambda y: spectral_decoupling(y, coef=coef, target=target))(jnp.asarray(y))
    np.testing.assert_allclose(np.asarray(got), 2 * coef * (y - target) / 15, rtol=1e-12)


def test_coefficients_and_targets_by_the_label(x64: None) -> None:
    y, labels = draw(1, 1, 6)[0], np.array([0, 1, 1, 0, 1, 0])
    coef, target = np.array([0.1, 0.7])[labels], np.array([0.44, 2.5])[labels]
    got = spectral_decoupling(jnp.asarray(y), coef=jnp.asarray(coef), target=jnp.asarray(target))
    np.testing.assert_allclose(float(got), np.mean(coef * (y - target) ** 2), rtol=1e-12)


def test_narrow_logits_and_bad_input() -> None:
    assert spectral_decoupling(jnp.ones(3, jnp.bfloat16)).dtype == jnp.float32
    with pytest.raises(ValueError, match=r"coef must be in \[0, inf\)"):
        spectral_decoupling(jnp.ones(3), coef=-1.0)
    with pytest.raises(ValueError, match="logits must be floating point"):
        spectral_decoupling(jnp.ones(3, jnp.int32))
