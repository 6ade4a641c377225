"""Presets of real models: published parameter counts, and what each axis means, read with and without axis names."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import gradkit as gk

# Computed from the configurations of the papers, term by term, and equal to the counts of the published weights.
GPT2 = (50257 + 1024) * 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768


def _bottlenecks() -> int:
    """Three convolutions and norms a block; a projection at the head of each stage."""
    total, inputs = 0, 64
    for blocks, inner in zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True):
        outer = 4 * inner
        total += inputs * outer + 2 * outer
        for _ in range(blocks):
            total += inputs * inner + 9 * inner**2 + inner * outer + 2 * (inner + inner + outer)
            inputs = outer
    return total


COUNTS = {
    "gpt2-124m": (124_439_808, GPT2),
    "llama3-8b": (
        8_030_261_248,
        2 * 128256 * 4096 + 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096) + 4096,
    ),
    "llama3-70b": (
        70_553_706_496,
        2 * 128256 * 8192 + 80 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192) + 8192,
    ),
    "mixtral-8x7b": (
        46_702_792_704,
        2 * 32000 * 4096 + 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 8 * 3 * 4096 * 14336 + 8 * 4096 + 2 * 4096) + 4096,
    ),
    "vit-l16": (304_326_632, (768 + 199) * 1024 + 24 * (12 * 1024**2 + 13 * 1024) + 2 * 1024 + 1025 * 1000),
    "resnet50": (25_557_032, 3 * 64 * 49 + 2 * 64 + _bottlenecks() + 2049 * 1000),
}


@pytest.mark.parametrize("name", gk.workloads.models())
def test_parameters_are_as_many_as_published(name: str) -> None:
    published, terms = COUNTS[name]
    sizes = [math.prod(x.shape) for x in jax.tree.leaves(gk.workloads.model_shapes(name))]
    assert sum(sizes) == published == terms
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(gk.workloads.model_shapes(name)))


@pytest.mark.parametrize("name", gk.workloads.models())
def test_axes_mean_the_same_with_and_without_their_names(name: str) -> None:
    boxed = gk.workloads.model_shapes(name)
    named, plain = gk.leaves.infer_layout(boxed), gk.leaves.infer_layout(nn.unbox(boxed))
    assert named.entries == plain.entries
    assert named.ambiguous == plain.ambiguous == ()


# Per leaf: role, stack axes, input axes, output axes.
MEANINGS = {
    "gpt2-124m": {
        "token_embed/embedding": ("embedding", (), (0,), (1,)),
        "position_embed/embedding": ("embedding", (), (0,), (1,)),
        "layers/attention/query/bias": ("vector", (0,), (), (1, 2)),
        "layers/attention/out/kernel": ("matrix", (0,), (1, 2), (3,)),
        "layers/norm_mlp/scale": ("vector", (0,), (), (1,)),
    },
    "llama3-8b": {
        "layers/attention/key/kernel": ("matrix", (0,), (1,), (2, 3)),
        "layers/mlp/gate/kernel": ("matrix", (0,), (1,), (2,)),
        "lm_head/kernel": ("head", (), (0,), (1,)),
        "final_norm/scale": ("vector", (), (), (0,)),
    },
    "llama3-70b": {"layers/attention/out/kernel": ("matrix", (0,), (1, 2), (3,))},
    "mixtral-8x7b": {
        "layers/mlp/experts/gate/kernel": ("expert", (0, 1), (2,), (3,)),
        "layers/mlp/experts/down/kernel": ("expert", (0, 1), (2,), (3,)),
        "layers/mlp/router/kernel": ("matrix", (0,), (1,), (2,)),
    },
    "vit-l16": {
        "patch_conv/kernel": ("conv", (), (0, 1, 2), (3,)),
        "pos_embedding": ("embedding", (), (0, 1), (2,)),
        "cls": ("vector", (), (), (0, 1, 2)),
        "head/kernel": ("head", (), (0,), (1,)),
        "layers/mlp/up/bias": ("vector", (0,), (), (1,)),
    },
    "resnet50": {
        "conv_init/kernel": ("conv", (), (0, 1, 2), (3,)),
        "BottleneckResNetBlock_15/Conv_1/kernel": ("conv", (), (0, 1, 2), (3,)),
        "BottleneckResNetBlock_3/norm_proj/scale": ("vector", (), (), (0,)),
        "head/kernel": ("head", (), (0,), (1,)),
    },
}


@pytest.mark.parametrize("name", gk.workloads.models())
def test_roles_and_stacks(name: str) -> None:
    found = {path: axes for path, _, axes in gk.leaves.infer_layout(gk.workloads.model_shapes(name)).entries}
    for path, meaning in MEANINGS[name].items():
        assert tuple(found[path])[:4] == meaning, path


def test_the_dtype_is_of_every_leaf_and_names_are_checked() -> None:
    shapes = gk.workloads.model_shapes("gpt2-124m", dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.bfloat16)}
    with pytest.raises(ValueError, match="did you mean 'llama3-8b'"):
        gk.workloads.model_shapes("llama-8b")
    with pytest.raises(ValueError, match="dtype"):
        gk.workloads.model_shapes("llama3-8b", dtype=jnp.int32)


def test_the_gate_of_experts_is_no_router() -> None:
    tree = {
        "experts": {"gate": {"kernel": jnp.ones((4, 8, 16))}, "up": {"kernel": jnp.ones((4, 8, 16))}},
        "gate": {"kernel": jnp.ones((8, 4))},
    }
    decision = gk.leaves.infer_layout(tree)
    assert decision("experts/gate/kernel", (4, 8, 16)).role == "expert"
    assert decision("experts/gate/kernel", (4, 8, 16)).stack == (0,)
    assert decision("gate/kernel", (8, 4)).stack == ()
