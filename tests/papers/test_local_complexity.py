"""The local complexity of networks (Humayun, Balestriero, Baraniuk, 2024)."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.diagnostics import local_complexity
from tests.papers.replay import normal

N, D, P = 12, 6, 4


def mlp(params: Any, x: jax.Array) -> list[jax.Array]:
    found = []
    for w, b in params:
        z = x @ w + b[None]
        found.append(z)
        x = jax.nn.relu(z)
    return found


def layers(*sizes: int) -> list[Any]:
    return [(normal(i, a, b), 0.1 * normal(9 + i, b)) for i, (a, b) in enumerate(itertools.pairwise(sizes))]


def test_one_layer_in_closed_form(x64: None) -> None:
    """A unit counts where its hyperplane is nearer than the corner that is farthest along its normal:
    |w x + b| < radius max_p |w v_p|. The corners are orthonormal, and the same for every input."""
    x, (w, b) = normal(3, N, D), layers(D, 40)[0]
    seen: list[Any] = []

    def watched(params: Any, points: jax.Array) -> list[jax.Array]:
        jax.debug.callback(lambda points: seen.append(np.asarray(points)), points)
        return mlp([params], points)

    found = jax.jit(lambda x: local_complexity(watched, (w, b), x, 0, radius=0.3, directions=P))(x)
    jax.effects_barrier()
    v = (seen[0] - np.asarray(x)[0])[:P] / 0.3
    np.testing.assert_allclose(v @ v.T, np.eye(P), atol=1e-13)
    want = np.abs(np.asarray(x @ w + b[None])) < 0.3 * np.abs(v @ np.asarray(w)).max(axis=0)
    assert 0 < want.sum() < want.size
    assert float(found.complexity) == pytest.approx(want.sum(axis=1).mean(), rel=1e-14)


def test_layers_are_counted_apart_and_scales_do_not_matter(x64: None) -> None:
    """A ReLU network whose kernels and biases are scaled so that every unit is computes the same borders."""
    x, params = normal(3, N, D), layers(D, 20, 20)
    count = jax.jit(lambda params, x: local_complexity(mlp, params, x, 1, radius=0.5, directions=P))
    found = count(params, x)
    assert found.layers.shape == (2,) and float(found.layers.min()) > 0
    assert float(found.complexity) == pytest.approx(float(found.layers.sum()), rel=1e-14)
    (w1, b1), (w2, b2) = params
    scaled = count([(3 * w1, 3 * b1), (5 * w2, 15 * b2)], x)
    np.testing.assert_array_equal(scaled.layers, found.layers)


def test_a_linear_network_has_none_and_a_dead_unit_does_not_count(x64: None) -> None:
    x = normal(3, N, D)
    assert float(local_complexity(lambda p, x: [], None, x, 0, directions=2).complexity) == 0
    dead = local_complexity(lambda p, x: [0 * x, 1 + 0 * x], None, x, 0, directions=2)
    assert dead.layers.tolist() == [0, 0]


def test_bad_input() -> None:
    x = jnp.ones((2, 3))
    for given, message in (
        ({"directions": 4}, "directions must be an integer >= 1 and <= 3"),
        ({"radius": 0.0}, "radius must be in"),
        ({"inputs": jnp.ones(3)}, "inputs must have shape"),
        ({"preactivations": lambda p, x: [x[0]]}, "preactivations must give arrays"),
    ):
        with pytest.raises(ValueError, match=message):
            call: dict[str, Any] = {"preactivations": lambda p, x: [x], "inputs": x, "directions": 2, **given}
            local_complexity(params=None, key=0, **call)
