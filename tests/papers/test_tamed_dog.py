"""Tamed DoG (Ivgi, Hinder, Carmon, 2023)."""

import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def test_it_is_its_equations(x64: None) -> None:
    x, bounds = normal(0, 5), [2.0, 1.0, 3.0, 2.5]
    tx = gk.tamed_dog(init_step=("distance", 0.5), delta=0.2)
    state, path = tx.init(x), np.asarray(x)
    start, r, G, largest = path, 0.5, 0.0, 0.0
    for t, bound in enumerate(bounds, 1):
        g = np.asarray(normal(t, 5))
        u, state = tx.update(normal(t, 5), state, x, grad_bound=bound)
        r = max(r, np.linalg.norm(path - start))
        largest = max(largest, bound)
        theta = np.log(60 * np.log(6 * t) / 0.2)
        slow = 1 + np.log(1 + t * largest**2 / bounds[0] ** 2)
        eta = r / np.sqrt(8.0**4 * theta**2 * slow**2 * (G + 16 * largest**2))
        assert_equal(u, -eta * g)
        G += g @ g
        path, x = path - eta * g, x + u


def test_its_steps_are_shorter_than_those_of_dog(x64: None) -> None:
    """By 8^2 theta log_+ at least, wherever the bound holds."""
    x, g = normal(0, 5), normal(1, 5)
    ours, dog = (gk.tamed_dog(init_step=("distance", 1.0)), gk.dog(init_step=("distance", 1.0)))
    u, _ = ours.update(g, ours.init(x), x, grad_bound=float(np.linalg.norm(g)))
    v, _ = dog.update(g, dog.init(x), x)
    assert float(np.linalg.norm(v) / np.linalg.norm(u)) > 64


def test_what_is_missing_is_named() -> None:
    x = normal(0, 3)
    tx = gk.tamed_dog()
    with pytest.raises(ValueError, match="tamed_dog needs the extra argument grad_bound"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match=r"delta must be in \(0, 1\)"):
        gk.tamed_dog(delta=1.0)
