"""CAME (Luo et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradkit as gk
from tests.golden.translate import ARRAYS
from tests.papers.replay import assert_equal, normal, updates

STACKED = gk.leaves.layout((gk.leaves.by_rank(3), {"stack": (0,)}), default=ARRAYS)


def test_layers_of_a_stack_are_as_if_they_were_leaves(x64: None) -> None:
    gradients = [normal(i, 2, 6, 4) * jnp.asarray([1.0, 100.0**i]).reshape(2, 1, 1) for i in range(3)]
    together, apart = (gk.came(0.1, weight_decay=0.1, layout=layout) for layout in (STACKED, ARRAYS))
    whole = updates(together, gradients[0], gradients)
    for layer in range(2):
        assert_equal([u[layer] for u in whole], updates(apart, gradients[0][layer], [g[layer] for g in gradients]))


def test_where_the_instability_is_the_same_everywhere_it_is_adafactor_with_momentum(x64: None) -> None:
    """An eps of 1e14 beside squares of about 1: the confidence is one number, the root of 1e14 (1 - b3^t)."""
    gradients = [normal(i, 6, 4) for i in range(4)]
    ours = updates(gk.came(1.0, eps_instability=1e14, b3=0.99, b2=0.5), gradients[0], gradients)
    m, R, C = np.zeros((6, 4)), np.zeros((6, 1)), np.zeros((1, 4))
    for t, (u, g) in enumerate(zip(ours, map(np.asarray, gradients), strict=True), 1):
        R = 0.5 * R + 0.5 * ((g**2).mean(1, keepdims=True) + 1e-30)
        C = 0.5 * C + 0.5 * ((g**2).mean(0, keepdims=True) + 1e-30)
        d = g / np.sqrt(R / R.mean() * C)
        m = 0.9 * m + 0.1 * d / max(1, np.sqrt((d**2).mean()))
        # (u - m)^2 / 1e14 is below 1e-13.
        assert_equal(u, -m / np.sqrt(1e14 * (1 - 0.99**t)), rtol=1e-11)


def test_entries_of_the_first_step(x64: None) -> None:
    """(1 - b1) / (b1 sqrt(1 - b3)) rates where squares have rank one: the momentum has no correction, and neither has
    the instability. A vector has no confidence: 1 - b1."""
    matrix, vector = jnp.abs(normal(0, 6, 1)) * normal(1, 1, 4), normal(2, 5)
    (u,) = updates(gk.came(1.0), matrix, [matrix])
    assert_equal(u, -jnp.sign(matrix) * 0.1 / (0.9 * np.sqrt(1e-4)), rtol=1e-9)
    (u,) = updates(gk.came(1.0), vector, [vector])
    assert_equal(u, -0.1 * jnp.sign(vector))


def test_with_gradients_that_stay_the_same_steps_grow(x64: None) -> None:
    """u - m = b1^t u: with b3 = 1/2 the root of its mean square falls as b1^t, and the step grows as its inverse."""
    g = jnp.abs(normal(0, 6, 1)) * normal(1, 1, 4)
    sizes = [float(jnp.abs(u).max()) for u in updates(gk.came(1.0, b2=0.5, b3=0.5), g, [g] * 60)]
    assert sizes[59] > 100 * sizes[10] > 100
    held = [float(jnp.abs(u).max()) for u in updates(gk.came(1.0, b2=0.5, b3=0.5, eps_instability=1e-2), g, [g] * 60)]
    assert held[59] < 10 * (1 + 1e-6)


def test_words_of_state() -> None:
    """A momentum, and of both second moments rows, columns and one number; of a vector the momentum and a second
    moment."""
    state: Any = gk.came(0.1).init({"kernel": jnp.zeros((6, 4)), "bias": jnp.zeros(5)})[0]
    sizes = [sum(x.size for x in jax.tree.leaves(part)) for part in (state.mu, state.second, state.instability)]
    assert sizes == [6 * 4 + 5, 6 + 4 + 1 + 5, 6 + 4 + 1]
