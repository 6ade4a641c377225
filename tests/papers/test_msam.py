"""Momentum-SAM (Becker, Altrock, Risse, 2024)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.by_numpy import by_numpy
from tests.papers.replay import assert_equal, descend, normal

CENTRE = np.random.default_rng(7).standard_normal(5)


def field(x: Any) -> Any:
    return x - CENTRE + 0.3 * x**3


def test_without_a_distance_it_is_the_base(x64: None) -> None:
    x = normal(0, 5)
    assert_equal(descend(gk.msam_sgd(0.05, rho=0.0), x, field, 8), descend(gk.sgd(0.05, momentum=0.9), x, field, 8))
    assert_equal(descend(gk.msam_adamw(0.05, rho=0.0), x, field, 8), descend(gk.adam(0.05), x, field, 8))


@pytest.mark.parametrize("method", [gk.msam_sgd, gk.msam_adamw])
def test_gradients_are_taken_at_the_distance_ahead_along_the_momentum(method: Any, x64: None) -> None:
    """Over all leaves together, from the first step on, along the coming step."""
    x = {"a": normal(0, 4), "b": normal(1, 3)}
    tx = method(0.05, rho=0.7)
    state, path = tx.init(x), x
    update = by_numpy(tx.update)
    for t in range(4):
        u, state = update({"a": normal(2 * t + 2, 4), "b": normal(2 * t + 3, 3)}, state, path)
        path = {k: path[k] + u[k] for k in path}
        true, v = gk.eval_params(state, path), gk.find(state, "mu")
        off = {k: np.asarray(path[k] - true[k]) for k in path}
        np.testing.assert_allclose(np.sqrt(sum((o**2).sum() for o in off.values())), 0.7, rtol=1e-10)
        assert sum(float((off[k] * np.asarray(v[k])).sum()) for k in off) < 0


def test_as_far_as_the_momentum_carries_it_is_nesterovs_method(x64: None) -> None:
    """rho = learning_rate momentum |v|, another in every step: the parameters are those of Nesterov's method."""
    x, rate, mu, v = normal(0, 5), 0.05, 0.9, np.zeros(5)
    path, state, found = x, gk.msam_sgd(rate, momentum=mu).init(x), []
    for _ in range(5):
        g = field(path)
        v = mu * v + np.asarray(g)
        u, state = gk.msam_sgd(rate, momentum=mu, rho=rate * mu * float(np.linalg.norm(v))).update(g, state, path)
        path = path + u
        found.append(path)
    # 1e-12 is added to |v|.
    assert_equal(found, descend(gk.sgd(rate, momentum=mu, nesterov=True), x, field, 5)[1:], rtol=1e-10)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_the_algorithm_in_numpy_with_decay(base: str, x64: None) -> None:
    """SGD decays at y, in the momentum; AdamW after the step, which the decay multiplies too."""
    y, rate, wd, rho = np.asarray(normal(0, 5)), 0.05, 0.6, 0.4
    tx = gk.msam_sgd(rate, weight_decay=wd, rho=rho) if base == "sgd" else gk.msam_adamw(rate, weight_decay=wd, rho=rho)
    state, update, path = tx.init(jnp.asarray(y)), by_numpy(tx.update), jnp.asarray(y)
    v, s, c = np.zeros(5), np.zeros(5), 0.0
    for t in range(1, 8):
        u, state = update(jnp.asarray(field(np.asarray(path))), state, path)
        path = path + u
        g, x = field(y), y + c * v
        if base == "sgd":
            v = 0.9 * v + g + wd * y
            x = x - rate * v
        else:
            v, s = 0.9 * v + 0.1 * g, 0.999 * s + 0.001 * g**2
            x = (x - rate * v / (1 - 0.9**t) / (np.sqrt(s / (1 - 0.999**t)) + 1e-8)) * (1 - rate * wd)
        c = rho / (np.linalg.norm(v) + 1e-12)
        y = x - c * v
        assert_equal(path, y, rtol=1e-10)
        assert_equal(gk.eval_params(state, path), x, rtol=1e-10)
