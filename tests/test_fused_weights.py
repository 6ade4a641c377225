"""Layers in one leaf, fused queries, keys and values, and heads: the same as leaves of their own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.leaves import by_path, layout
from tests.by_numpy import by_numpy
from tests.papers.replay import normal

METHODS = {
    "muon": lambda **o: gk.scale_by_muon(**o),
    "shampoo": lambda **o: gk.scale_by_shampoo(b2=0.9, eps=0.01, **o),
    "distributed_shampoo": lambda **o: gk.distributed_shampoo(0.1, b2=0.9, eps=0.01, max_dim=4, **o),
    "soap": lambda **o: gk.scale_by_soap(update_interval=2, max_dim=4, **o),
    "conda": lambda **o: gk.scale_by_conda(update_interval=2, **o),
    "galore": lambda **o: gk.project_low_rank(rank=2, update_interval=2, **o),
    "fira": lambda **o: gk.fira(0.1, rank=2, update_interval=2, **o),
    "dion": lambda **o: gk.scale_by_dion(rank=2, key=0, **o),
    "kron": lambda **o: gk.scale_by_kron(update_probability=1.0, **o),
}
# (4, 2 + 4 + 3) fused; three heads of (4, 2); two layers of (4, 3 + 2); and (2, 2) inputs, of which one is a head's.
FUSED = {"qkv": (4, 9), "heads": (4, 3, 2), "layers": (2, 4, 5), "out": (2, 2, 6)}
LAYOUT = layout(
    (by_path("qkv/kernel"), {"splits": (2, 4, 3)}),
    (by_path("heads/kernel"), {"inputs": (0,), "outputs": (1, 2), "splits": (2, 2, 2)}),
    (by_path("layers/kernel"), {"stack": 1, "splits": (3, 2)}),
    (by_path("out/kernel"), {"inputs": (0, 1), "outputs": (2,), "splits": (4, 2)}),
)
APART = layout(
    (by_path("out[ab]/kernel"), {"inputs": (0, 1), "outputs": (2,)}),
    (by_path("(qkv|heads|layers).*/kernel"), {"stack": (), "inputs": (0,), "outputs": (1,), "splits": ()}),
)


def draw(t: int) -> dict[str, Any]:
    return {k: {"kernel": normal(10 * t + i, *s)} for i, (k, s) in enumerate(FUSED.items())}


def apart(tree: dict[str, Any]) -> dict[str, Any]:
    """The same weights as leaves of their own."""
    x = {name: own["kernel"] for name, own in tree.items()}
    flat = {f"qkv{i}": x["qkv"][:, a:b] for i, (a, b) in enumerate(((0, 2), (2, 6), (6, 9)))}
    flat |= {f"heads{i}": x["heads"][:, i] for i in range(3)}
    flat |= {f"layers{i}{j}": x["layers"][i, :, a:b] for i in range(2) for j, (a, b) in enumerate(((0, 3), (3, 5)))}
    flat |= {"outa": x["out"][..., :4], "outb": x["out"][..., 4:]}
    return {name: {"kernel": value} for name, value in flat.items()}


@pytest.mark.parametrize("name", METHODS)
def test_fused_weights_are_matrices_of_their_own(name: str, x64: None) -> None:
    fused, plain = METHODS[name](layout=LAYOUT), METHODS[name](layout=APART)

    x = draw(0)
    one, many = fused.init(x), plain.init(apart(x))
    update, single = by_numpy(fused.update), by_numpy(plain.update)
    for t in range(1, 4):
        g, v = draw(t), draw(50 + t)
        # Draws go by the place in the tree, which is another for leaves of their own.
        extra, own = ({"probe": v}, {"probe": apart(v)}) if name == "kron" else ({}, {})
        d, one = update(g, one, x, **extra)
        want, many = single(apart(g), many, apart(x), **own)
        got = apart(d)
        for leaf in want:
            a, b = np.asarray(got[leaf]["kernel"]), np.asarray(want[leaf]["kernel"])
            assert np.linalg.norm(a - b) <= 1e-9 * np.linalg.norm(b) + 1e-12, leaf


@pytest.mark.parametrize("name", ["soap", "conda"])
def test_fused_weights_on_a_mesh(name: str, x64: None) -> None:
    """Cut along their inputs, along layers, and whole."""
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))
    specs = {"qkv": P("x"), "heads": P(), "layers": P("x"), "out": P(None, "x")}
    lies = {k: {"kernel": NamedSharding(mesh, s)} for k, s in specs.items()}
    given = {k: {"kernel": s} for k, s in specs.items()}
    one = METHODS[name](layout=LAYOUT)
    many = METHODS[name](layout=LAYOUT, shard=gk.MatrixSharding(mesh, "x", min_dim=0, specs=given))
    x = jax.device_put(draw(0), lies)
    alone, shared = one.init(draw(0)), many.init(x)
    update, single = jax.jit(many.update), by_numpy(one.update)
    for t in range(1, 4):
        want, alone = single(draw(t), alone, draw(0))
        got, shared = update(jax.device_put(draw(t), lies), shared, x)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert np.linalg.norm(np.asarray(a) - np.asarray(b)) <= 1e-9 * np.linalg.norm(b) + 1e-12


@pytest.mark.parametrize("name", ["shampoo", "conda"])
def test_fused_along_a_cut_axis_is_refused(name: str) -> None:
    mesh = jax.make_mesh((3,), ("x",), devices=jax.devices()[:3])
    specs = {name: {"kernel": P(None, "x") if name == "qkv" else P()} for name in FUSED}
    tx = METHODS[name](layout=LAYOUT, shard=gk.MatrixSharding(mesh, "x", min_dim=0, specs=specs))
    with pytest.raises(ValueError, match="must not be sharded along their outputs; shard another axis"):
        tx.init({name: {"kernel": jnp.ones(shape)} for name, shape in FUSED.items()})
