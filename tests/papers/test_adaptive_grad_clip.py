"""Adaptive gradient clipping (Brock et al., 2021)."""

import jax
import jax.numpy as jnp
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


@pytest.mark.parametrize(
    ("name", "shape", "unit"),
    [
        ("bias", (5,), (0,)),
        ("Dense_0/kernel", (4, 5), (0,)),
        ("Conv_0/kernel", (3, 3, 4, 5), (0, 1, 2)),
        ("attention/query/kernel", (6, 2, 3), (0,)),
        ("attention/out/kernel", (2, 3, 6), (0, 1)),
        ("Conv_1/kernel", (3, 4, 5), (0, 1)),
        ("ScanBlock_0/Dense_0/kernel", (7, 4, 5), (1,)),
        ("thin", (1, 5), (0, 1)),
    ],
)
def test_every_unit_is_within_its_limit(name: str, shape: tuple, unit: tuple, x64: None) -> None:
    w, g = {name: 0.1 * normal(0, *shape)}, {name: normal(1, *shape)}
    norm = lambda x: jnp.sqrt(jnp.sum(x[name] ** 2, axis=unit))  # noqa: E731
    tx = gk.adaptive_grad_clip(0.3)
    once = updates(tx, w, [g])[0]
    limit = 0.3 * jnp.maximum(norm(w), 1e-3)
    assert_equal(norm(once), jnp.minimum(norm(g), limit))
    assert_equal(tx.update(once, tx.init(w), w)[0], once)


def test_no_limit_is_the_identity_and_zero_weights_can_start(x64: None) -> None:
    w, g = normal(0, 4, 5), normal(1, 4, 5)
    assert_equal(updates(gk.adaptive_grad_clip(jnp.inf), w, [g])[0], g)
    started = updates(gk.adaptive_grad_clip(0.5, eps=0.2), 0 * w, [100 * g])[0]
    assert_equal(jnp.linalg.norm(started, axis=0), jnp.full(5, 0.5 * 0.2))


def test_equals_optax_where_that_is_right(x64: None) -> None:
    w = {"bias": normal(0, 5), "kernel": normal(1, 4, 5), "conv": normal(2, 2, 2, 3, 5)}
    g = {"bias": normal(3, 5), "kernel": normal(4, 4, 5), "conv": normal(5, 2, 2, 3, 5)}
    ours = updates(gk.adaptive_grad_clip(0.1), w, [g])[0]
    theirs = updates(optax.adaptive_grad_clip(0.1), w, [g])[0]
    assert_equal(ours["bias"], theirs["bias"])
    assert_equal(ours["kernel"], theirs["kernel"])


def test_masked_leaves_pass(x64: None) -> None:
    w, g = ({name: size * normal(seed, 4, 5) for name in ("body", "head")} for seed, size in ((0, 1.0), (1, 1e3)))
    got = updates(gk.adaptive_grad_clip(mask=~gk.leaves.by_role("head")), w, [g])[0]
    assert_equal(got["head"], g["head"])
    assert float(jnp.abs(got["body"]).max()) < 1


@pytest.mark.parametrize(
    ("name", "shape", "block", "axes"),
    [
        ("bias", (5,), "unit", (0,)),
        ("Dense_0/kernel", (4, 5), "unit", (0,)),
        ("Conv_0/kernel", (3, 3, 4, 5), "unit", (0, 1, 2)),
        ("attention/query/kernel", (6, 2, 3), "unit", (0,)),
        ("ScanBlock_0/Dense_0/kernel", (7, 4, 5), "tensor", (1, 2)),
        ("blocks", (7, 4, 5), 1, (1, 2)),
        ("blocks", (7, 4, 5), 3, ()),
        ("scale", (), "tensor", ()),
    ],
)
def test_norms_of_blocks(name: str, shape: tuple, block: str | int, axes: tuple, x64: None) -> None:
    x = normal(0, *shape)
    want = jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True))
    assert_equal(gk.block_norm(x, block, name=name), want)
    assert_equal(gk.block_norm(x.astype(jnp.complex128) * (0.6 + 0.8j), block, name=name), want)


def test_norms_of_blocks_that_are_cut_and_low_precision(x64: None) -> None:
    """A member of an axis has some rows of every column; squares are added up in float32."""
    x = normal(0, 8, 5)
    cut = jax.vmap(lambda x: gk.block_norm(x, "unit", axis_name="rows"), axis_name="rows")(x.reshape(2, 4, 5))
    assert_equal(cut[1], gk.block_norm(x, "unit"))
    ones = gk.block_norm(jnp.ones(1024, jnp.bfloat16))
    assert ones.dtype == jnp.float32 and ones.tolist() == [32.0]


def test_bad_blocks() -> None:
    for block, message in (("row", "block must be one of"), (-1, "integer >= 0"), (3, "at most the rank of x, 2")):
        with pytest.raises(ValueError, match=message):
            gk.block_norm(jnp.ones((2, 2)), block)
    with pytest.raises(ValueError, match="x must be floating point"):
        gk.block_norm(jnp.ones(2, jnp.int32))
