"""The ways trainers find out where state goes: from what `init` returns, with nothing else told.

Every path is that of a trainer, replayed with its own calls: MaxText with Linen (boxes with logical names, rules, `jit`
with `out_shardings`), MaxText with NNX and tunix (`nnx.Optimizer` under a mesh, partition specs of its state), EasyDeL
(regular expressions on the paths of the state), axlearn (a partition function), `optax.tree_utils.tree_map_params`.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import meta
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from tests.contract.methods import METHODS, draw, grads_like, make

# A layer, a stack of layers at axis 1, attention with heads.
SHAPES = {
    "layers": {"wi": {"kernel": (64, 3, 176)}, "wo": {"kernel": (176, 3, 64)}},
    "mlp": {"kernel": (64, 176)},
    "query": {"kernel": (64, 4, 32)},
}
NAMES = {
    "layers": {"wi": {"kernel": ("embed", "layers", "mlp")}, "wo": {"kernel": ("mlp", "layers", "embed")}},
    "mlp": {"kernel": ("embed", "mlp")},
    "query": {"kernel": ("embed", "heads", "kv")},
}
RULES = (("embed", "fsdp"), ("mlp", "tensor"), ("heads", "tensor"), ("layers", None), ("kv", None))
OWN: dict[str, Callable[[], Any]] = {
    "soap": lambda: gk.soap(0.1),
    "shampoo": lambda: gk.shampoo(0.1, b1=0.9, eps=0.1),
    "distributed_shampoo": lambda: gk.distributed_shampoo(0.1, eps=0.1, grafting="adam", max_dim=64),
    "kron": lambda: gk.kron(0.1, key=jax.random.key(0)),
    "kronecker_statistics": lambda: gk.kronecker_statistics(),
    "conda": lambda: gk.conda(0.1),
    "dion": lambda: gk.dion(0.1, key=0, adam_learning_rate=0.1),
    "galore": lambda: gk.galore(0.1, rank=32),
    "fira": lambda: gk.fira(0.1, rank=32),
    "in_basis": lambda: gk.in_basis(gk.scale_by_adam()),
    "block_leaves": lambda: gk.block_leaves(gk.scale_by_adam(), max_dim=32),
    "novograd": lambda: gk.novograd(0.1),
    "muon": lambda: gk.muon(0.1, adam_learning_rate=0.1),
}
METHOD = pytest.mark.parametrize("name", OWN)


def mesh_of() -> Mesh:
    return jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def is_shape(node: Any) -> bool:
    return isinstance(node, tuple) and not hasattr(node, "_fields")


def spec_of(names: tuple[str, ...]) -> P:
    return P(*(dict(RULES)[name] for name in names))


def boxed(tree: Any) -> Any:
    """The parameters as a Linen model with logical axes makes them."""
    return jax.tree.map(lambda names, x: nn.LogicallyPartitioned(x, names), NAMES, tree, is_leaf=is_shape)


def abstract() -> Any:
    return jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), SHAPES, is_leaf=is_shape)


def share(arrays: Any) -> float:
    """Bytes on one device, of all bytes."""
    leaves = [x for x in jax.tree.leaves(arrays) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    return sum(x.addressable_data(0).nbytes for x in leaves) / sum(x.nbytes for x in leaves)


def assert_shared(arrays: Any) -> None:
    """The parameters are cut over fsdp and tensor."""
    assert share(arrays) <= 1.05 * share(jax.device_put(draw(0, SHAPES), shardings(mesh_of())))


def shardings(mesh: Mesh) -> Any:
    return jax.tree.map(lambda names: NamedSharding(mesh, spec_of(names)), NAMES, is_leaf=is_shape)


@METHOD
def test_linen_boxes(name: str) -> None:
    """MaxText: `eval_shape`, specs of the boxes, logical to mesh, `jit` with `out_shardings`."""
    tx, mesh = OWN[name](), mesh_of()
    specs = nn.get_partition_spec(jax.eval_shape(lambda p: tx.init(p), boxed(abstract())))
    out = nn.logical_to_mesh_sharding(specs, mesh, RULES)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        state = jax.jit(lambda p: meta.unbox(tx.init(boxed(p))), out_shardings=meta.unbox(out))(draw(0, SHAPES))
    assert_shared(state)
    there = jax.device_put(draw(0, SHAPES), shardings(mesh))
    grads = jax.device_put(grads_like(draw(0, SHAPES), 0), shardings(mesh))
    _, after = jax.jit(tx.update)(grads, state, there)
    for before, x in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert x.sharding.is_equivalent_to(before.sharding, x.ndim)


class Leaf(nnx.Module):
    def __init__(self, shape: tuple[int, ...], spec: P) -> None:
        self.kernel = nnx.Param(jnp.ones(shape), out_sharding=tuple(spec))


class Model(nnx.Module):
    def __init__(self) -> None:
        self.mlp = Leaf((64, 176), P("fsdp", "tensor"))
        self.out = Leaf((176, 64), P("tensor", "fsdp"))
        self.query = Leaf((64, 4, 32), P("fsdp", "tensor", None))


@METHOD
def test_nnx_optimizer_under_a_mesh(name: str) -> None:
    """tunix, and MaxText with NNX: made under `jit`, constrained to what its metadata say."""
    with jax.set_mesh(mesh_of()):

        @nnx.jit
        def start() -> tuple[Model, nnx.Optimizer]:
            model = Model()
            optimizer = nnx.Optimizer(model, OWN[name](), wrt=nnx.Param)
            for part in (model, optimizer):
                state = nnx.state(part)
                nnx.update(part, jax.lax.with_sharding_constraint(state, nnx.get_partition_spec(state)))
            return model, optimizer

        model, optimizer = start()
        parameters = jax.tree.leaves(nnx.state(model, nnx.Param))
        assert share(nnx.state(optimizer, nnx.optimizer.OptState)) <= 1.05 * share(parameters)

        @nnx.jit
        def step(model: Model, optimizer: nnx.Optimizer) -> None:
            optimizer.update(model, nnx.state(model, nnx.Param))

        step(model, optimizer)
        step(model, optimizer)
        assert share(nnx.state(optimizer, nnx.optimizer.OptState)) <= 1.05 * share(parameters)
        eager = nnx.Optimizer(model, OWN[name](), wrt=nnx.Param)
        assert share(nnx.state(eager, nnx.optimizer.OptState)) <= 1.05 * share(parameters)


@METHOD
def test_rules_on_paths(name: str) -> None:
    """EasyDeL: the first rule that is found in the path of a leaf; specs are shortened to the rank of a leaf."""
    rules = [
        ("layers/wi/kernel", P("fsdp", None, "tensor")),
        ("layers/wo/kernel", P("tensor", None, "fsdp")),
        ("mlp/kernel", P("fsdp", "tensor")),
        ("query/kernel", P("fsdp", "tensor", None)),
        (".*", P()),
    ]
    state = jax.eval_shape(OWN[name]().init, abstract())
    found: dict[str, list[str]] = {}
    for path, x in jax.tree_util.tree_flatten_with_path(state)[0]:
        text = jax.tree_util.keystr(path, simple=True, separator="/")
        rule = next(rule for rule, _ in rules if re.search(rule, text))
        found.setdefault(rule, []).append(text)
        if x.size > 64:
            assert rule != ".*", text
    assert len(found) == len(rules)


class ParameterSpec(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any
    mesh_axes: tuple[str | None, ...]


@METHOD
def test_a_partition_function(name: str) -> None:
    """axlearn: specs of the parameters in, specs of the state out; `jit` of `init` makes it so."""
    tx, mesh = OWN[name](), mesh_of()
    given = jax.tree.map(
        lambda names, shape: ParameterSpec(shape, None, tuple(spec_of(names))), NAMES, SHAPES, is_leaf=is_shape
    )
    out = gk.parallel.partition_fn(tx, lambda shape, dtype, axes: NamedSharding(mesh, axes))(given)
    assert_shared(jax.jit(tx.init, out_shardings=out)(draw(0, SHAPES)))


@METHOD
def test_derived_shardings(name: str) -> None:
    """This library's own: from the shardings of the parameters."""
    there = jax.device_put(draw(0, SHAPES), shardings(mesh_of()))
    assert_shared(gk.parallel.init_sharded(OWN[name](), there))
    assert_shared(OWN[name]().init(there))


