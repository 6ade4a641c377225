"""Newton-Muon (Du, Su, 2026): Muon on gradients that are whitened by the second moment of the inputs."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.leaves import by_path, layout
from tests.papers.replay import assert_equal, normal


def run(tx: Any, gradients: list[Any], moments: list[Any], x: Any = None) -> list[Any]:
    state, out = tx.init(gradients[0]), []
    for g, A in zip(gradients, moments, strict=True):
        d, state = tx.update(g, state, g if x is None else x, input_moment=A)
        out.append(d)
    return out


def moment(seed: int, n: int, tokens: int = 30) -> jax.Array:
    x = normal(seed, tokens, n)
    return x.T @ x / tokens


def muon(gradients: list[Any]) -> list[Any]:
    """Muon with a sum, whose direction is that of gk's mean, and the factor sqrt(max(inputs, outputs))."""
    tx = gk.scale_by_muon(scale="match_rms_adamw", method="svd", eps=0.0)
    state, out = tx.init(gradients[0]), []
    for g in gradients:
        d, state = tx.update(g, state)
        out.append(5 * d)
    return out


EXACT: dict[str, Any] = {"method": "svd", "eps": 0.0}


def test_isotropic_inputs_are_muon(x64: None) -> None:
    gradients = [normal(i, 6, 4) for i in range(4)]
    got = run(gk.scale_by_newton_muon(update_interval=2, **EXACT), gradients, [3.0 * jnp.eye(6)] * 4)
    # From one inverse to the next K has another size, which changes the weights of old gradients in the momentum.
    assert_equal(got[0], muon(gradients)[0], rtol=1e-9)
    first = run(gk.scale_by_newton_muon(update_interval=1, momentum=0.0, **EXACT), gradients, [3.0 * jnp.eye(6)] * 4)
    one = [muon([g])[0] for g in gradients]
    assert_equal(first, one, rtol=1e-9)


def test_an_infinite_ridge_is_muon(x64: None) -> None:
    gradients = [normal(i, 6, 4) for i in range(3)]
    tx = gk.scale_by_newton_muon(update_interval=1, momentum=0.0, ridge=1e9, **EXACT)
    assert_equal(run(tx, gradients, [moment(i, 6) for i in range(3)]), [muon([g])[0] for g in gradients], rtol=1e-6)


def test_turned_inputs_give_the_turned_step(x64: None) -> None:
    """x -> R x turns the kernel and its gradient; with another basis of the inputs nothing else changes."""
    R, _ = np.linalg.qr(np.asarray(normal(9, 6, 6)))
    R = jnp.asarray(R)
    gradients, moments = [normal(i, 6, 4) for i in range(4)], [moment(10 + i, 6) for i in range(4)]
    tx = gk.scale_by_newton_muon(update_interval=2, **EXACT)
    turned = run(tx, [R @ g for g in gradients], [R @ A @ R.T for A in moments])
    assert_equal(turned, [R @ d for d in run(tx, gradients, moments)], rtol=1e-9)


def test_the_inverse_is_that_of_the_mean_with_a_ridge(x64: None) -> None:
    """Until the first refresh it is the identity; then K begins at initial_moment."""
    gradients, moments = [normal(i, 6, 4) for i in range(4)], [moment(10 + i, 6) for i in range(4)]
    tx = gk.scale_by_newton_muon(
        update_interval=2, momentum=0.0, moment_decay=0.8, initial_moment=0.1, ridge=0.3, ridge_eps=0.01, **EXACT
    )
    K, P = 0.1 * np.eye(6), np.eye(6)
    for t, (g, A, got) in enumerate(zip(gradients, moments, run(tx, gradients, moments), strict=True), 1):
        if t % 2 == 0:
            K = 0.8 * K + 0.2 * np.asarray(A)
            P = np.linalg.inv(K + (0.3 * np.trace(K) / 6 + 0.01) * np.eye(6))
        U, _, Vt = np.linalg.svd(P @ np.asarray(g), full_matrices=False)
        assert_equal(got, math.sqrt(6) * U @ Vt, rtol=1e-8)


