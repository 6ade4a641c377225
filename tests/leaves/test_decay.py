"""Which leaves decay, and how fast which layer learns."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.leaves.depth import exponents
from tests.leaves.trees import nested, trees


@pytest.mark.parametrize("name", sorted(trees()))
def test_no_decay_is_the_practice_of_every_trainer(name: str) -> None:
    """With or without the embeddings, in which trainers differ."""
    labels = [x for x in trees()[name] if x.decay is not None]
    tree = nested(trees()[name])
    tables = {x.path for x in labels if x.roles[0] == "embedding"}
    spares = any(x.decay is False for x in labels if x.path in tables)
    mask = gk.leaves.no_decay(embeddings=spares)(tree)
    decayed = dict(zip(gk.leaves.names(tree), jax.tree.leaves(mask), strict=True))
    assert {x.path: decayed[x.path] for x in labels} == {x.path: x.decay for x in labels}


def test_no_decay_as_a_mask() -> None:
    x = {"attn": {"query": {"kernel": jnp.ones((4, 2, 2)), "bias": jnp.ones((2, 2))}}, "norm": {"scale": jnp.ones(4)}}
    tx = gk.adamw(0.1, weight_decay=0.5, weight_decay_mask=gk.leaves.no_decay())
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, x), tx.init(x), x)
    moved = {k: bool(u.any()) for k, u in zip(gk.leaves.names(x), jax.tree.leaves(updates), strict=True)}
    assert moved == {"attn/query/bias": False, "attn/query/kernel": True, "norm/scale": False}
    vectors = {"scale": jnp.ones(3)}
    tx.init(vectors)  # nothing to decay, and nothing misspelled


def powers(paths: dict[str, tuple[int, ...]], **options: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, shape in paths.items():
        *above, last = path.split("/")
        node = tree
        for piece in above:
            node = node.setdefault(piece, {})
        node[last] = jax.ShapeDtypeStruct(shape, jnp.float32)
    found = dict(zip(gk.leaves.names(tree), exponents(tree, **options), strict=True))
    return {path: found[path].squeeze().tolist() for path in paths}


OUTSIDE = {"embed/embedding": (9, 4), "final_norm/scale": (4,), "head/kernel": (4, 9)}


def test_layers_by_number_and_by_stack_axis() -> None:
    ends = {"embed/embedding": 4, "final_norm/scale": 0, "head/kernel": 0}
    apart = {f"layers_{i}/mlp/kernel": (4, 4) for i in range(3)}
    assert powers(OUTSIDE | apart) == ends | {f"layers_{i}/mlp/kernel": 3 - i for i in range(3)}
    listed = {f"model/layers/{i}/mlp/kernel": (4, 4) for i in range(3)}
    assert powers(OUTSIDE | listed) == ends | {f"model/layers/{i}/mlp/kernel": 3 - i for i in range(3)}
    for axis, kernel, scale in ((0, (3, 4, 8), (3, 4)), (1, (4, 3, 8), (4, 3))):
        together = {"layers/mlp/kernel": kernel, "layers/norm/scale": scale}
        assert powers(OUTSIDE | together) == ends | {path: [3, 2, 1] for path in together}, axis


def test_a_scan_over_blocks_of_layers_and_stages_of_stacked_layers() -> None:
    blocks = {
        f"layers/layers_{i}/{k}": s for i in (0, 1) for k, s in (("norm/scale", (4, 3)), ("mlp/kernel", (4, 3, 8)))
    }
    got = powers(OUTSIDE | blocks)
    assert got["layers/layers_0/mlp/kernel"] == [6, 4, 2]
    assert got["layers/layers_1/norm/scale"] == [5, 3, 1]
    assert got["embed/embedding"] == 7
    stages = {
        f"stage_{i}/blocks/{k}": s
        for i, n in ((0, 2), (1, 3))
        for k, s in (("norm/scale", (n, 4)), ("up/kernel", (n, 4, 8)))
    }
    got = powers(stages | {"head/kernel": (4, 9)})
    assert got["stage_0/blocks/up/kernel"] == [5, 4]
    assert got["stage_1/blocks/up/kernel"] == [3, 2, 1]


def test_experts_are_no_layers_and_towers_are_counted_by_themselves() -> None:
    moe = {
        "layers/norm/scale": (4, 3), "layers/moe/gate/kernel": (4, 3, 5), "layers/moe/wi": (5, 3, 4, 8),
        "layers/moe/wo": (5, 3, 8, 4),
    }  # fmt: skip
    got = powers(OUTSIDE | moe)
    assert got["layers/moe/wi"] == [3, 2, 1] and got["layers/moe/gate/kernel"] == [3, 2, 1]
    towers = {f"img/block_{i}/kernel": (4, 4) for i in range(2)} | {f"txt/block_{i}/kernel": (4, 4) for i in range(4)}
    towers |= {"img/patch/kernel": (4, 4), "txt/embed/embedding": (9, 4)}
    got = powers(towers)
    assert (got["img/patch/kernel"], got["txt/embed/embedding"]) == (3, 5)
    assert (got["img/block_0/kernel"], got["txt/block_0/kernel"]) == (2, 4)


def test_layerwise_decay_scales_the_update(x64: None) -> None:
    x = {
        "layers": {"norm": {"scale": jnp.ones((2, 3))}, "up": {"kernel": jnp.ones((2, 3, 5))}},
        "head": jnp.ones((3, 7)),
    }
    tx, plain = optax.chain(gk.sgd(0.1), gk.leaves.layerwise_decay(0.75)), gk.sgd(0.1)
    got, _ = jax.jit(tx.update)(x, tx.init(x), x)
    want, _ = plain.update(x, plain.init(x), x)
    factor = np.array([0.75**2, 0.75])
    np.testing.assert_allclose(got["layers"]["up"]["kernel"], want["layers"]["up"]["kernel"] * factor[:, None, None])
    np.testing.assert_allclose(got["layers"]["norm"]["scale"], want["layers"]["norm"]["scale"] * factor[:, None])
    np.testing.assert_array_equal(got["head"], want["head"])
    swept = jax.vmap(lambda d: gk.leaves.layerwise_decay(d).update(x, optax.EmptyState())[0]["layers"]["up"]["kernel"])
    assert math.isclose(float(swept(jnp.array([0.5, 1.0]))[0, 0, 0, 0]), 0.25)


def test_without_layers_there_is_nothing_to_decay() -> None:
    with pytest.raises(ValueError, match=r"layerwise_decay: no layers were found among kernel; .* declare those"):
        gk.leaves.layerwise_decay(0.5).init({"kernel": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match=r"decay must be in \(0, 1\]"):
        gk.leaves.layerwise_decay(0.0)
