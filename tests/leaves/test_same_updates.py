"""One transformer in every form that Flax has for its layers: the same updates, by real modules of Linen and NNX."""

import functools
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import meta

import gradkit as gk
from tests.by_numpy import by_numpy

L, E, H, F, V = 3, 8, 2, 12, 16
MESH_AXES = {"qkv": ("fsdp", "model"), "out": ("model", "fsdp"), "up": ("fsdp", "model"), "down": ("model", "fsdp")}
LOGICAL = {"qkv": ("embed", "heads"), "out": ("heads", "embed"), "up": ("embed", "mlp"), "down": ("mlp", "embed")}


def boxes(names: dict[str, Any], box: Callable[..., Any]) -> Callable[[str], Any]:
    """By the name of a layer, an initializer of its kernel that puts it in a box."""

    def kernel(layer: str) -> Any:
        own = names.get(layer)
        return box(nn.initializers.lecun_normal(), own) if own else nn.initializers.lecun_normal()

    return kernel


bare = boxes({}, nn.with_partitioning)


class Block(nn.Module):
    """Linen's layer."""

    kernel: Callable[[str], Any] = bare

    @nn.compact
    def __call__(self, x: Any) -> Any:
        attention = nn.MultiHeadDotProductAttention(num_heads=H, name="attention")
        x = x + attention(nn.LayerNorm(name="norm")(x))
        h = nn.Dense(F, kernel_init=self.kernel("up"), name="up")(x)
        return x + nn.Dense(E, kernel_init=self.kernel("down"), name="down")(nn.gelu(h))


class Body(Block):
    """Under a scan: a carry, and nothing stacked."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return Block.__call__(self, x), None


class Separate(nn.Module):
    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        x = nn.Embed(V, E, name="embed")(tokens)
        for i in range(L):
            x = Block(name=f"blocks_{i}")(x)
        return nn.Dense(V, name="head")(nn.LayerNorm(name="final_norm")(x))


class Scanned(nn.Module):
    axis: int
    named: dict[str, Any]
    kernel: Callable[[str], Any] = bare
    partition: str | None = None

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        x = nn.Embed(V, E, name="embed")(tokens)
        metadata = {nn.PARTITION_NAME: self.partition}
        kinds = {"variable_axes": {"params": self.axis}, "split_rngs": {"params": True}, "metadata_params": metadata}
        x, _ = nn.scan(Body, length=L, **kinds)(self.kernel, **self.named)(x)
        return nn.Dense(V, name="head")(nn.LayerNorm(name="final_norm")(x))


class NNXBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(E, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(H, E, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(E, F, rngs=rngs), nnx.Linear(F, E, rngs=rngs)


class NNXModel(nnx.Module):
    def __init__(self, axis: int) -> None:
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(V, E, rngs=rngs)
        axes = nnx.StateAxes({nnx.Param: axis, ...: 0})
        self.layers = nnx.split_rngs(splits=L)(nnx.vmap(NNXBlock, out_axes=axes))(rngs)
        self.final_norm, self.head = nnx.LayerNorm(E, rngs=rngs), nnx.Linear(E, V, rngs=rngs)


def linen(model: nn.Module) -> Any:
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]


def stack(axis: int) -> Any:
    """A dictionary of arrays, whoever made it."""
    return meta.unbox(linen(Scanned(axis, {"name": "stack"})))


FORMS: dict[str, Callable[[], Any]] = {
    "scan": lambda: linen(Scanned(0, {})),
    "scan called layers": lambda: linen(Scanned(0, {"name": "layers"})),
    "scan along axis 1": lambda: linen(Scanned(1, {"name": "layers"})),
    "boxes with axes of a mesh": lambda: linen(Scanned(0, {"name": "layers"}, boxes(MESH_AXES, nn.with_partitioning))),
    "logical boxes": lambda: linen(
        Scanned(0, {"name": "layers"}, boxes(LOGICAL, nn.with_logical_partitioning), "layers")
    ),
    "logical boxes along axis 1": lambda: linen(
        Scanned(1, {"name": "layers"}, boxes(LOGICAL, nn.with_logical_partitioning), "layers")
    ),
    "nnx.vmap": lambda: nnx.state(nnx.eval_shape(lambda: NNXModel(0)), nnx.Param),
    "nnx.vmap along axis 1": lambda: nnx.state(nnx.eval_shape(lambda: NNXModel(1)), nnx.Param),
    "dictionary": lambda: stack(0),
    "dictionary along axis 1": lambda: stack(1),
}
METHODS: dict[str, Callable[[], Any]] = {
    "muon": lambda: gk.muon(0.1, adam_learning_rate=0.1, weight_decay=0.1, weight_decay_mask=gk.leaves.no_decay()),
    "soap": lambda: gk.soap(0.1, update_interval=1),
    "lamb": lambda: gk.lamb(0.1, weight_decay=0.1),
    "lars": lambda: gk.lars(0.1),
    "shampoo": lambda: gk.shampoo(0.1),
}
SLOW = ("shampoo", "soap")


@functools.cache
def separate() -> dict[str, tuple[int, ...]]:
    """Shapes of the model with separate layers, by name."""
    tree = linen(Separate())
    return {name: x.shape for name, x in zip(gk.leaves.names(tree), jax.tree.leaves(tree), strict=True)}


def values(seed: int) -> dict[str, np.ndarray]:
    """Numbers for the model with separate layers, by name."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in separate().items()}