# Embedding, head, biases and scales: a bias is sharded along one mesh axis, and the matrix of its only axis along both.
MODEL_SHAPES = SHAPES | {
    "embed": {"embedding": (512, 64)},
    "head": {"kernel": (64, 512), "bias": (512,)},
    "layers": SHAPES["layers"] | {"norm": {"scale": (64, 3)}},
    "mlp": {"kernel": (64, 176), "bias": (176,)},
    "norm": {"scale": (64,)},
}
MODEL_NAMES = NAMES | {
    "embed": {"embedding": ("mlp", "embed")},
    "head": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
    "layers": NAMES["layers"] | {"norm": {"scale": ("embed", "layers")}},
    "mlp": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
    "norm": {"scale": ("embed",)},
}
WITH_FACTORS = OWN | {
    "shampoo_defaults": lambda: gk.shampoo(0.1),
    "distributed_shampoo_defaults": lambda: gk.distributed_shampoo(0.1),
}


@pytest.mark.parametrize("name", WITH_FACTORS)
def test_the_state_of_a_language_model_is_shared_out(name: str) -> None:
    """Each of 4 devices has a quarter of the state, to 5 %, by the shardings of the parameters, by logical names, and
    by a partition function; by shapes alone, as nothing is allocated."""
    tx, mesh = WITH_FACTORS[name](), mesh_of()

    def of(leaf: Callable[[Any, Any], Any]) -> Any:
        return jax.tree.map(leaf, MODEL_NAMES, MODEL_SHAPES, is_leaf=is_shape)

    plain = of(lambda names, shape: jax.ShapeDtypeStruct(shape, jnp.float32))
    state = jax.eval_shape(tx.init, plain)

    def bytes_of(x: Any, sharding: NamedSharding | None = None) -> int:
        key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return 0 if key else math.prod(sharding.shard_shape(x.shape) if sharding else x.shape) * x.dtype.itemsize

    sharded = of(
        lambda names, shape: jax.ShapeDtypeStruct(shape, "float32", sharding=NamedSharding(mesh, spec_of(names)))
    )
    boxed = of(lambda names, shape: nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, "float32"), names))
    logical = nn.get_partition_spec(jax.eval_shape(tx.init, boxed))
    given = of(lambda names, shape: ParameterSpec(shape, None, tuple(spec_of(names))))
    ways = {
        "derived": gk.parallel.state_shardings(tx, sharded),
        "logical": meta.unbox(nn.logical_to_mesh_sharding(logical, mesh, RULES)),
        "partition": gk.parallel.partition_fn(tx, lambda shape, dtype, axes: NamedSharding(mesh, axes))(given),
    }
    total = sum(map(bytes_of, jax.tree.leaves(state)))
    for way, out in ways.items():
        own = sum(map(bytes_of, jax.tree.leaves(state), jax.tree.leaves(out)))
        assert own <= 0.2625 * total, (way, own / total)


