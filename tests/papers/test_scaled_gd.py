"""ScaledGD(lambda) (Xu et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.parallel import collective_bytes
from tests.papers.replay import assert_equal, descend, normal, updates


def direction(g: jax.Array, f: jax.Array, damping: float) -> np.ndarray:
    F = np.asarray(f)
    return np.asarray(g) @ np.linalg.inv(F.T @ F + damping * np.eye(F.shape[1]))


def test_the_equations(x64: None) -> None:
    x: Any = {"u": normal(0, 6, 2), "v": normal(1, 5, 2), "bias": normal(2, 3)}
    g: Any = {"u": normal(3, 6, 2), "v": normal(4, 5, 2), "bias": normal(5, 3)}
    alone = updates(gk.scale_by_factor_gram(0.3), x, [g])[0]
    paired = updates(gk.scale_by_factor_gram(0.3, pairs=("u", "v")), x, [g])[0]
    for d, own in ((alone, True), (paired, False)):
        assert_equal(d["u"], direction(g["u"], x["u" if own else "v"], 0.3), rtol=1e-10)
        assert_equal(d["v"], direction(g["v"], x["v" if own else "u"], 0.3), rtol=1e-10)
        assert_equal(d["bias"], g["bias"])
    # As adapters lie, the second factor turned; and two layers in one leaf.
    turned = {"l/lora_a": jnp.stack([x["u"], 2 * x["u"]]), "l/lora_b": jnp.stack([x["v"].T, x["v"].T])}
    h = {"l/lora_a": jnp.stack([g["u"], g["u"]]), "l/lora_b": jnp.stack([g["v"].T, g["v"].T])}
    d = updates(gk.scale_by_factor_gram(0.3, pairs=("lora_a", "lora_b"), product="L R"), turned, [h])[0]
    assert_equal(d["l/lora_a"], jnp.stack([paired["u"], paired["u"]]))
    assert_equal(d["l/lora_b"][0], paired["v"].T)
    assert_equal(d["l/lora_b"][1], direction(g["v"], 2 * x["u"], 0.3).T, rtol=1e-10)


def test_another_basis_of_the_columns_is_the_same_run(x64: None) -> None:
    """lambda = 0: with L -> L Q, R -> R Q^-T and an invertible Q the trajectory of L R^T does not change; that of X X^T
    does not with X -> X Q and an orthogonal Q, also with damping."""
    Q = jnp.array([[2.0, 1.0], [0.0, 0.5]])
    M = normal(1, 6, 2) @ normal(2, 5, 2).T
    x = {"l": normal(3, 6, 2), "r": normal(4, 5, 2)}
    y = {"l": x["l"] @ Q, "r": x["r"] @ jnp.linalg.inv(Q).T}

    def gradient(x: Any) -> Any:
        e = x["l"] @ x["r"].T - M
        return {"l": e @ x["r"], "r": e.T @ x["l"]}

    tx = gk.scaled_gd(0.3, damping=0.0, pairs=("l", "r"))
    for a, b in zip(descend(tx, x, gradient, 5), descend(tx, y, gradient, 5), strict=True):
        assert_equal(a["l"] @ a["r"].T, b["l"] @ b["r"].T, rtol=1e-9, atol=1e-9)
    plain = [descend(gk.sgd(0.3), start, gradient, 2)[-1] for start in (x, y)]
    assert float(jnp.abs(plain[0]["l"] @ plain[0]["r"].T - plain[1]["l"] @ plain[1]["r"].T).max()) > 0.1

    turn = jnp.linalg.qr(Q)[0]
    symmetric = lambda x: (x @ x.T - M @ M.T) @ x  # noqa: E731
    tx = gk.scaled_gd(0.3, damping=0.1)
    for a, b in zip(descend(tx, x["l"], symmetric, 5), descend(tx, x["l"] @ turn, symmetric, 5), strict=True):
        assert_equal(a @ a.T, b @ b.T, rtol=1e-9, atol=1e-9)


def test_an_overparameterised_target_of_condition_100(x64: None) -> None:
    """n = 30, singular values 1, 0.1, 0.01, r = 10: after 30 steps the error is below 1e-4, and of plain descent, at
    the same rate, above 5e-2."""
    basis = jnp.linalg.qr(normal(0, 30, 3))[0]
    M = (basis * jnp.array([[1.0, 0.1, 0.01]])) @ basis.T
    start = 1e-3 * normal(1, 30, 10)

    def error(tx: optax.GradientTransformation) -> float:
        def step(carry: Any, _: None) -> Any:
            x, state = carry
            u, state = tx.update((x @ x.T - M) @ x, state, x)
            return (optax.apply_updates(x, u), state), None

        (x, _), _ = jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), None, 30))(start)
        return float(jnp.linalg.norm(x @ x.T - M) / jnp.linalg.norm(M))

    assert error(gk.scaled_gd(0.3, damping=1e-3)) < 1e-4
    assert error(gk.sgd(0.3)) > 5e-2


def test_the_gram_matrix_alone_travels() -> None:
    """Rows of X on four devices: r x r numbers are added up, over Auto and Explicit axes, and the result lies as X."""
    x, g = normal(0, 8, 3), normal(1, 8, 3)
    tx = gk.scale_by_factor_gram(0.3)
    want = tx.update(g, tx.init(x), x)[0]
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(kind,), devices=jax.devices()[:4])
        lies = NamedSharding(mesh, P("fsdp"))
        there = [jax.device_put(a, lies) for a in (g, x)]
        with jax.set_mesh(mesh):
            program = jax.jit(lambda g, x: tx.update(g, optax.EmptyState(), x)[0], out_shardings=lies)
            compiled = program.lower(*there).compile()
            got = compiled(*there)
        (row,) = collective_bytes(compiled)
        assert (row.opcode, row.result_bytes) == ("all-reduce", 4 * 3 * 3)
        # Two solves with a matrix of condition 40, in float32.
        np.testing.assert_allclose(np.asarray(got), np.asarray(want), atol=40 * 1e-6)


def test_bad_input() -> None:
    wide, tall = jnp.ones((2, 3)), jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"'w', 2 x 3, is singular with damping=0; give damping > 0"):
        gk.scaled_gd(damping=0.0).init({"w": wide})
    gk.scaled_gd(damping=0.1).init({"w": wide})
    tx = gk.scale_by_factor_gram(0.1)
    with pytest.raises(ValueError, match="needs params"):
        tx.update(tall, tx.init(tall))
    paired = gk.scale_by_factor_gram(0.1, pairs=("u", "v"))
    with pytest.raises(ValueError, match="'a/u' has no partner 'a/v'"):
        paired.init({"a": {"u": tall}, "v": tall})
    with pytest.raises(ValueError, match=r"'u' \(3, 2\) and 'v' \(2, 3\) have no common rank"):
        paired.init({"u": tall, "v": wide})
    with pytest.raises(ValueError, match="factors are called 'u', and no leaf is"):
        paired.init({"w": tall})
    with pytest.raises(ValueError, match="pairs must be two different names"):
        gk.scale_by_factor_gram(0.1, pairs=("u", "u"))
    with pytest.raises(ValueError, match=r"leaves that are not there: .'z'."):
        gk.scale_by_factor_gram(0.1, pairs=lambda known: [("w", "z")]).init({"w": tall})