def own_name(name: str) -> tuple[str, bool]:
    """The name in one layer, or outside of all; whether it is in a layer."""
    piece, _, rest = name.partition("/")
    inside = re.fullmatch(r"blocks_\d|ScanBody_0|layers|stack", piece) is not None
    return (rest, True) if inside else (name, False)


def axis_of(shape: tuple[int, ...], own: tuple[int, ...]) -> int:
    """Where the layers are in a stack."""
    return next(axis for axis in (0, 1) if shape == (*own[:axis], L, *own[axis:]))


def filled(tree: Any, numbers: dict[str, np.ndarray]) -> Any:
    """The tree with the numbers of the separate layers, stacked as it stacks them."""
    out = []
    for name, x in zip(gk.leaves.names(tree), jax.tree.leaves(tree), strict=True):
        rest, inside = own_name(name)
        if inside:
            rows = [numbers[f"blocks_{i}/{rest}"] for i in range(L)]
            out.append(jnp.asarray(np.stack(rows, axis_of(x.shape, rows[0].shape))))
        else:
            out.append(jnp.asarray(numbers[name]))
    return jax.tree.structure(tree).unflatten(out)


def apart(tree: Any) -> dict[str, np.ndarray]:
    """The numbers of a tree by the names of the separate layers."""
    out = {}
    for name, x in zip(gk.leaves.names(tree), jax.tree.leaves(tree), strict=True):
        rest, inside = own_name(name)
        if inside:
            axis = axis_of(x.shape, separate()[f"blocks_0/{rest}"])
            out |= {f"blocks_{i}/{rest}": np.take(np.asarray(x), i, axis) for i in range(L)}
        else:
            out[name] = np.asarray(x)
    return out


def second_update(tx: Any, params: Any, gradients: list[Any]) -> Any:
    state, u = by_numpy(tx.init)(params), None
    update = by_numpy(tx.update)
    for g in gradients:
        u, state = update(g, state, params)
    return u


@functools.cache
def wanted(method: str) -> dict[str, np.ndarray]:
    numbers, rows = values(0), [values(1), values(2)]

    def nested(flat: dict[str, np.ndarray]) -> Any:
        tree: dict[str, Any] = {}
        for name, x in flat.items():
            *above, last = name.split("/")
            node = tree
            for piece in above:
                node = node.setdefault(piece, {})
            node[last] = jnp.asarray(x)
        return tree

    u = second_update(METHODS[method](), nested(numbers), [nested(row) for row in rows])
    return dict(zip(gk.leaves.names(u), map(np.asarray, jax.tree.leaves(u)), strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", [pytest.param(m, marks=pytest.mark.slow) if m in SLOW else m for m in METHODS])
def test_the_same_updates_in_every_form(method: str, form: str, x64: None) -> None:
    tree = FORMS[form]()
    got = apart(second_update(METHODS[method](), filled(tree, values(0)), [filled(tree, values(i)) for i in (1, 2)]))
    assert got.keys() == wanted(method).keys()
    for name, want in wanted(method).items():
        # float64, through the inverse roots of matrices: what is left of 16 digits.
        np.testing.assert_allclose(got[name], want, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_describe_shows_a_new_user_the_right_thing(form: str) -> None:
    """With no layout: kernels of layers for Muon, all in stacks; tables, norms, biases and the head for AdamW."""
    rows = gk.leaves.describe(gk.muon(0.02, adam_learning_rate=0.02), FORMS[form]()).rows
    assert len(rows) == len({own_name(name)[0] for name in separate()})
    for row in rows:
        name, inside = own_name(row.name)
        muon = inside and name.endswith("kernel")
        assert row.method.startswith("muon" if muon else "adamw"), row
        assert bool(row.stack) == inside, row
        role = "matrix" if muon else {"embed/embedding": "embedding", "head/kernel": "head"}.get(name, "vector")
        assert row.role == role, row
