"""Presets of real models as trees of shapes with logical axis names: what a method costs can be asked without weights.

Layers of one kind are stacked along a leading axis `layers`, as for a `scan`; kernels of attention have separate axes
for heads and head dimension. Names follow Flax. Nothing is allocated: every leaf is a `jax.ShapeDtypeStruct` in a
`flax.linen.LogicallyPartitioned` box that carries the names of its axes.

    name           parameters        published as
    gpt2-124m         124,439,808    GPT-2 small, tied head
    llama3-8b       8,030,261,248    Llama 3 8B
    llama3-70b     70,553,706,496    Llama 3 70B
    mixtral-8x7b   46,702,792,704    Mixtral 8x7B
    vit-l16           304,326,632    ViT-L/16, 224 pixels, 1000 classes
    resnet50           25,557,032    ResNet-50 v1, 1000 classes, without running statistics
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.types import DTypeLike

Tree = dict[str, Any]


def _leaf(dtype: Any, **axes: int) -> nn.LogicallyPartitioned:
    """A shape whose axes are named by the keywords; a trailing underscore repeats a name, a leading one is no name."""
    names = tuple(None if name.startswith("_") else name.rstrip("_") for name in axes)
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(tuple(axes.values()), dtype), names)


def _attention(leaf: Callable[..., Any], layers: int, width: int, heads: int, kv_heads: int, bias: bool) -> Tree:
    dim = width // heads
    tree: Tree = {}
    for name, count, axis in (
        ("query", heads, "heads"),
        ("key", kv_heads, "kv_heads"),
        ("value", kv_heads, "kv_heads"),
    ):
        tree[name] = {"kernel": leaf(layers=layers, embed=width, **{axis: count}, head_dim=dim)}
        if bias:
            tree[name]["bias"] = leaf(layers=layers, **{axis: count}, head_dim=dim)
    tree["out"] = {"kernel": leaf(layers=layers, heads=heads, head_dim=dim, embed=width)}
    if bias:
        tree["out"]["bias"] = leaf(layers=layers, embed=width)
    return tree


def _norm(leaf: Callable[..., Any], bias: bool, **axes: int) -> Tree:
    return {"scale": leaf(**axes)} | ({"bias": leaf(**axes)} if bias else {})


def _gelu_layers(leaf: Callable[..., Any], layers: int, width: int, heads: int, hidden: int) -> Tree:
    """Pre-norm layers with biases, as in GPT-2 and ViT."""
    return {
        "norm_attention": _norm(leaf, True, layers=layers, embed=width),
        "attention": _attention(leaf, layers, width, heads, heads, True),
        "norm_mlp": _norm(leaf, True, layers=layers, embed=width),
        "mlp": {
            "up": {"kernel": leaf(layers=layers, embed=width, mlp=hidden), "bias": leaf(layers=layers, mlp=hidden)},
            "down": {"kernel": leaf(layers=layers, mlp=hidden, embed=width), "bias": leaf(layers=layers, embed=width)},
        },
    }


def _gpt2(
    leaf: Callable[..., Any], *, layers: int, width: int, heads: int, hidden: int, vocab: int, positions: int
) -> Tree:
    return {
        "token_embed": {"embedding": leaf(vocab=vocab, embed=width)},
        "position_embed": {"embedding": leaf(position=positions, embed=width)},
        "layers": _gelu_layers(leaf, layers, width, heads, hidden),
        "final_norm": _norm(leaf, True, embed=width),
    }


def _llama(
    leaf: Callable[..., Any],
    *,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    hidden: int,
    vocab: int,
    experts: int = 0,
) -> Tree:
    """Grouped-query attention and gated MLPs; with `experts` every MLP is that many, behind a router."""
    many = {"experts": experts} if experts else {}
    mlp: Tree = {
        "gate": {"kernel": leaf(layers=layers, **many, embed=width, mlp=hidden)},
        "up": {"kernel": leaf(layers=layers, **many, embed=width, mlp=hidden)},
        "down": {"kernel": leaf(layers=layers, **many, mlp=hidden, embed=width)},
    }
    if experts:
        # The axis of the router's outputs enumerates no experts of its own: each of them has one number there.
        mlp = {"router": {"kernel": leaf(layers=layers, embed=width, _choices=experts)}, "experts": mlp}
    return {
        "token_embed": {"embedding": leaf(vocab=vocab, embed=width)},
        "layers": {
            "norm_attention": _norm(leaf, False, layers=layers, embed=width),
            "attention": _attention(leaf, layers, width, heads, kv_heads, False),
            "norm_mlp": _norm(leaf, False, layers=layers, embed=width),
            "mlp": mlp,
        },
        "final_norm": _norm(leaf, False, embed=width),
        "lm_head": {"kernel": leaf(embed=width, vocab=vocab)},
    }


def _vit(
    leaf: Callable[..., Any],
    *,
    layers: int,
    width: int,
    heads: int,
    hidden: int,
    patch: int,
    image: int,
    classes: int,
) -> Tree:
    patches = (image // patch) ** 2
    return {
        "patch_conv": {
            "kernel": leaf(_height=patch, _width=patch, channels=3, embed=width),
            "bias": leaf(embed=width),
        },
        "cls": leaf(_one=1, _token=1, embed=width),
        "pos_embedding": leaf(_one=1, position=patches + 1, embed=width),
        "layers": _gelu_layers(leaf, layers, width, heads, hidden),
        "encoder_norm": _norm(leaf, True, embed=width),
        "head": {"kernel": leaf(embed=width, classes=classes), "bias": leaf(classes=classes)},
    }


def _resnet(leaf: Callable[..., Any], *, blocks: tuple[int, ...], width: int, expansion: int, classes: int) -> Tree:
    def conv(size: int, inputs: int, outputs: int) -> Tree:
        return {"kernel": leaf(_height=size, _width=size, conv_in=inputs, conv_out=outputs)}

    def norm(channels: int) -> Tree:
        return {"scale": leaf(norm=channels), "bias": leaf(norm=channels)}

    tree: Tree = {"conv_init": conv(7, 3, width), "bn_init": norm(width)}
    inputs, number = width, 0
    for stage, count in enumerate(blocks):
        inner = width * 2**stage
        outer = inner * expansion
        for first in (True, *[False] * (count - 1)):
            block = {
                **{"Conv_0": conv(1, inputs, inner), "BatchNorm_0": norm(inner)},
                **{"Conv_1": conv(3, inner, inner), "BatchNorm_1": norm(inner)},
                **{"Conv_2": conv(1, inner, outer), "BatchNorm_2": norm(outer)},
            }
            if first:
                block |= {"conv_proj": conv(1, inputs, outer), "norm_proj": norm(outer)}
            tree[f"BottleneckResNetBlock_{number}"] = block
            inputs, number = outer, number + 1
    return tree | {"head": {"kernel": leaf(embed=inputs, classes=classes), "bias": leaf(classes=classes)}}


_PRESETS: dict[str, Callable[[Callable[..., Any]], Tree]] = {
    "gpt2-124m": functools.partial(_gpt2, layers=12, width=768, heads=12, hidden=3072, vocab=50_257, positions=1024),
    "llama3-8b": functools.partial(_llama, layers=32, width=4096, heads=32, kv_heads=8, hidden=14_336, vocab=128_256),
    "llama3-70b": functools.partial(_llama, layers=80, width=8192, heads=64, kv_heads=8, hidden=28_672, vocab=128_256),
    "mixtral-8x7b": functools.partial(
        _llama, layers=32, width=4096, heads=32, kv_heads=8, hidden=14_336, vocab=32_000, experts=8
    ),
    "vit-l16": functools.partial(_vit, layers=24, width=1024, heads=16, hidden=4096, patch=16, image=224, classes=1000),
    "resnet50": functools.partial(_resnet, blocks=(3, 4, 6, 3), width=64, expansion=4, classes=1000),
}


def models() -> tuple[str, ...]:
    """The names of all presets.

    >>> models()
    ('gpt2-124m', 'llama3-8b', 'llama3-70b', 'mixtral-8x7b', 'vit-l16', 'resnet50')
    """
    return tuple(_PRESETS)


def model_shapes(name: str, *, dtype: DTypeLike = jnp.float32) -> Any:
    """The parameters of a real model as shapes with logical axis names.

    Args:
      name: one of `models()`.
      dtype: of every parameter, floating. Default float32.

    Returns:
      A tree of `flax.linen.LogicallyPartitioned` boxes around `jax.ShapeDtypeStruct`s. `gk.leaves.describe`,
      `gk.parallel.param_shardings` and `gk.training.inspect` take it as it is; `flax.linen.unbox` takes the boxes off.

    Raises:
      ValueError: an unknown name (the nearest are offered); a dtype that is not floating.

    Example:
      >>> model_shapes("llama3-8b")["layers"]["mlp"]["up"]["kernel"].names
      ('layers', 'embed', 'mlp')
    """
    checks.floating_dtype(dtype=dtype)
    if name not in _PRESETS:
        offer = checks.nearest(name, _PRESETS) or f"; there are {', '.join(_PRESETS)}"
        raise ValueError(f"no model is called {name!r}{offer}")
    return _PRESETS[name](functools.partial(_leaf, jnp.dtype(dtype)))
