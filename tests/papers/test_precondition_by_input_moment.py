"""TrAct as a link of the chain (Petersen, Borgelt, Ermon, 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal


def test_it_does_what_the_layer_does(x64: None) -> None:
    x, w = normal(0, 8, 3), {"first": {"kernel": normal(1, 3, 5)}, "head": {"kernel": normal(2, 5, 2)}}

    def loss(w: dict, layer: object) -> jax.Array:
        h = jnp.tanh(layer(x, w["first"]["kernel"]))  # pyright: ignore
        return jnp.mean((h @ w["head"]["kernel"]) ** 2)

    want = jax.grad(loss)(w, gk.layers.tract_linear)
    tx = gk.precondition_by_input_moment()
    g = jax.grad(loss)(w, jnp.matmul)
    moment = {"first": {"kernel": x.T @ x / 8}}
    got, _ = jax.jit(lambda g, m: tx.update(g, tx.init(w), w, input_moment=m))(g, moment)
    assert_equal(got, want, rtol=1e-10)
    chain = optax.chain(optax.masked(tx, {"first": True, "head": False}), gk.sgd(1.0, momentum=0.0))
    u, _ = chain.update(g, chain.init(w), w, input_moment=moment)
    assert_equal(u, jax.tree.map(jnp.negative, want), rtol=1e-10)


def test_a_convolution_and_layers_with_moments_of_their_own(x64: None) -> None:
    g = {"Conv_0": {"kernel": normal(0, 2, 2, 3, 4)}, "ScanBlock_0": {"kernel": normal(1, 2, 3, 4)}}
    A, B = normal(2, 20, 12), normal(3, 2, 9, 3)
    moment = {
        "Conv_0": {"kernel": A.T @ A / 20},
        "ScanBlock_0": {"kernel": jnp.einsum("lbi,lbj->lij", B, B) / 9},
    }
    tx = gk.precondition_by_input_moment(damping=0.2)
    u: Any = tx.update(g, tx.init(g), input_moment=moment)[0]
    flat = jnp.linalg.solve(A.T @ A / 20 + 0.2 * jnp.eye(12), g["Conv_0"]["kernel"].reshape(12, 4))
    assert_equal(u["Conv_0"]["kernel"].reshape(12, 4), flat, rtol=1e-10)
    for i in (0, 1):
        own = jnp.linalg.solve(B[i].T @ B[i] / 9 + 0.2 * jnp.eye(3), g["ScanBlock_0"]["kernel"][i])
        assert_equal(u["ScanBlock_0"]["kernel"][i], own, rtol=1e-10)

    # A stack that is declared, and kernels that lie the other way around.
    layout = gk.leaves.layout((gk.leaves.by_path("blocks"), {"stack": 1, "inputs": (2,), "outputs": (1,)}))
    turned = {"blocks": jnp.swapaxes(g["ScanBlock_0"]["kernel"], 1, 2)}
    declared = gk.precondition_by_input_moment(damping=0.2, layout=layout)
    v: Any = declared.update(turned, declared.init(g), input_moment={"blocks": moment["ScanBlock_0"]["kernel"]})[0]
    assert_equal(jnp.swapaxes(v["blocks"], 1, 2), u["ScanBlock_0"]["kernel"], rtol=1e-10)


def test_bad_input() -> None:
    tx, g = gk.precondition_by_input_moment(), {"kernel": jnp.ones((3, 2))}
    with pytest.raises(ValueError, match=r"precondition_by_input_moment needs .* input_moment"):
        tx.update(g, tx.init(g))
    with pytest.raises(ValueError, match=r"leaves that the gradients do not have: .'other'."):
        tx.update(g, tx.init(g), input_moment={"other": jnp.eye(3)})
    with pytest.raises(ValueError, match=r"must be \(n, n\) of its 3 inputs"):
        tx.update(g, tx.init(g), input_moment={"kernel": jnp.eye(2)})
    with pytest.raises(ValueError, match="damping must be in"):
        gk.precondition_by_input_moment(damping=0.0)
