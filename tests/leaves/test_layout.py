"""Roles, axes, and the matrix view with its inverse."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from hypothesis import given
from hypothesis import strategies as st

import gradkit as gk
from gradkit.leaves import (
    Axes,
    by_path,
    default_layout,
    from_matrices,
    layout,
    names,
    tensor_axes,
    to_matrices,
    unit_axes,
)
from tests.by_numpy import by_numpy


class Block(linen.Module):
    """A layer with everything in it."""

    @linen.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        y = linen.LayerNorm()(x)
        x = x + linen.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)(y)
        return x + linen.Dense(8)(linen.Dense(16)(x)), None


class Net(linen.Module):
    @linen.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = linen.Embed(11, 8)(tokens)
        scan = linen.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = scan()(x, None)
        return linen.Dense(11, name="lm_head")(x)


def test_a_real_flax_model() -> None:
    """The default layout on what linen actually names, scanned layers included."""
    params = jax.eval_shape(Net().init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    found = {
        name: default_layout(name, x.shape) for name, x in zip(names(params), jax.tree.leaves(params), strict=True)
    }
    block = "ScanBlock_0/MultiHeadDotProductAttention_0"
    assert found["Embed_0/embedding"] == Axes("embedding", (), (0,), (1,))
    assert found["lm_head/kernel"] == Axes("head", (), (0,), (1,))
    assert found["ScanBlock_0/Dense_0/kernel"] == Axes("matrix", (0,), (1,), (2,))
    assert found["ScanBlock_0/Dense_0/bias"] == Axes("vector", (0,), (), (1,))
    assert found[f"{block}/query/kernel"] == Axes("matrix", (0,), (1,), (2, 3))
    assert found[f"{block}/out/kernel"] == Axes("matrix", (0,), (1, 2), (3,))
    assert found["ScanBlock_0/LayerNorm_0/scale"] == Axes("vector", (0,), (), (1,))


@pytest.mark.parametrize(
    ("name", "shape", "want"),
    [
        ("Conv_0/kernel", (5, 3, 8), Axes("conv", (), (0, 1), (2,))),
        ("down/kernel", (3, 3, 3, 8), Axes("conv", (), (0, 1, 2), (3,))),
        ("experts/kernel", (4, 6, 8), Axes("expert", (0,), (1,), (2,))),
        ("gate/kernel", (4, 6, 8), Axes("matrix", (), (0,), (1, 2))),
        ("VmapExpert_0/Dense_0/kernel", (4, 6, 8), Axes("expert", (0,), (1,), (2,))),
        ("ScanOuter_0/ScanInner_0/kernel", (2, 3, 6, 8), Axes("matrix", (0, 1), (2,), (3,))),
        ("layers/0/kernel", (6, 8), Axes("matrix", (), (0,), (1,))),
        ("scale", (), Axes("scalar")),
        ("ScanBlock_0/scale", (3,), Axes("scalar", (0,))),
    ],
)
def test_default_layout(name: str, shape: tuple, want: Axes) -> None:
    assert default_layout(name, shape) == want


def test_overrides() -> None:
    mine = layout(
        (by_path("blocks/.*qkv"), {"stack": 1, "splits": (8, 8, 8)}),
        (by_path("blocks/.*"), {"stack": 1}),
        (by_path("experts/.*"), {"stack": 1, "role": "expert"}),
        (by_path("transposed"), {"inputs": (1,), "outputs": (0,)}),
    )
    assert mine("blocks/qkv", (2, 8, 24)) == Axes("matrix", (0,), (1,), (2,), (8, 8, 8))
    assert mine("blocks/bias", (2, 8)) == Axes("vector", (0,), (), (1,))
    assert mine("experts/up", (4, 6, 8)) == Axes("expert", (0,), (1,), (2,))
    assert mine("transposed", (6, 8)) == Axes("matrix", (), (1,), (0,))
    assert mine("elsewhere", (6, 8)) == default_layout("elsewhere", (6, 8))


def test_overrides_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="did you mean 'stack'"):
        layout((by_path(".*"), {"stak": 1}))
    with pytest.raises(ValueError, match="role must be one of"):
        layout((by_path(".*"), {"role": "bias"}))
    with pytest.raises(ValueError, match="every axis has one meaning"):
        layout((by_path(".*"), {"inputs": (0,), "outputs": (0,)}))("w", (2, 3))
    with pytest.raises(ValueError, match="every axis has one meaning"):
        layout((by_path(".*"), {"inputs": (0,), "outputs": (2,)}))("w", (2, 3))
    with pytest.raises(ValueError, match="must add up to its 24 outputs"):
        layout((by_path(".*"), {"splits": (8, 8)}))("w", (8, 24))


def test_a_number_of_stack_axes_and_stack_axes() -> None:
    """An integer counts leading axes; a tuple names axes, at any position; what is left is a member of the stack."""

    def read(changes: Any, path: str, shape: tuple[int, ...], default: Any = None) -> Axes:
        return layout((by_path(".*"), changes), default=default)(path, shape)

    for count in (1, np.int32(1), (0,), [0], np.array([0])):
        assert read({"stack": count}, "up/kernel", (3, 6, 8)) == Axes("matrix", (0,), (1,), (2,))
    assert read({"stack": 2}, "up/kernel", (3, 2, 6, 8)) == Axes("matrix", (0, 1), (2,), (3,))
    assert read({"stack": (1,)}, "up/kernel", (6, 3, 8)) == Axes("matrix", (1,), (0,), (2,))
    assert read({"stack": (0, 3)}, "query/kernel", (3, 6, 2, 5, 4)) == Axes("matrix", (0, 3), (1,), (2, 4))
    assert read({"stack": (1,)}, "bias", (8, 3)) == Axes("vector", (1,), (), (0,))
    assert read({"stack": 1}, "gain", (3,)) == Axes("scalar", (0,))
    # What names say of stacks takes no second axis; a stack in a stack stays one, unless its axis is declared.
    assert read({"stack": 1}, "ScanBlock_0/up/kernel", (3, 6, 8)) == Axes("matrix", (0,), (1,), (2,))
    assert read({"stack": (1,)}, "ScanBlock_0/up/kernel", (6, 3, 8)) == Axes("matrix", (1,), (0,), (2,))
    assert read({"stack": 1}, "ScanOuter_0/ScanInner_0/kernel", (2, 3, 6, 8)) == Axes("matrix", (0, 1), (2,), (3,))
    assert read({"stack": 1}, "layers/experts/kernel", (5, 3, 6, 8)) == Axes("expert", (0, 1), (2,), (3,))
    three = {"stack": 1, "inputs": (1, 2), "outputs": (3,), "role": "matrix"}
    assert read(three, "layers/experts/kernel", (5, 3, 6, 8)) == Axes("matrix", (0,), (1, 2), (3,))
    for none in (0, ()):
        assert read({"stack": none}, "ScanBlock_0/gate/kernel", (3, 6, 8)) == Axes("matrix", (), (0,), (1, 2))
        assert read({"stack": none}, "experts/kernel", (3, 6, 8)).stack == ()
        assert read({"stack": none}, "w", (3, 6, 8), layout((by_path("w"), {"stack": 1}))).stack == ()
    transposed = layout((by_path("w"), {"inputs": (1,), "outputs": (0,)}))
    assert read({"stack": (1,)}, "w", (8, 3, 6), transposed) == Axes("matrix", (1,), (2,), (0,))


@pytest.mark.parametrize("wrong", [True, -1, 1.0, "1", (0, -1), (True,), None, {0}])
def test_a_stack_that_is_neither_a_number_of_axes_nor_axes(wrong: Any) -> None:
    with pytest.raises(
        ValueError, match=r"stack must be the number of leading stack axes or a tuple .*; write .*\(1,\)"
    ):
        layout((by_path(".*"), {"stack": wrong}))


def test_more_stack_axes_than_axes() -> None:
    for stack, shape in ((1, ()), (3, (2, 3)), ((2,), (2, 3))):
        with pytest.raises(ValueError, match=r"'w' of shape .* has no axis . that can be a stack\..*fewer stack axes"):
            layout((by_path(".*"), {"stack": stack}))("w", shape)
    with pytest.raises(ValueError, match=r'inputs must be a tuple of axes, .* got 0; write "inputs": \(0,\)'):
        layout((by_path(".*"), {"inputs": 0}))


def test_layers_at_a_declared_axis_are_layers(x64: None) -> None:
    """Declared by a number or by an axis, and wherever the axis is: the updates of separate layers, per tensor and per
    matrix."""
    x, g = (np.random.default_rng(seed).standard_normal((3, 6, 4)) for seed in (0, 1))
    for tx in (lambda stack: gk.lamb(0.1, layout=stack), lambda stack: gk.muon(0.1, layout=stack)):
        each = [
            by_numpy(tx(None).update)({"w": b}, tx(None).init({"w": a}), {"w": a})[0] for a, b in zip(x, g, strict=True)
        ]
        for stack, at in ((1, 0), ((1,), 1), ((2,), 2)):
            own = tx(layout((by_path("mix"), {"stack": stack})))
            params, grads = ({"mix": np.moveaxis(z, 0, at)} for z in (x, g))
            got: Any = by_numpy(own.update)(grads, own.init(params), params)[0]
            for i, want in enumerate(each):
                np.testing.assert_allclose(np.moveaxis(np.asarray(got["mix"]), at, 0)[i], want["w"], rtol=1e-9)


def test_a_rule_that_matches_no_leaf_is_named() -> None:
    params = {"up": {"kernel": np.ones((4, 8), np.float32), "bias": np.ones(8, np.float32)}}
    wrong, right = (layout((by_path(f".*/{name}"), {"inputs": (1,), "outputs": (0,)})) for name in ("kernal", "kernel"))
    match = r"^layout: the rule \(by_path\('\.\*/kernal'\), .*\) matches no leaf; did you mean 'up/kernel'\?"
    for method in (gk.scale_by_soap, gk.scale_by_trust_ratio, gk.scale_by_shampoo):
        with pytest.raises(ValueError, match=match):
            tx = method(layout=wrong)
            jax.eval_shape(lambda x, tx=tx: tx.update(x, tx.init(x), x), params)
        jax.eval_shape(method(layout=right).init, params)
    # A layout is written once for all groups; what a group lacks may be in another.
    groups = {"a": gk.scale_by_soap(layout=right), "b": gk.scale_by_shampoo(layout=right)}
    jax.eval_shape(optax.partition(groups, {"up": {"kernel": "a", "bias": "b"}}).init, params)


def test_blocks_of_a_leaf() -> None:
    stacked = default_layout("ScanBlock_0/Conv_0/kernel", (6, 3, 3, 8, 16))
    assert tensor_axes(stacked, (6, 3, 3, 8, 16)) == (1, 2, 3, 4)
    assert unit_axes(stacked, (6, 3, 3, 8, 16)) == (1, 2, 3)
    assert unit_axes(default_layout("bias", (7,)), (7,)) == (0,)
    assert unit_axes(default_layout("kernel", (1, 7)), (1, 7)) == (0, 1)


VIEWS = [
    ((6, 4), Axes("matrix", (), (0,), (1,))),
    ((6, 4), Axes("matrix", (), (1,), (0,))),
    ((3, 3, 2, 5), Axes("conv", (), (0, 1, 2), (3,))),
    ((2, 6, 2, 3), Axes("matrix", (0,), (1,), (2, 3))),
    ((2, 2, 3, 6), Axes("matrix", (0,), (1, 2), (3,))),
    ((4, 6, 2, 3), Axes("matrix", (0,), (1,), (3,))),  # one matrix per head
    ((5, 12), Axes("matrix", (), (0,), (1,), (4, 4, 4))),
    ((3, 5, 12), Axes("matrix", (0,), (1,), (2,), (6, 3, 3))),  # grouped queries
    ((2, 3, 5), Axes("matrix", (), (1,), (2,))),
]


@given(st.sampled_from(VIEWS), st.integers(0, 100))
def test_matrix_view_and_back(view: tuple, seed: int) -> None:
    shape, axes = view
    x = jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)
    parts = to_matrices(x, axes)
    np.testing.assert_array_equal(from_matrices(parts, shape, axes), x)
    inputs = math.prod(shape[a] for a in axes.inputs)
    assert all(part.ndim == 3 and part.shape[1] == inputs for part in parts)
    assert [part.shape[2] for part in parts] == list(axes.splits or [math.prod(shape[a] for a in axes.outputs)])


def test_matrix_view_is_the_matrix_that_is_applied() -> None:
    """x @ view = what the layer computes: an attention kernel, a convolution as a product over patches."""
    query = jnp.asarray(np.random.default_rng(0).standard_normal((6, 2, 3)), jnp.float32)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((5, 6)), jnp.float32)
    (matrix,) = to_matrices(query, default_layout("query/kernel", query.shape))
    np.testing.assert_allclose(x @ matrix[0], jnp.einsum("bi,ihd->bhd", x, query).reshape(5, -1), rtol=1e-5, atol=1e-5)

    conv = jnp.asarray(np.random.default_rng(2).standard_normal((2, 2, 3, 4)), jnp.float32)
    patch = jnp.asarray(np.random.default_rng(3).standard_normal((1, 2, 2, 3)), jnp.float32)
    (matrix,) = to_matrices(conv, default_layout("Conv_0/kernel", conv.shape))
    dims = ("NHWC", "HWIO", "NHWC")
    want = jax.lax.conv_general_dilated(patch, conv, (1, 1), "VALID", dimension_numbers=dims)
    np.testing.assert_allclose((patch.reshape(1, -1) @ matrix[0]).ravel(), want.ravel(), rtol=1e-5, atol=1e-5)


def test_split_matrices_are_the_separate_weights() -> None:
    q, k, v = (jnp.full((5, 4), float(i)) for i in range(3))
    parts = to_matrices(jnp.concatenate([q, k, v], axis=1), Axes("matrix", (), (0,), (1,), (4, 4, 4)))
    for part, want in zip(parts, (q, k, v), strict=True):
        np.testing.assert_array_equal(part[0], want)
