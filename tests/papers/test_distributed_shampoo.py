"""Distributed Shampoo (Shi et al., 2023): against NumPy, and the methods it takes the length of its steps from."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal
from tests.papers.test_shampoo import contraction, power, replay

# As for Shampoo: an eps of 0.1 amplifies the roundings of float64 a few tens of times.
RTOL = 1e-10


def merged(shape: tuple[int, ...], limit: int) -> list[int]:
    out: list[int] = []
    for d in [d for d in shape if d != 1][::-1]:
        out = [out[0] * d, *out[1:]] if out and out[0] * d <= limit else [d, *out]
    return out or [1]


def reference(
    gradients: list[np.ndarray],
    *,
    limit: int,
    b1: float,
    b2: float,
    b3: float,
    eps: float,
    graft: str | None,
    graft_b2: float,
    graft_eps: float,
    start: int,
    frequency: int,
    debias: bool = True,
) -> list[np.ndarray]:
    """The steps of the sheet of the algorithm, block by block."""
    shape = gradients[0].shape
    dims = merged(shape, limit)
    out = [np.zeros(dims) for _ in gradients]
    for corner in np.ndindex(*[-(-d // limit) for d in dims]):
        cut = tuple(slice(i * limit, (i + 1) * limit) for i in corner)
        block = out[0][cut].shape
        L, P = [np.zeros((d, d)) for d in block], [np.eye(d) for d in block]
        m, v = np.zeros(block), np.zeros(block)
        for t, whole in enumerate(gradients, 1):
            G = whole.reshape(dims)[cut]
            for i in range(len(block)):
                S = contraction(G, i)
                L[i] = L[i] + S if b2 == 1 else b2 * L[i] + (1 - b2) * S
            v = v + G**2 if graft == "adagrad" else graft_b2 * v + (1 - graft_b2) * G**2
            if t == start or (t > start and t % frequency == 0):
                c = 1 - b2**t if debias and b2 < 1 else 1
                P = [power(A / c + eps * np.eye(len(A)), -1 / (2 * len(block))) for A in L]
            bar = b3 * m + (1 - b3) * G
            m = b1 * m + (1 - b1) * G
            if debias:
                bar = bar / (1 - b3 * b1 ** (t - 1))
            p = bar
            for i, one in enumerate(P):
                p = np.moveaxis(np.tensordot(one, p, (1, i)), 0, i)
            if graft is not None:
                hat = v / (1 - graft_b2**t) if graft == "adam" else v
                a = bar if graft == "sgd" else bar / (np.sqrt(hat) + graft_eps)
                p = a if t < start else p * np.linalg.norm(a) / (np.linalg.norm(p) + 1e-16)
            out[t - 1][cut] = p
    return [d.reshape(shape) for d in out]


SHAPES = {"kernel": (5, 3), "conv": (2, 1, 2, 3), "bias": (4,)}
ROWS = [{k: np.random.default_rng([t, 4]).standard_normal(s) for k, s in SHAPES.items()} for t in range(4)]
SETTINGS = [
    {"grafting": "sgd", "b3": 0.3},
    {"grafting": "adagrad", "b1": 0.0, "b2": 1.0, "b3": 0.5},
    {"grafting": "rmsprop", "bias_correction": False, "update_interval": 2},
    {"grafting": None, "max_dim": 4},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: str(s["grafting"]))
def test_the_algorithm(settings: dict[str, Any], x64: None) -> None:
    """Blocks of every size, tensors of order 1 to 3 after joining, and what the trajectories of the tests leave out."""
    every = {"b1": 0.8, "b2": 0.9, "max_dim": 3, "start_preconditioning_step": 2, **settings}
    tx = gk.distributed_shampoo(1.0, eps=0.1, graft_b2=0.7, graft_eps=1e-3, **every)
    got, _ = replay(tx, [{k: jnp.asarray(g) for k, g in row.items()} for row in ROWS])
    for name in SHAPES:
        want = reference(
            [row[name] for row in ROWS],
            limit=every["max_dim"],
            b1=every["b1"],
            b2=every["b2"],
            b3=every.get("b3", every["b1"]),
            eps=0.1,
            graft=every["grafting"],
            graft_b2=0.7,
            graft_eps=1e-3,
            start=2,
            frequency=every.get("update_interval", 1),
            debias=every.get("bias_correction", True),
        )
        assert_equal([-u[name] for u in got], want, rtol=RTOL, atol=RTOL)


def test_before_it_starts_it_is_adam(x64: None) -> None:
    rows = [{"w": normal(i, 3, 4), "b": normal(9 + i, 3)} for i in range(4)]
    tx = gk.distributed_shampoo(0.1, b2=0.99, grafting="adam", graft_b2=0.99, start_preconditioning_step=10**9)
    assert_equal(replay(tx, rows)[0], replay(gk.adam(0.1, b2=0.99), rows)[0], rtol=1e-12)


def test_every_block_has_the_length_of_the_grafted_step(x64: None) -> None:
    rows = [normal(i, 4, 6) for i in range(3)]
    options = {"eps": 1e-3, "graft_b2": 0.9, "b2": 0.9, "max_dim": 3}
    got, _ = replay(gk.distributed_shampoo(1.0, grafting="adam", **options), rows)
    adam, _ = replay(gk.adam(1.0, b2=0.9), rows)
    for u, a in zip(got, adam, strict=True):
        assert np.abs(np.asarray(u) - np.asarray(a)).max() > 0.1
        for block in (np.s_[:3, :3], np.s_[3:, :3], np.s_[:3, 3:], np.s_[3:, 3:]):
            np.testing.assert_allclose(np.linalg.norm(u[block]), np.linalg.norm(a[block]), rtol=1e-12)


def test_blocks_of_one_entry_are_rmsprop(x64: None) -> None:
    """L is the mean of g^2, and e = 1/2: g / sqrt(v / (1 - b2^t) + eps), Adam's with eps under the root."""
    rows = [normal(i, 3) for i in range(4)]
    tx = gk.distributed_shampoo(1.0, b1=0.0, b2=0.9, eps=0.1, max_dim=1)
    want, _ = replay(optax.chain(gk.scale_by_adam(b1=0.0, b2=0.9, eps=0.0, eps_root=0.1), optax.scale(-1.0)), rows)
    assert_equal(replay(tx, rows)[0], want, rtol=1e-12)


