"""The exact strengths of the modes of deep linear networks."""

import numpy as np

import gradkit as gk

strength = gk.diagnostics.linear_mode_strength


def test_start_end_and_time_between(x64: None) -> None:
    s, a0, tau = 2.0, 0.01, 1.5
    np.testing.assert_allclose(strength(0.0, s, a0, tau), a0, rtol=1e-15)
    np.testing.assert_allclose(strength(1e4, s, a0, tau), s, rtol=1e-15)  # e^(26667) is not finite
    end = 1.7
    time = tau / (2 * s) * np.log(end * (s - a0) / (a0 * (s - end)))
    np.testing.assert_allclose(strength(time, s, a0, tau), end, rtol=1e-13)


def test_solves_its_equation_at_every_depth(x64: None) -> None:
    """A central difference of width 1e-4 has an error of 1e-8 of the third derivative, which is below 100 here."""
    t, s, a0, h = np.array([0.3, 0.6]), 2.0, 0.3, 1e-4
    for depth in (1, 2, 3, 4.5):
        slope = (strength(t + h, s, a0, depth=depth) - strength(t - h, s, a0, depth=depth)) / (2 * h)
        a = np.asarray(strength(t, s, a0, depth=depth))
        np.testing.assert_allclose(slope, depth * a ** (2 - 2 / depth) * (s - a), rtol=1e-5)


def test_integration_meets_the_closed_form(x64: None) -> None:
    np.testing.assert_allclose(strength(1.3, 2.0, 0.01, depth=2 + 1e-12), strength(1.3, 2.0, 0.01), rtol=1e-9)


def test_twice_the_singular_value_is_learned_in_half_of_the_time(x64: None) -> None:
    """With a0 in proportion to s, a(t) / s depends on s t alone."""
    np.testing.assert_allclose(strength(0.5, 4.0, 0.04) / 4, strength(1.0, 2.0, 0.02) / 2, rtol=1e-14)
