"""What aggregators promise in general, for all of them at once, with the exceptions that each documents.

    non-conflicting       <result, g_i> >= 0 for every task i
    permutation           the order of the tasks does not matter
    linear under scaling  A(diag(c) J) is additive in c > 0
    homogeneous           A(s J) = s^d A(J), with the degree d of the method
    strongly stationary   a zero result only where the zero vector is a convex combination of the gradients

Every aggregator is one program, of float64, for all of these.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import gradkit as gk
from gradkit.aggregation.gramian import gramian
from gradkit.catalogue import cards
from gradkit.engine import backend, lazy_gradients
from tests.papers.stacks import conflicting, draw

pytestmark = pytest.mark.slow

M, N = 4, 9
ROOM = gk.aggregation
LOSSES = np.array([0.5, 1.0, 2.0, 4.0])
ORDER = [[1, 2, 3], [2, 3, 0], [3, 0, 1], [0, 1, 2]]
TIGHT = {"norm_eps": 0.0, "reg_eps": 1e-12}
# How those are built whose defaults are not what is promised of them, or that need arguments.
MADE = {
    "constant": lambda: ROOM.constant([0.1, 0.2, 0.3, 0.4]),
    "cr_mogm": lambda: ROOM.cr_mogm(ROOM.upgrad(**TIGHT), num_tasks=M),
    "dualproj": lambda: ROOM.dualproj(**TIGHT),
    "differentially_private_aggregate": lambda: ROOM.differentially_private_aggregate(1.0, 0.0, key=0),
    "graddrop": lambda: ROOM.graddrop(uniform=jnp.full(N, 0.5)),
    "gradvac": lambda: ROOM.gradvac(num_tasks=M, eps=1e-14, order=ORDER),
    "mgda": lambda: ROOM.mgda(epsilon=0.0, max_iters=3000),
    "pcd": lambda: ROOM.pcd(num_tasks=M, eps=1e-12),
    "pcgrad": lambda: ROOM.pcgrad(order=ORDER),
    "random_weighting": lambda: ROOM.random_weighting(key=0),
    "upgrad": lambda: ROOM.upgrad(**TIGHT),
}
# Two gradients of which the first is the main one, and gradients of two batches: the properties say nothing of them.
NAMES = [name for name, card in cards("aggregator").items() if card.tasks.most != 2 and card.tasks.batches == 1]

# No task gets worse, whatever the conflict.
NON_CONFLICTING = ("config", "cr_mogm", "dualproj", "fairgrad", "mgda", "nash_mtl", "upgrad")
# The order matters: weights or groups by the number of the task, a primary task, a given order or draw.
ORDERED = ("constant", "gradvac", "median_of_means", "pcd", "pcgrad", "random_weighting")
# A sum over tasks of what depends on the scale of the others through their directions alone.
LINEAR = ("constant", "cr_mogm", "mean", "pcgrad", "gradvac", "random_weighting", "sum", "upgrad")
# Weights of losses do not look at gradients, and are linear too.
OF_LOSSES = (
    "cosmos",
    "dwa",
    "famo",
    "geometric_mean_loss",
    "gradnorm",
    "hedge",
    "imtl_l",
    "pbi",
    "stch",
    "uncertainty_weighting",
)
# s^d: the norm of the gradients does not count, counts otherwise, or is limited.
DEGREE = {"fairgrad": 0, "nash_mtl": 0, "per_class_normalized": 0}
NOT_HOMOGENEOUS = {
    "differentially_private_aggregate": "gradients above a norm are cut to it",
    "excess_mtl": "the first excess risks are sums of absolute values, and weights follow from their size",
}
# Zero at Pareto stationary points alone.
STRONGLY_STATIONARY = ("cr_mogm", "mgda", "upgrad")


def make(name: str) -> Any:
    if name in MADE:
        return MADE[name]()
    return cards()[name].function(**cards()[name].example_for(M))


@functools.cache
def program(name: str) -> Any:
    tx = make(name)

    def run(J: jax.Array, losses: jax.Array) -> jax.Array:
        return tx.update(J, tx.init(J[0]), J[0], losses=losses)[0]

    return jax.jit(run)


def aggregate(name: str, J: np.ndarray, losses: np.ndarray = LOSSES) -> np.ndarray:
    return np.asarray(program(name)(jnp.asarray(J), jnp.asarray(losses)))


@pytest.mark.parametrize("name", NAMES)
def test_what_it_promises(name: str, x64: None) -> None:
    """All properties of a method, of one program; and that a property is not promised where it does not hold."""
    J, K = conflicting(0), draw(1)
    out, scale = aggregate(name, J), np.sum(J**2)
    assert np.isfinite(out).all()

    if name in NON_CONFLICTING:
        for seed in range(3):
            G = conflicting(seed)
            assert (G @ aggregate(name, G) >= -1e-8 * np.sum(G**2)).all()
    elif name not in ("cagrad", "graddrop", "pcgrad", "gradvac", "imtl_g", "aligned_mtl", "pcd"):
        assert (J @ out).min() < 0

    order = np.array([2, 0, 3, 1])
    permuted = aggregate(name, K[order], LOSSES[order])
    same = np.allclose(permuted, aggregate(name, K), rtol=1e-7, atol=1e-9 * scale)
    assert same == (name not in ORDERED)

    if name in (*LINEAR, *OF_LOSSES):
        c, d = np.array([1.0, 0.5, 2.0, 3.0])[:, None], np.array([0.2, 4.0, 1.0, 1.0])[:, None]
        separate = aggregate(name, c * J) + aggregate(name, d * J)
        np.testing.assert_allclose(aggregate(name, (c + d) * J), separate, atol=1e-7 * scale)

    if name not in NOT_HOMOGENEOUS:
        for s in (1e-3, 1e3):
            want = s ** DEGREE.get(name, 1) * out
            np.testing.assert_allclose(aggregate(name, s * J), want, rtol=1e-6, atol=1e-8 * np.abs(want).max())

    if name in STRONGLY_STATIONARY:
        # Far from a stationary point it is not zero, and where the first gradient is the opposite of the others it is.
        assert np.linalg.norm(aggregate(name, J)) > 1e-3 * np.linalg.norm(shortest(J)) > 0
        at = np.concatenate([K[:3], -K[:3].mean(0, keepdims=True)])
        assert np.linalg.norm(aggregate(name, at)) < 1e-2 * np.sqrt(np.sum(at**2))


def shortest(J: np.ndarray) -> np.ndarray:
    """The shortest vector of the convex hull."""
    simplex = {"type": "eq", "fun": lambda w: w.sum() - 1}
    found = minimize(
        lambda w: np.sum((w @ J) ** 2), np.full(M, 1 / M), bounds=[(0, 1)] * M, constraints=simplex, tol=1e-12
    )
    return found.x @ J


def test_every_exception_is_of_an_aggregator() -> None:
    listed = {*NON_CONFLICTING, *ORDERED, *LINEAR, *OF_LOSSES, *DEGREE, *NOT_HOMOGENEOUS, *STRONGLY_STATIONARY, *MADE}
    assert listed <= set(NAMES)


STATEFUL = [
    name
    for name, card in cards("aggregator").items()
    if card.tasks.batches == 1
    and name not in ("constant", "differentially_private_aggregate", "random_weighting", "graddrop")
]


@pytest.mark.parametrize("name", STATEFUL)
def test_a_step_that_is_not_finite_leaves_no_trace(name: str, x64: None) -> None:
    """Behind it a guard skips the update; the aggregator in front of it must not remember what made it."""
    m = cards()[name].tasks.nearest(M)
    tx = MADE[name]() if name in MADE else cards()[name].function(**cards()[name].example_for(m))

    @jax.jit
    def step(J: jax.Array, state: Any, losses: jax.Array) -> Any:
        return tx.update(J, state, J[0], losses=losses)

    J = jnp.asarray(np.concatenate([conflicting(0), conflicting(1)])[:m])
    losses = jnp.asarray(LOSSES[:m])
    _, state = step(J, tx.init(J[0]), losses)
    _, after = step(J.at[0].set(jnp.nan), state, losses.at[0].set(jnp.nan))
    want, got = step(2 * J, state, losses), step(2 * J, after, losses)
    assert np.isfinite(want[0]).all()
    np.testing.assert_array_equal(got[0], want[0])


def test_long_rows_are_multiplied_some_columns_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one CPU; also a last part of other length, and complex rows, of which the real part counts."""
    monkeypatch.setattr(backend, "one_cpu", lambda: True)
    n = 5 * lazy_gradients.COLUMNS + 7
    random = np.random.default_rng(0)
    x = random.standard_normal((3, n // 2, 2)).astype(np.float32)
    z = (random.standard_normal((3, n)) + 1j * random.standard_normal((3, n))).astype(np.complex64)
    flat = x.reshape(3, -1).astype(np.float64)
    want = flat @ flat.T + (z.astype(np.complex128) @ z.astype(np.complex128).conj().T).real
    found = jax.jit(gramian)({"x": jnp.asarray(x), "z": jnp.asarray(z)})
    # Sums of 3 n products near 1, in parts: rounding of float32 times the root of their number, and some.
    np.testing.assert_allclose(found, want, atol=8 * (3 * n) ** 0.5 * 2**-24 * 10, rtol=1e-6)