@pytest.mark.parametrize("name", ["conda", "distributed_shampoo", "in_basis", "kron", "shampoo", "soap"])
def test_branches_and_loops_exchange_nothing(name: str) -> None:
    """Under a mesh the matrices are gathered before they are worked on and nothing is sharded in between: no collective
    is in a branch, where devices may wait for each other for ever, or in the loops of a decomposition."""
    mesh = mesh_of()
    params = {"kernel": jax.device_put(np.ones((8, 16), np.float32), NamedSharding(mesh, P("fsdp", "tensor")))}
    with jax.set_mesh(mesh):
        tx = OWN[name]()
        text = jax.jit(tx.update).lower(params, gk.parallel.init_sharded(tx, params), params).compile().as_text()
    exchange = re.compile(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\(")
    before, entry = text.split("\nENTRY ")
    assert exchange.search(entry) and not exchange.search(before)


class Pair(NamedTuple):
    shape: tuple[int, ...]
    spec: P


@pytest.mark.parametrize("name", [name for name, card in METHODS.items() if "map_params" not in card.opt_outs])
def test_what_belongs_to_parameters_takes_their_specs(name: str) -> None:
    """`tree_map_params` with the specs of the parameters beside: every leaf gets a spec of its rank or less."""
    tx = make(METHODS[name])
    params = draw(0, {"bias": (4,), "kernel": (6, 4)})
    specs = {"bias": P("tensor"), "kernel": P("fsdp", "tensor")}
    state = jax.eval_shape(tx.init, params)
    got = optax.tree_utils.tree_map_params(
        tx,
        lambda x, spec: x if isinstance(x, optax.MaskedNode) else Pair(x.shape, spec),
        state,
        specs,
        transform_non_params=lambda _: None,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    pairs = [x for x in jax.tree.leaves(got, is_leaf=lambda x: isinstance(x, Pair)) if isinstance(x, Pair)]
    assert all(len(pair.spec) <= len(pair.shape) for pair in pairs)


def test_states_are_the_same_in_boxes_and_bare() -> None:
    """Names of leaves, shapes and numbers; the boxes of the state stay what they are."""
    params = jax.tree.map(lambda x: x[..., :8], draw(0, {"kernel": (16, 16), "bias": (16,)}))
    box = {"kernel": meta.Partitioned(params["kernel"], ("x", "y")), "bias": meta.Partitioned(params["bias"], ("y",))}
    for tx in (gk.soap(0.1), gk.lamb(0.1), gk.muon(0.1, adam_learning_rate=0.1), gk.novograd(0.1)):
        state, plain = tx.init(box), tx.init(params)
        for _ in range(2):
            structure = jax.tree.structure(state)
            d, state = tx.update(box, state, box)
            want, plain = tx.update(params, plain, params)
            assert jax.tree.structure(state) == structure
        assert gk.leaves.names(d) == gk.leaves.names(want)
        for x, y in zip(jax.tree.leaves(d), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(x, y)
