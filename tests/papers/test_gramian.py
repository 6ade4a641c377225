"""Inner products and combinations of stacked gradients, and what every aggregator refuses."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gradkit.aggregation import combine, gramian, upgrad


def tree(seed: int = 0, dtype=np.float32) -> dict:
    rng = np.random.default_rng(seed)
    shapes = {"matrix": (3, 2, 5), "scalar": (3,), "vector": (3, 4)}
    drawn = {name: jnp.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}
    return {**drawn, "none": None, "empty": jnp.zeros((3, 0), dtype)}


def flat(stacked: dict) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).reshape(3, -1) for x in jax.tree.leaves(stacked)], axis=1)


def test_against_the_flat_matrix() -> None:
    stacked = tree()
    J, w = flat(stacked), np.array([0.5, -1.0, 2.0])
    G = gramian(stacked)
    # 15 products, each rounded to float32 and summed in any order.
    np.testing.assert_allclose(G, J @ J.T, atol=15 * 2.0**-24 * np.abs(J @ J.T).max())
    out = combine(stacked, jnp.asarray(w, jnp.float32))
    assert out["none"] is None and out["scalar"].shape == () and out["matrix"].shape == (2, 5)
    got = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(out)])
    np.testing.assert_allclose(got, w @ J, atol=4 * 2.0**-24 * np.abs(J).max() * 3.5)


def test_precision_is_that_of_float32_or_wider(x64: None) -> None:
    """bfloat16 products are summed in float32: 256 + 1 is not 256."""
    stacked = {"w": jnp.concatenate([jnp.full((1, 1), 16.0), jnp.ones((1, 1))], 1).astype(jnp.bfloat16)}
    assert gramian(stacked).dtype == jnp.float32 and float(gramian(stacked)[0, 0]) == 257.0
    assert combine(stacked, jnp.ones(1, jnp.float32))["w"].dtype == jnp.bfloat16
    mixed = {"a": jnp.ones((2, 3), jnp.float64), "b": jnp.ones((2, 3), jnp.float32)}
    assert gramian(mixed).dtype == jnp.float64
    out = combine(mixed, jnp.ones(2))
    assert out["a"].dtype == jnp.float64 and out["b"].dtype == jnp.float32


def test_complex_leaves_have_real_inner_products() -> None:
    x = jnp.array([[1 + 2j, 3j], [2 - 1j, 1.0]], jnp.complex64)
    G = gramian(x)
    assert G.dtype == jnp.float32
    np.testing.assert_allclose(G, np.real(np.asarray(x) @ np.asarray(x).conj().T), rtol=2.0**-22)
    np.testing.assert_allclose(combine(x, jnp.array([1.0, -1.0])), x[0] - x[1], rtol=2.0**-22)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_gradients_send_their_inner_products_only(kind: AxisType) -> None:
    """m^2 numbers per leaf at most, whatever its size and whichever axis is sharded; the result stays sharded."""
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(kind,), devices=jax.devices()[:4])
    specs = {"a": P(None, "fsdp", None), "b": P(None, None, "fsdp"), "c": P(None, "fsdp")}
    shapes = {"a": (3, 64, 8), "b": (3, 8, 64), "c": (3, 64)}
    sharding = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    stacked = {name: jax.ShapeDtypeStruct(shapes[name], jnp.float32, sharding=sharding[name]) for name in shapes}
    tx = upgrad()
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda g: tx.update(g, tx.init({}))[0]).lower(stacked).compile()
    text = compiled.as_text() or ""
    assert " all-reduce(" in text
    for line in text.splitlines():
        assert not any(f" {name}(" in line for name in ("all-gather", "all-to-all", "collective-permute")), line
        if " all-reduce(" in line:
            assert set(re.findall(r"f32\[[0-9,]*\]", line.split(" all-reduce(")[0])) == {"f32[3,3]"}, line
    for name, got in compiled.output_shardings.items():
        assert got.is_equivalent_to(NamedSharding(mesh, P(*specs[name][1:])), len(shapes[name]) - 1)


@pytest.mark.parametrize(
    ("stacked", "params", "message"),
    [
        ({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))}, None, "same leading axis.*'a': 2, 'b': 3"),
        ({"a": jnp.ones((2, 3)), "b": jnp.ones(())}, None, "'b': 'no axis'"),
        ({"a": jnp.ones((0, 3))}, None, "length 0"),
        ({"a": jnp.ones((2, 3))}, {"a": jnp.ones(4)}, r"the gradient of 'a' has shape \(3,\), the parameter \(4,\)"),
        ({"a": jnp.ones((2, 3))}, {"b": jnp.ones(3)}, r"missing \['b'\], unknown \['a'\]"),
        ({"a": jnp.ones((2, 3))}, {}, r"unknown \['a'\]"),
        ({"a": jnp.ones((2, 3), jnp.int32)}, {"a": jnp.ones(3)}, "only floating point"),
    ],
)
def test_aggregators_refuse(stacked: dict, params: dict | None, message: str) -> None:
    tx = upgrad()
    with pytest.raises(ValueError, match=message):
        tx.update(stacked, tx.init({}), params)


def test_an_empty_tree_is_left_alone() -> None:
    tx = upgrad()
    assert tx.update({}, tx.init({}), {})[0] == {}
    with pytest.raises(ValueError, match="same leading axis"):
        gramian({})
    with pytest.raises(ValueError, match=r"weights must have shape \(2,\)"):
        combine(jnp.ones((2, 3)), jnp.ones(3))
