"""Gradual warm-up (Goyal et al., 2017)."""

import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.schedules import gradual_warmup


def test_the_recipe_of_the_paper(x64: None) -> None:
    """0.1 to 3.2 over 5 epochs, then tenths at 30, 60 and 80 of 90 epochs, counted from the start of the run."""
    epoch = 4

    def falls(step):
        return 3.2 * 0.1 ** jnp.sum(step >= epoch * jnp.array([30, 60, 80]))

    schedule = gradual_warmup(0.1, kappa=32, warmup_steps=5 * epoch, after=falls)
    got = np.array([schedule(t) for t in (0, 10, 19, 20, 119, 120, 239, 240, 319, 320, 359)])
    want = [0.1, 0.1 + 3.1 / 2, 0.1 + 3.1 * 19 / 20, 3.2, 3.2, 0.32, 0.32, 0.032, 0.032, 0.0032, 0.0032]
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_constant_and_no_warmup() -> None:
    steps = jnp.arange(6)
    assert gradual_warmup(0.5, kappa=4, warmup_steps=3, shape="constant")(steps).tolist() == [0.5] * 3 + [2.0] * 3
    assert gradual_warmup(0.5, kappa=4, warmup_steps=0)(steps).tolist() == [2.0] * 6
    assert gradual_warmup(0.5, kappa=1, warmup_steps=3)(steps).tolist() == [0.5] * 6


def test_bad_input() -> None:
    good = {"base": 0.1, "kappa": 4, "warmup_steps": 3}
    for bad in ({"base": -1.0}, {"kappa": 0}, {"warmup_steps": -1}, {"after": 3.0}, {"shape": "cosine"}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            gradual_warmup(**{**good, **bad})
