"""Sculpting subspaces (Nayak et al., 2025)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.diagnostics import layer_importance, retained_rank
from gradkit.linalg import svd_subspace
from tests.papers.replay import assert_equal, normal, updates

K = 2


def test_updates_avoid_the_subspace_and_projecting_twice_is_once(x64: None) -> None:
    w, g = {"kernel": normal(0, 6, 4), "bias": normal(1, 4)}, {"kernel": normal(2, 6, 4), "bias": normal(3, 4)}
    U, V = svd_subspace(w["kernel"], K)
    tx = gk.project_out_subspace({"kernel": (U, V)})
    d = updates(tx, w, [g])[0]
    np.testing.assert_allclose(U.T @ d["kernel"], 0, atol=1e-12)
    np.testing.assert_allclose(d["kernel"] @ V.T, 0, atol=1e-12)
    assert_equal(updates(tx, w, [d])[0], d, rtol=1e-10)
    assert_equal(d["bias"], g["bias"])
    eye = jnp.eye
    assert_equal(d["kernel"], (eye(6) - U @ U.T) @ g["kernel"] @ (eye(4) - V.T @ V), rtol=1e-10)
    for side, want in (("left", (eye(6) - U @ U.T) @ g["kernel"]), ("right", g["kernel"] @ (eye(4) - V.T @ V))):
        assert_equal(
            updates(gk.project_out_subspace({"kernel": (U, V)}, side=side), w, [g])[0]["kernel"], want, rtol=1e-10
        )
    alone = updates(gk.project_out_subspace({"kernel": (None, V)}), w, [g])[0]["kernel"]
    assert_equal(alone, g["kernel"] @ (eye(4) - V.T @ V), rtol=1e-10)


def test_the_large_singular_triples_stay(x64: None) -> None:
    """After training with Adam, when the projection is the last link; in front of Adam it is not enough."""
    w = normal(0, 6, 4)
    U, V = svd_subspace(w, K)
    S = np.linalg.svd(np.asarray(w), compute_uv=False)[:K]
    gradients = [normal(i, 6, 4) for i in range(1, 6)]
    project = gk.project_out_subspace((U, V))

    def trained(*links: Any) -> jax.Array:
        return w + sum(updates(optax.chain(*links, gk.scale_by_learning_rate(0.01)), w, gradients))

    after = trained(gk.scale_by_adam(), project)
    np.testing.assert_allclose(after @ V.T, U * S[None], atol=1e-12)
    np.testing.assert_allclose(U.T @ after, S[:, None] * V, atol=1e-12)
    assert float(jnp.abs(trained(project, gk.scale_by_adam()) @ V.T - U * S[None]).max()) > 1e-3


def test_factors_of_the_rest(x64: None) -> None:
    """U_low by columns, V_low by rows: what they add is orthogonal to what is frozen, to first order."""
    w = normal(0, 6, 4)
    U, S, Vt = jnp.linalg.svd(w, full_matrices=False)
    low = {"U_low": U[:, K:], "S_low": S[K:], "V_low": Vt[K:]}
    g = {"U_low": normal(1, 6, 2), "S_low": normal(2, 2), "V_low": normal(3, 2, 4)}
    bases = svd_subspace(w, K)
    d = updates(gk.project_out_subspace({"layer": bases}, side="factored"), {"layer": low}, [{"layer": g}])[0]["layer"]
    assert_equal(d["U_low"], g["U_low"] - U[:, :K] @ (U[:, :K].T @ g["U_low"]), rtol=1e-10, atol=1e-13)
    assert_equal(d["V_low"], g["V_low"] - (g["V_low"] @ Vt[:K].T) @ Vt[:K], rtol=1e-10, atol=1e-13)
    assert_equal(d["S_low"], g["S_low"])


def test_stacks_convolutions_and_layouts(x64: None) -> None:
    stack, conv = normal(0, 3, 6, 4), normal(1, 2, 2, 3, 5)
    tree = {"ScanBlock_0": {"kernel": stack}, "Conv_0": {"kernel": conv}, "turned": normal(2, 4, 6)}
    turned = gk.leaves.layout((gk.leaves.by_path("turned"), {"inputs": (1,), "outputs": (0,)}))
    bases = {
        "ScanBlock_0": {"kernel": svd_subspace(stack, K)},
        "Conv_0": {"kernel": svd_subspace(conv.reshape(12, 5), K)},
        "turned": svd_subspace(tree["turned"].T, K),
    }
    g = jax.tree.map(lambda x: x[::-1] + 1, tree)
    d = updates(gk.project_out_subspace(bases, layout=turned), tree, [g])[0]
    one = lambda w, g: updates(gk.project_out_subspace(svd_subspace(w, K)), w, [g])[0]  # noqa: E731
    for i in range(3):
        assert_equal(d["ScanBlock_0"]["kernel"][i], one(stack[i], g["ScanBlock_0"]["kernel"][i]), rtol=1e-9, atol=1e-12)
    flat = one(conv.reshape(12, 5), g["Conv_0"]["kernel"].reshape(12, 5))
    assert_equal(d["Conv_0"]["kernel"].reshape(12, 5), flat, rtol=1e-9, atol=1e-12)
    assert_equal(d["turned"], one(tree["turned"].T, g["turned"].T).T, rtol=1e-9, atol=1e-12)


def test_the_next_task_and_the_state(x64: None) -> None:
    """The state holds (n + m) k words; other bases in it are another task."""
    w, g = normal(0, 6, 4), normal(1, 6, 4)
    first, second = svd_subspace(w, K), svd_subspace(normal(2, 6, 4), K)
    tx = gk.project_out_subspace(first)
    state = tx.init(w)
    assert sum(x.size for x in jax.tree.leaves(state)) == (6 + 4) * K
    got, _ = tx.update(g, state._replace(bases=second))
    assert_equal(got, updates(gk.project_out_subspace(second), w, [g])[0])


def test_on_a_mesh() -> None:
    w, g = normal(0, 8, 4), normal(1, 8, 4)
    tx = gk.project_out_subspace({"w": svd_subspace(w, K)})
    want = tx.update({"w": g}, tx.init({"w": w}))[0]["w"]
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(kind,) * 2, devices=jax.devices()[:4])
        lies = NamedSharding(mesh, P("fsdp", "tensor"))
        there = {"w": jax.device_put(g, lies)}
        with jax.set_mesh(mesh):
            got, _ = jax.jit(tx.update)(there, tx.init(there))
        assert got["w"].sharding.is_equivalent_to(lies, 2) or kind == AxisType.Auto
        np.testing.assert_allclose(np.asarray(got["w"]), np.asarray(want), atol=1e-5)


def test_svd_subspace_has_signs_of_its_own(x64: None) -> None:
    w = normal(0, 3, 5, 4)
    U, V = svd_subspace(w, 3)
    assert U.shape == (3, 5, 3) and V.shape == (3, 3, 4)
    largest = np.take_along_axis(np.asarray(U), np.abs(np.asarray(U)).argmax(1)[:, None], 1)
    assert (largest > 0).all()
    S = np.linalg.svd(np.asarray(w), compute_uv=False)[:, :3]
    np.testing.assert_allclose(jnp.swapaxes(U, 1, 2) @ w, S[:, :, None] * V, atol=1e-12)
    # Rank-deficient, badly scaled and zero matrices: orthonormal all the same.
    for bad in (jnp.zeros((4, 4)), jnp.ones((4, 4)), jnp.diag(jnp.array([1.0, 1e-6, 1e-12, 0.0]))):
        U, V = svd_subspace(bad, 3)
        np.testing.assert_allclose(U.T @ U, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(V @ V.T, np.eye(3), atol=1e-12)
    assert svd_subspace(w.astype(jnp.bfloat16), 1).left.dtype == jnp.float32


def test_importance_and_ranks(x64: None) -> None:
    x = normal(0, 5, 8, 3)
    y = x + 0.5 * normal(1, 5, 8, 3)
    raw = [
        np.mean([u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(p, q, strict=True)])
        for p, q in zip(np.asarray(x), np.asarray(y), strict=True)
    ]
    stacked = layer_importance(x, y)
    assert_equal(stacked, np.array(raw) / np.mean(raw), rtol=1e-10)
    as_tree = layer_importance(dict(enumerate(x)), dict(enumerate(y)))
    assert_equal(jnp.stack(list(as_tree.values())), stacked)
    assert_equal(layer_importance(x, y, normalize=False), np.array(raw), rtol=1e-10)
    assert retained_rank(1.0, 64).item() == 51  # 0.8 of 64 is 51.2
    assert retained_rank({"a": 0.0, "b": 9.0}, 10) == {"a": 1, "b": 10}
    assert jax.jit(lambda x: retained_rank(x, 10))(jnp.float32(0.5)) == 4  # 0.45 of 10
    with pytest.raises(ValueError, match="target_ratio must be at least min_ratio"):
        retained_rank(1.0, 64, min_ratio=0.5, target_ratio=0.4)
    with pytest.raises(ValueError, match="inputs and outputs must be"):
        layer_importance(x, y[..., :2])


def test_bad_input() -> None:
    w = jnp.ones((4, 3))
    with pytest.raises(ValueError, match="k must be at most 3, the short side of w"):
        svd_subspace(w, 4)
    pair = svd_subspace(w, 1)
    with pytest.raises(ValueError, match=r"leaves that the parameters do not have: \['v'\]"):
        gk.project_out_subspace({"v": pair}).init({"w": w})
    with pytest.raises(ValueError, match=r"the left basis of 'w', 1 x 3 x 4, has shape \(4, 1\)"):
        gk.project_out_subspace({"w": pair}).init({"w": w.T})
    with pytest.raises(ValueError, match="must be float32, in which the leaf is computed, got bfloat16"):
        gk.project_out_subspace({"w": jax.tree.map(lambda b: b.astype(jnp.bfloat16), pair)}).init({"w": w})
    with pytest.raises(ValueError, match=r"must have a pair \(U_h, V_h\)"):
        gk.project_out_subspace({"w": w})
    with pytest.warns(UserWarning, match="the right basis of 'w' has full rank"):
        gk.project_out_subspace({"w": svd_subspace(w, 3)}).init({"w": w})