def test_blocks_layers_and_fused_weights(x64: None) -> None:
    """Of a block diagonal moment the blocks count alone; layers have their own moments or share one; q, k, v share."""
    g, A = normal(0, 6, 4), moment(1, 6)
    diagonal = jax.scipy.linalg.block_diag(A[:3, :3], A[3:, 3:])
    own = {"update_interval": 1, "ridge": 0.0, **EXACT}
    halves = run(gk.scale_by_newton_muon(blocks=2, initial_moment=0.0, **own), [g], [A])
    assert_equal(halves, run(gk.scale_by_newton_muon(initial_moment=0.0, **own), [g], [diagonal]), rtol=1e-8)
    by_name = gk.scale_by_newton_muon(blocks={"down/.*": 2}, **own)
    tree = {"down": {"kernel": g}, "up": {"kernel": g}}
    got = run(by_name, [tree], [{"down": {"kernel": A}, "up": {"kernel": A}}])[0]
    assert_equal(got["up"]["kernel"], run(gk.scale_by_newton_muon(**own), [g], [A])[0], rtol=1e-9)

    stack, moments = normal(2, 2, 6, 4), jnp.stack([moment(3, 6), moment(4, 6)])
    layers = {"ScanBlock_0": {"kernel": stack}}
    got = run(gk.scale_by_newton_muon(**own), [layers], [{"ScanBlock_0": {"kernel": moments}}])[0]
    for i in range(2):
        alone = run(gk.scale_by_newton_muon(**own), [stack[i]], [moments[i]])[0]
        assert_equal(got["ScanBlock_0"]["kernel"][i], alone, rtol=1e-9)
    fused = layout((by_path("qkv"), {"splits": (2, 2)}))
    got = run(gk.scale_by_newton_muon(layout=fused, **own), [{"qkv": g}], [{"qkv": A}])[0]["qkv"]
    parts = [run(gk.scale_by_newton_muon(**own), [part], [A])[0] for part in (g[:, :2], g[:, 2:])]
    assert_equal(got, jnp.concatenate(parts, axis=1), rtol=1e-9)


def test_moments_may_be_none_between_refreshes(x64: None) -> None:
    """Read where an inverse is due alone; a kernel without one stays Muon's."""
    gradients, A = [normal(i, 6, 4) for i in range(4)], moment(5, 6)
    tx = gk.scale_by_newton_muon(update_interval=2, **EXACT)
    want = run(tx, gradients, [A] * 4)
    assert_equal(run(tx, gradients, [None, A, None, A]), want)
    assert_equal(run(tx, gradients, [jnp.full((6, 6), jnp.nan), A, 7 * A, A]), want)
    plain = run(gk.scale_by_newton_muon(**EXACT), gradients, [None] * 4)
    assert_equal(plain, muon(gradients), rtol=1e-9)


def test_long_inputs_are_muons(x64: None) -> None:
    """Above max_dim there is no moment, given or not: its square would be the whole memory."""
    gradients = [normal(i, 6, 4) for i in range(2)]
    tx = gk.scale_by_newton_muon(update_interval=1, max_dim=5, **EXACT)
    assert_equal(run(tx, gradients, [moment(9, 6)] * 2), muon(gradients), rtol=1e-9)
    state = jax.eval_shape(tx.init, {"kernel": jax.ShapeDtypeStruct((1_000_000, 2), jnp.float32)})
    assert sum(x.size for x in jax.tree.leaves(state)) < 2_000_100


def test_an_inverse_that_does_not_exist_is_the_identity_and_counted() -> None:
    g = {"kernel": jnp.ones((3, 2))}
    tx = gk.scale_by_newton_muon(update_interval=1, initial_moment=0.0)
    d, state = tx.update(g, tx.init(g), input_moment={"kernel": -jnp.eye(3)})
    assert (
        all(np.isfinite(x).all() for x in jax.tree.leaves(d)) and gk.diagnostics.metrics(state)["failed_inverses"] == 1
    )


def test_what_is_refused() -> None:
    g = {"kernel": jnp.ones((6, 4))}
    tx = gk.scale_by_newton_muon()
    with pytest.raises(ValueError, match="needs the extra argument input_moment"):
        tx.update(g, tx.init(g))
    with pytest.raises(
        ValueError, match=r"input_moment of 'kernel' must be \(n, n\) of its 6 inputs, got shape \(4, 4\)"
    ):
        tx.update(g, tx.init(g), input_moment={"kernel": jnp.eye(4)})
    with pytest.raises(ValueError, match=r"input_moment is of leaves that are not there: \['kernal'\]"):
        tx.update(g, tx.init(g), input_moment={"kernal": jnp.eye(6)})
    with pytest.raises(ValueError, match="blocks of 'kernel' must divide its 6 inputs, got 4"):
        gk.scale_by_newton_muon(blocks=4).init(g)


def test_of_a_whole_model_only_matrices_have_moments(x64: None) -> None:
    x = {"kernel": normal(0, 6, 4), "bias": normal(1, 4)}
    tx = gk.newton_muon(0.01)
    u, _ = tx.update(x, tx.init(x), x, input_moment={"kernel": jnp.eye(6), "bias": None})
    want, _ = gk.adamw(0.01, b2=0.95, eps=1e-10, weight_decay=0.0).update(
        x["bias"], gk.adamw(0.01, b2=0.95, eps=1e-10, weight_decay=0.0).init(x["bias"]), x["bias"]
    )
    assert_equal(u["bias"], want)
    assert np.linalg.norm(u["kernel"]) > 0.01
