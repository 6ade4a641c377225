"""A function of one's own, on matrices shared out over a mesh."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.linalg import orthogonalize
from gradkit.parallel import collective_bytes

SHAPES = {"a": (8, 16), "b": (16, 8), "c": (8, 16)}


def draw() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    tree: dict[str, Any] = {name: {"kernel": jnp.asarray(rng.standard_normal(s))} for name, s in SHAPES.items()}
    return {**tree, "norm": {"scale": jnp.asarray(rng.standard_normal(8))}}


def apply(tx: Any, tree: Any) -> Any:
    return tx.update(tree, tx.init(tree))[0]


def test_orthogonalised_updates_are_muons_without_momentum(x64: None) -> None:
    g = draw()
    matrices = {name: g[name] for name in SHAPES}
    muon = apply(gk.scale_by_muon(momentum=0.0, scale=None), matrices)
    got = apply(gk.shard_matrices(orthogonalize, transpose=True, pad=True), g)
    for name in SHAPES:
        np.testing.assert_array_equal(got[name]["kernel"], muon[name]["kernel"])
    np.testing.assert_array_equal(got["norm"]["scale"], g["norm"]["scale"])


def test_rows_are_inputs_unless_the_function_commutes_with_transposition(x64: None) -> None:
    """Cumulative sums along rows: of the transpose they are another thing."""
    g = draw()
    got = apply(gk.shard_matrices(lambda x: jnp.cumsum(x, axis=1)), g)
    for name in SHAPES:
        np.testing.assert_allclose(got[name]["kernel"], np.cumsum(g[name]["kernel"], axis=0), rtol=1e-15)


@pytest.mark.parametrize("spec, want", [(P(), ["all-gather"]), (P("x"), ["all-to-all"] * 4)])
def test_each_device_works_on_its_own_matrices(spec: P, want: list[str], x64: None) -> None:
    """Two shapes: two all-to-alls each; replicated ones come back in one all-gather. The numbers stay."""
    g = {name: leaf for name, leaf in draw().items() if name in SHAPES}
    function = lambda x: x @ jnp.swapaxes(x, 1, 2) @ x  # noqa: E731
    alone = apply(gk.shard_matrices(function), g)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    there = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec)), g)
    tx = gk.shard_matrices(function, shard=gk.MatrixSharding(mesh, "x", min_dim=0, specs=spec))
    program = jax.jit(lambda g: tx.update(g, tx.init(g))[0]).lower(there).compile()
    assert sorted(row.opcode for row in collective_bytes(program)) == want
    for a, b in zip(jax.tree.leaves(program(there)), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-12)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="function must be"):
        gk.shard_matrices(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="shard must be a MatrixSharding"):
        gk.shard_matrices(orthogonalize, shard=2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="function must return the shape it is given"):
        apply(gk.shard_matrices(lambda x: x[:, :1]), draw())
