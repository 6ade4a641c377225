"""SOAP (Vyas et al., 2024): against NumPy, and what it reduces to."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal
from tests.papers.test_shampoo import contraction, replay


def turn(x: np.ndarray, Q: list[Any], back: bool = False) -> np.ndarray:
    for i, q in enumerate(Q):
        if q is not None:
            x = np.moveaxis(np.tensordot(q if back else q.T, x, (1, i)), 0, i)
    return x


def reference(
    gradients: list[np.ndarray],
    *,
    rotated: tuple[int, ...],
    b1: float,
    b2: float,
    beta: float,
    eps: float,
    frequency: int,
    normalize: bool,
    debias: bool,
) -> list[np.ndarray]:
    """The box of the algorithm, for one tensor; the first moment is kept in the bases, as the official code does."""
    shape = gradients[0].shape
    S: list[Any] = [np.zeros((d, d)) if i in rotated else None for i, d in enumerate(shape)]
    Q: list[Any] = []
    m, v, out = np.zeros(shape), np.zeros(shape), []
    for c, G in enumerate(gradients):
        new = [None if s is None else beta * s + (1 - beta) * contraction(G, i) for i, s in enumerate(S)]
        if c == 0:
            S, Q = new, [None if s is None else np.linalg.eigh(s)[1][:, ::-1] for s in new]
            out.append(np.zeros(shape))
            continue
        turned = turn(G, Q)
        m, v = b1 * m + (1 - b1) * turned, b2 * v + (1 - b2) * turned**2
        u = m / (np.sqrt(v) + eps)
        u = turn(u, Q, back=True)
        u = u / (1e-30 + np.sqrt(np.mean(u**2))) if normalize else u
        out.append(u * np.sqrt(1 - b2**c) / (1 - b1**c) if debias else u)
        S = new
        if c % frequency == 0:
            kept = turn(m, Q, back=True)
            for i in rotated:
                order = np.argsort(-np.diag(Q[i].T @ S[i] @ Q[i]))
                v = np.take(v, order, axis=i)
                Q[i] = np.linalg.qr(S[i] @ Q[i][:, order])[0]
            m = turn(kept, Q)
    return out


SHAPES = {"kernel": (3, 3), "tall": (5, 3), "cube": (2, 3, 2), "bias": (3,)}
ROWS = [{k: np.random.default_rng([t, 5]).standard_normal(s) for k, s in SHAPES.items()} for t in range(6)]
SETTINGS = [
    {"update_interval": 2, "max_dim": 3},
    {"update_interval": 1, "max_dim": 4, "shampoo_beta": 0.8, "normalize_grads": True},
    {"update_interval": 3, "max_dim": 3, "bias_correction": False, "eps": 1e-2},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_algorithm(settings: dict[str, Any], x64: None) -> None:
    """An axis of length 5 above the limit is not rotated, as its first statistic would have a null space."""
    every = {"eps": 1e-8, "shampoo_beta": None, "normalize_grads": False, "bias_correction": True, **settings}
    tx = gk.scale_by_soap(b1=0.9, b2=0.95, **every)
    got, _ = replay(tx, [{k: jnp.asarray(g) for k, g in row.items()} for row in ROWS])
    for name, shape in SHAPES.items():
        want = reference(
            [row[name] for row in ROWS],
            rotated=() if len(shape) == 1 else tuple(i for i, d in enumerate(shape) if d <= every["max_dim"]),
            b1=0.9,
            b2=0.95,
            beta=every["shampoo_beta"] or 0.95,
            eps=every["eps"],
            frequency=every["update_interval"],
            normalize=every["normalize_grads"],
            debias=every["bias_correction"],
        )
        # Roundings over the gaps between eigenvalues, some 1e-2 of the largest.
        assert_equal([u[name] for u in got], want, rtol=1e-9, atol=1e-9)


def test_the_bias_correction_comes_after_the_division(x64: None) -> None:
    """A normalised direction has the root mean square of the correction alone, not 1."""
    rows = [{"kernel": jnp.asarray(row["kernel"])} for row in ROWS]
    tx = gk.scale_by_soap(b1=0.95, b2=0.95, normalize_grads=True, bias_correction=True)
    got, _ = replay(tx, rows)
    sizes = [np.sqrt(np.mean(np.square(u["kernel"]))) for u in got]
    # Four digits are written.
    np.testing.assert_allclose(sizes, [0.0, 4.472, 3.203, 2.648, 2.322, 2.102], atol=5e-4)
    got, _ = replay(gk.scale_by_soap(b1=0.95, b2=0.95, normalize_grads=True, bias_correction=False), rows)
    np.testing.assert_allclose([np.sqrt(np.mean(np.square(u["kernel"]))) for u in got[1:]], 1.0, rtol=1e-12)


def test_joined_axes_and_vectors(x64: None) -> None:
    """(2, 2, 3) with a limit of 4 is (4, 3); a vector is rotated if asked for, by the direction of one gradient."""
    rows = [row["cube"].reshape(2, 2, 3) for row in ROWS[:4]]
    options = {"update_interval": 2, "max_dim": 4}
    got, _ = replay(gk.scale_by_soap(merge_dims=True, **options), [jnp.asarray(g) for g in rows])
    want, _ = replay(gk.scale_by_soap(**options), [jnp.asarray(g.reshape(4, 3)) for g in rows])
    # The first statistic of the longer axis has rank 3 of 4: the last vector is fixed up to its sign.
    assert_equal(got, [u.reshape(2, 2, 3) for u in want], rtol=1e-9, atol=1e-12)
    g = normal(0, 3)
    vector, _ = replay(gk.scale_by_soap(precondition_1d=True, eps=0.0, bias_correction=False), [g, g])
    # In the basis only the first coordinate is not 0, up to rounding: m / sqrt(v) = 0.05 / 0.05^0.5.
    first = g / jnp.linalg.norm(g)
    assert_equal(jnp.dot(vector[1], first), 0.05 / np.sqrt(0.05), rtol=1e-12)


def test_without_rotation_it_is_adam_one_step_late(x64: None) -> None:
    rows = [{"w": normal(i, 2, 3), "b": normal(9 + i, 2)} for i in range(4)]
    got, _ = replay(gk.soap(0.1, eps=0.0, max_dim=1, weight_decay=0.0), rows)
    assert_equal(got[0], {"w": np.zeros((2, 3)), "b": np.zeros(2)})
    assert_equal(got[1:], replay(gk.adam(0.1, b1=0.95, b2=0.95, eps=0.0), rows[1:])[0], rtol=1e-12)


def test_it_turns_with_the_coordinates_and_its_bases_are_orthogonal(x64: None) -> None:
    """SOAP(Q1 G Q2) = Q1 SOAP(G) Q2, where no statistic is singular."""
    Q1, Q2 = (np.linalg.qr(np.random.default_rng(i).standard_normal((3, 3)))[0] for i in range(2))
    rows = [row["kernel"] for row in ROWS]
    tx = gk.scale_by_soap(update_interval=2)
    plain, state = replay(tx, [jnp.asarray(g) for g in rows])
    turned, _ = replay(tx, [jnp.asarray(Q1 @ g @ Q2) for g in rows])
    assert_equal(turned, [Q1 @ np.asarray(u) @ Q2 for u in plain], rtol=1e-9, atol=1e-9)
    for Q in state.Q.values():
        np.testing.assert_allclose(Q.T @ Q, np.eye(3), atol=1e-14)


def test_bad_input() -> None:
    for kwargs, message in [
        ({"update_interval": 0}, "update_interval must be"),
        ({"shampoo_beta": 1.0}, "shampoo_beta must be in"),
        ({"max_dim": 0}, "max_dim must be"),
        ({"shard": "data"}, "shard must be a MatrixSharding"),
    ]:
        with pytest.raises(ValueError, match=message):
            gk.scale_by_soap(**kwargs)
    with pytest.raises(ValueError, match="complex"):
        gk.scale_by_soap().init(jnp.ones(2, jnp.complex64))


@pytest.mark.parametrize("stagger", [False, True])
def test_bases_that_fail_are_not_taken(stagger: bool, x64: None) -> None:
    """They are counted; other tensors do not notice."""
    tx = gk.scale_by_soap(update_interval=1, stagger=stagger)
    rows = [{k: jnp.asarray(row["kernel"]) * (i + 1) for i, k in enumerate("ab")} for row in ROWS]
    state = tx.init(rows[0])
    for row in rows[:2]:
        _, state = tx.update(row, state)
    before = state.Q
    assert gk.diagnostics.metrics(state)["failed_refreshes"] == 0
    d, state = jax.jit(tx.update)({**rows[2], "a": jnp.full((3, 3), jnp.nan)}, state)
    after = state.Q
    assert gk.diagnostics.metrics(state)["failed_refreshes"] == 1
    assert np.isfinite(d["b"]).all()
    for axis in "01":
        np.testing.assert_array_equal(before["a"][axis], after["a"][axis])
        assert (before["b"][axis] != after["b"][axis]).any()