def test_both_kinds_of_decay(x64: None) -> None:
    """Decoupled, the direction knows nothing of it; as a penalty it is the gradient that has it."""
    g, x = normal(0, 3, 2), normal(1, 3, 2)
    options = {"eps": 0.1, "grafting": "sgd"}

    def first(gradient: Any, **more: Any) -> Any:
        tx = gk.distributed_shampoo(0.1, **options, **more)
        return tx.update(gradient, tx.init(x), x)[0]

    plain = first(g)
    assert_equal(first(g, weight_decay=0.5), plain - 0.05 * x, rtol=1e-12)
    assert_equal(first(g, weight_decay=0.5, weight_decay_type="l2"), first(g + 0.5 * x), rtol=1e-12)


def test_bad_input() -> None:
    for kwargs, message in [
        ({"grafting": "lion"}, "grafting must be one of"),
        ({"b3": 1.0}, "b3 must be in"),
        ({"max_dim": 0}, "max_dim must be"),
        ({"update_interval": 5, "start_preconditioning_step": 4}, "start_preconditioning_step must be .* >= 5"),
        ({"weight_decay_type": "L2"}, "weight_decay_type must be one of"),
        ({"shard": "data"}, "shard must be a MatrixSharding"),
    ]:
        with pytest.raises(ValueError, match=message):
            gk.distributed_shampoo(0.1, **kwargs)


@pytest.mark.parametrize(("shape", "thin"), [((7,), (0,)), ((7, 1), (0,)), ((100, 1, 2), (0,)), ((2, 100), (1,))])
def test_an_axis_beyond_the_limit_may_keep_its_diagonal_alone(
    shape: tuple[int, ...], thin: tuple[int, ...], x64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a vector, and of a matrix so thin that full statistics would hold more than so many words per parameter:
    every block by NumPy, with diag(L) in place of L."""
    monkeypatch.setattr(importlib.import_module(gk.distributed_shampoo.__module__), "MOST_WORDS", 4)
    limit, eps = 5, 0.1
    rows = [np.random.default_rng([t, 9]).standard_normal(shape) for t in range(3)]
    tx = gk.distributed_shampoo(1.0, b1=0.0, b2=1.0, eps=eps, max_dim=limit)
    got, state = replay(tx, [jnp.asarray(g) for g in rows])
    dims = tuple(d for d in shape if d != 1)
    whole = [g.reshape(dims) for g in rows]
    for corner in np.ndindex(*[-(-d // limit) for d in dims]):
        cut = tuple(slice(i * limit, (i + 1) * limit) for i in corner)
        L = [0.0 for _ in dims]
        for t, g in enumerate(whole):
            G = g[cut]
            p = G
            for i in range(len(dims)):
                S = contraction(G, i)
                L[i] = L[i] + (np.diag(np.diag(S)) if i in thin else S)
                P = power(L[i] + eps * np.eye(len(S)), -1 / (2 * len(dims)))
                p = np.moveaxis(np.tensordot(P, p, (1, i)), 0, i)
            assert_equal(np.asarray(got[t]).reshape(dims)[cut], -p, rtol=RTOL)
    words = sum(x.size for x in jax.tree.leaves(state[0].L)) / rows[0].size
    assert words <= 4
