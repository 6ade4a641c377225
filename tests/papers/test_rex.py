"""REX (Chen, Wolfe, Kyrillidis, 2021)."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import gradkit as gk


def values(**own: Any) -> np.ndarray:
    return np.asarray(gk.schedules.rex(2.0, total_steps=12, **own)(jnp.arange(15)))


def test_the_other_form_of_the_paper(x64: None) -> None:
    """With halves, (1 - p) / (1 - p / 2) of the progress p."""
    p = np.minimum(np.arange(15) / 12, 1)
    np.testing.assert_allclose(values(end_value=0.5), 0.5 + 1.5 * (1 - p) / (1 - p / 2), rtol=1e-14, atol=1e-15)


def test_without_beta_it_is_a_line_and_with_less_alpha_it_falls_later(x64: None) -> None:
    p = np.minimum(np.arange(15) / 12, 1)
    np.testing.assert_allclose(values(alpha=1.0, beta=0.0), 2 * (1 - p), rtol=1e-14, atol=1e-15)
    line, half, late = (values(alpha=a, beta=1 - a)[1:12] for a in (1.0, 0.5, 0.1))
    assert (line < half).all() and (half < late).all()


def test_a_warm_up_in_front_takes_its_steps_from_the_budget(x64: None) -> None:
    got = values(warmup_steps=4)
    np.testing.assert_allclose(got[:5], [0.5, 1.0, 1.5, 2.0, 2.0], rtol=1e-14)
    np.testing.assert_allclose(got[4:], np.asarray(gk.schedules.rex(2.0, total_steps=8)(jnp.arange(11))), rtol=1e-14)
    assert (got[12:] == 0).all()
