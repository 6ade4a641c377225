"""State lies where its parameters lie, from birth and after a step, and the numbers do not depend on it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.catalogue import Card
from gradkit.engine.owned import Owned, specs_of_stacks
from gradkit.parallel import collective_bytes, init_sharded, state_shardings
from tests.by_numpy import op_by_op
from tests.contract.methods import draw, grads_like, make, methods, same

SHAPES = {"bias": (16,), "kernel": (8, 16)}
SPECS = {"bias": P("tensor"), "kernel": P("fsdp", "tensor")}
BY_SHAPE = {SHAPES[name]: SPECS[name] for name in SHAPES}
# Tables and windows: slots of the shape of a parameter, along a leading axis that is not cut.
BY_SHAPE |= {(n, *SHAPES[name]): P(None, *SPECS[name]) for name in SHAPES for n in (2, 3, 4)}
# What belongs to some axes of a parameter, as the two sides of a preconditioner or its blocks: along the mesh axis of
# its own axis first, then along what is left, where it divides; what is not smaller than its parameter also along the
# axes of the mesh that the parameter lacks and another one has beside its own.
OF_SOME_AXES = {
    # What is kept of rows, and of columns.
    ("kernel", (8, 1)): P("fsdp"),
    ("kernel", (1, 16)): P(None, "tensor"),
    ("bias", (16, 1)): P("tensor"),
    ("bias", (16, 16)): P("tensor", "fsdp"),
    ("kernel", (2, 1)): P("fsdp"),
    ("kernel", (16, 1)): P("tensor"),
    ("kernel", (2, 3)): P("fsdp"),
    ("kernel", (8, 8)): P("fsdp", "tensor"),
    ("kernel", (16, 16)): P("tensor", "fsdp"),
    ("kernel", (128, 128)): P("fsdp", "tensor"),
}
# All norms of a step are one all-reduce; a method that needs norms of what it made with the first norms has two.
EXCHANGES = {
    "a_dog": 2,
    "adafactor": 2,
    "auon": 2,
    "came": 3,
    "clip_radagradd": 2,
    "guard": 2,
    "normalize_gradients": 2,
    "orthogonalize_to_params": 2,
    "perpgrad": 2,
    "ranger21": 5,
    "u_dog": 3,
    "vr_lamb": 2,
    "vr_lars": 2,
    "weight_normalized": 2,
}
# What is no sum of blocks does not travel with the sums: counts, one per bit of a threshold, maxima, and the loss at
# the end of a trial step, which the loss itself adds up.
NO_SUMS = {"clip_by_quantile", "gravity", "keep_best", "smb", "smbi", "stable_spam"}
# With example gradients of norm^2 s and a damping d, a Woodbury solve subtracts numbers (d + s) / d times as large as
# what remains, and their roundings: here s is about 144.
WELL_CONDITIONED = {"ngd": {"damping": 144.0}, "thermodynamic_ngd": {"damping": 144.0}}
KINDS = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])


def mesh_of(kind: AxisType = AxisType.Auto) -> Mesh:
    return jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(kind,) * 3)


def put(mesh: Mesh, tree: Any, specs: Any = SPECS) -> Any:
    # Of an array on one device JAX compiles a program for every shard.
    return jax.tree.map(lambda x, spec: jax.device_put(np.asarray(x), NamedSharding(mesh, spec)), tree, specs)


def abstract(mesh: Mesh, specs: Any = SPECS) -> Any:
    return {k: jax.ShapeDtypeStruct(SHAPES[k], np.float32, sharding=NamedSharding(mesh, specs[k])) for k in SHAPES}


def specs(tree: Any) -> Any:
    """The specs of a tree of arrays, shapes or shardings."""
    return jax.tree.map(lambda x: getattr(x, "sharding", x).spec, tree)


def assert_lies(tree: Any, mesh: Mesh) -> None:
    """By shape alone, and where that is no parameter's by whose it is: no derivation is trusted."""
    rows = zip(gk.leaves.names(tree), jax.tree.leaves(tree), specs_of_stacks(tree, mesh.shape), strict=True)
    for name, x, own in rows:
        if own is not None:
            # What is kept in a stack says where that is; no shape does.
            assert x.sharding.is_equivalent_to(NamedSharding(mesh, own), x.ndim), (name, x.sharding)
            continue
        # A window of gradients has the parameter's shape behind its own axis, which is whole.
        spec = BY_SHAPE.get(x.shape) or P(None, *BY_SHAPE.get(x.shape[1:], P()))
        whose = [owner for owner in SHAPES if owner in name.split("/")]
        spec = OF_SOME_AXES.get((whose[-1], x.shape), spec) if whose else spec
        want = NamedSharding(mesh, spec if x.ndim else P())
        assert x.sharding.is_equivalent_to(want, x.ndim), (name, x.shape, x.sharding)


def assert_close(got: Any, want: Any, eps: float) -> None:
    """To a number of roundings of the largest entry of each leaf. What lies with owners has padding at its end, as many
    rows as they ask for."""
    nodes = jax.tree.leaves(want, is_leaf=lambda node: isinstance(node, Owned))
    stacked = [isinstance(node, Owned) for node in nodes for _ in jax.tree.leaves(node)]
    for x, y, in_stack in zip(jax.tree.leaves(got), jax.tree.leaves(want), stacked, strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        x = x[: len(y)] if in_stack else x
        np.testing.assert_allclose(x, y, rtol=0, atol=eps * np.finfo(np.float32).eps * np.abs(y).max(initial=0))


def stepper(tx: optax.GradientTransformation) -> Any:
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, updates

    return jax.jit(step, donate_argnums=(0, 1))


def steps(program: Any, params: Any, state: Any, grads: list[Any]) -> Any:
    """The last of some donated steps."""
    updates = None
    for g in grads:
        params, state, updates = program(params, state, g)
    return params, state, updates


def gradients(count: int, dtype: Any = np.float32) -> list[Any]:
    return [grads_like(draw(0, SHAPES, dtype), step) for step in range(count)]


def resumed(program: Any, saved: Any, like: Any, grads: list[Any]) -> Any:
    """Steps from host copies of (parameters, state), placed as another run is: from what a checkpoint gives back, as
    test_states_saved.py proves."""
    # What is bound to a device would be another program than what is not.
    places = (y.sharding if y.committed else None for y in jax.tree.leaves(like))
    rows = zip(jax.tree.leaves(saved), jax.tree.leaves(like), places, strict=True)
    back = [jax.device_put(unpadded(x, y), place) for x, y, place in rows]
    params, state = jax.tree.unflatten(jax.tree.structure(like), back)
    return steps(program, params, state, grads)


def unpadded(x: Any, like: Any) -> Any:
    """A host copy of one leaf without the rows at its end that only owners elsewhere ask for."""
    return jax.device_get(x)[: len(like)] if x.ndim and len(like) < len(x) else jax.device_get(x)


@pytest.mark.slow
@methods("mesh")
def test_a_method_on_a_mesh(card: Card) -> None:
    """Born sharded, still sharded after three donated steps of one program, equal to one device, and no more is moved
    than is said. From copies of the run after its first step it goes on with the same bits, and elsewhere to rounding.
    """
    tx = make(card, **WELL_CONDITIONED.get(card.name, {}))
    # Elementwise: the same operations, fused otherwise. Norms: a sum of n <= 144 terms in another order is off by
    # n roundings at most. Either as often as there are steps.
    roundings = 3 * (8 if card.collectives == "none" else 144)
    traces = []

    def update(*args: Any, **extra: Any) -> Any:
        traces.append(1)
        return tx.update(*args, **extra)

    step, here = stepper(optax.GradientTransformationExtraArgs(tx.init, update)), draw(0, SHAPES)
    with op_by_op():
        state = tx.init(here)
    params, state, _ = steps(step, here, state, gradients(1))
    copies = jax.device_get((params, state))
    alone = steps(step, params, state, gradients(3)[1:])
    assert len(traces) == 1
    same(resumed(step, copies, alone[:2], gradients(3)[1:]), alone)

    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = mesh_of(kind)
        program, copies, there = on_a_mesh(card, tx, mesh)
        same(resumed(program, copies, there[:2], [put(mesh, g) for g in gradients(3)[1:]]), there)
        assert_close((there[0], there[2]), (alone[0], alone[2]), roundings)
        # State that is stacked with its owners is no tree of the same leaves.
        if jax.tree.structure(unstacked(there[1])) == jax.tree.structure(unstacked(alone[1])):
            assert_close(there[1], alone[1], roundings)
            # First what was computed on the mesh: there may be padding in it.
            assert_close(there, resumed(step, copies, alone[:2], gradients(3)[1:]), roundings)


def unstacked(state: Any) -> Any:
    """The structure of a state, whatever its stacks say of owners."""
    return jax.tree.map(lambda x: list(jax.tree.leaves(x)), state, is_leaf=lambda x: isinstance(x, Owned))


def on_a_mesh(card: Card, tx: optax.GradientTransformation, mesh: Mesh) -> tuple[Any, Any, Any]:
    """The program of a step, host copies of (parameters, state) after the first, and where three steps lead."""
    params, grads = put(mesh, draw(0, SHAPES)), [put(mesh, g) for g in gradients(3)]
    state = init_sharded(tx, params)
    assert_lies(state, mesh)
    assert specs(state) == specs(init_sharded(tx, abstract(mesh)))

    with jax.set_mesh(mesh):
        program = stepper(tx).lower(params, state, grads[0]).compile()
        params, state, _ = steps(program, params, state, grads[:1])
        first = jax.device_get((params, state))
        there = steps(program, params, state, grads[1:])
    assert_lies(there[:2], mesh)
    assert_moves(card, collective_bytes(program))
    return program, first, there


def assert_moves(card: Card, rows: Any) -> None:
    """A compiled step exchanges what the card says, and no more."""
    if card.collectives == "none":
        assert rows == ()
    elif card.name in NO_SUMS:
        assert {row.opcode for row in rows} == {"all-reduce"}
    elif card.collectives == "norms":
        assert [row.opcode for row in rows] == ["all-reduce"] * EXCHANGES.get(card.name, 1)
        # At most four numbers per column of the kernel and per bias, never one per entry.
        assert all(row.result_bytes <= 4 * 4 * (16 + 1) for row in rows)


def test_bfloat16_parameters_on_a_mesh() -> None:
    """A method with moments and norms: at most one rounding to bfloat16 of difference per step."""
    mesh, tx = mesh_of(), gk.lamb(0.01)
    params = put(mesh, draw(0, SHAPES, jnp.bfloat16))
    grads = [put(mesh, g) for g in gradients(3, jnp.bfloat16)]
    there = steps(stepper(tx), params, init_sharded(tx, params), grads)
    here = draw(0, SHAPES, jnp.bfloat16)
    alone = steps(stepper(tx), here, tx.init(here), gradients(3, jnp.bfloat16))
    assert_lies(there[:2], mesh)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(there[0]))
    assert_close(there[0], alone[0], 3 * float(jnp.finfo(jnp.bfloat16).eps) / np.finfo(np.float32).eps)


@KINDS
def test_traced_parameters(kind: AxisType) -> None:
    """Under jit the sharding is in the type over Explicit axes; over Auto axes nobody knows it, and that is said."""
    mesh, tx = mesh_of(kind), gk.adamw(0.1)
    params = put(mesh, draw(0, SHAPES))
    free = put(mesh, draw(0, SHAPES), {"bias": P("tensor"), "kernel": P(None, "tensor")})
    with jax.set_mesh(mesh):
        if kind == AxisType.Auto:
            with pytest.raises(ValueError, match="'bias' is traced over Auto axes"):
                jax.jit(lambda p: init_sharded(tx, p))(params)
            shardings = state_shardings(tx, params)
            assert_lies(jax.jit(lambda p: jax.lax.with_sharding_constraint(tx.init(p), shardings))(params), mesh)
        else:
            assert_lies(jax.jit(lambda p: init_sharded(tx, p))(params), mesh)
            cut = jax.jit(lambda p: init_sharded(tx, p, zero_axis="data"))(free)
            assert specs(cut)[0].mu == {"bias": P("tensor"), "kernel": P("data", "tensor")}


@KINDS
def test_zero_cuts_the_state_once_more(kind: AxisType) -> None:
    """A quarter of the moments per device instead of a half, the same numbers, and only the parameters gathered."""
    mesh, tx = mesh_of(kind), gk.adamw(0.1)
    lies = {"bias": P(), "kernel": P(None, "tensor")}
    here = draw(0, SHAPES)
    params, grads = put(mesh, here, lies), put(mesh, grads_like(here, 0), lies)
    state = init_sharded(tx, params, zero_axis="data")
    cut = {"bias": P("data"), "kernel": P("data", "tensor")}
    assert specs(state)[0] == state[0]._replace(count=P(), mu=cut, nu=cut)
    assert state[0].mu["kernel"].addressable_data(0).shape == (4, 8)

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    out = (jax.tree.map(lambda x: x.sharding, params), state_shardings(tx, params, zero_axis="data"))
    with jax.set_mesh(mesh):
        program = jax.jit(step, out_shardings=out, donate_argnums=(0, 1)).lower(params, state, grads).compile()
    rows = collective_bytes(program)
    assert {row.opcode for row in rows} == {"all-gather"}
    # The updated parameters: (16,) whole and (8, 16) halved, 4 bytes each; one other device of two sends its half.
    assert sum(row.wire_bytes for row in rows) == (16 * 4 + 8 * 8 * 4) / 2
    new, state = program(params, state, grads)
    assert specs((new, state)) == specs(out)
    here = draw(0, SHAPES)  # a replica shares the memory it was put from, and that was donated
    updates, _ = tx.update(grads_like(here, 0), tx.init(here), here)
    assert_close(new, optax.apply_updates(here, updates), 8)


def test_zero_leaves_alone_what_it_cannot_cut() -> None:
    mesh = mesh_of()
    lies = {"odd": P(), "full": P("fsdp", "tensor"), "taken": P(("fsdp", "data")), "empty": P(), "scalar": P()}
    shapes = {"odd": (3, 5), "full": (4, 4), "taken": (8, 2), "empty": (0,), "scalar": ()}
    params = {k: jax.ShapeDtypeStruct(shapes[k], np.float32, sharding=NamedSharding(mesh, lies[k])) for k in shapes}
    assert specs(state_shardings(optax.trace(0.9), params, zero_axis="data")).trace == lies


def test_axes_that_are_reduced_are_not_sharded() -> None:
    """Ten layers in one leaf: NovoGrad keeps one number per layer, sharded as the layers are."""
    mesh = mesh_of()
    lies = NamedSharding(mesh, P("data", "fsdp", "tensor"))
    params = {"ScanBlock_0": {"kernel": jax.ShapeDtypeStruct((10, 8, 16), np.float32, sharding=lies)}}
    tx = gk.novograd(0.1)
    state, shardings = jax.eval_shape(tx.init, params), state_shardings(tx, params)
    assert state[0].nu["ScanBlock_0"]["kernel"].shape == (10, 1, 1)
    assert specs(shardings)[0].nu["ScanBlock_0"]["kernel"] == P("data")


def test_coded_state_follows_its_parameter() -> None:
    """Codes are shaped like the parameter; scales, one per block of the last axis, are whole along it."""
    mesh = mesh_of()
    tx = gk.precision(gk.sgd(0.1, momentum=0.9), state="int8-block", block_size=4)
    found = dict(
        zip(
            gk.leaves.names(state := init_sharded(tx, put(mesh, draw(0, SHAPES)))),
            jax.tree.leaves(specs(state), is_leaf=lambda x: isinstance(x, P)),
            strict=True,
        )
    )
    coded = {name.split("trace/")[1]: spec for name, spec in found.items() if "trace/" in name}
    assert coded == {
        "kernel/codes": P("fsdp", "tensor"),
        "kernel/scales": P("fsdp"),
        "bias/codes": P("tensor"),
        "bias/scales": P(),
    }


@pytest.mark.parametrize(
    "around",
    [
        lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
        lambda tx: optax.masked(tx, {"bias": False, "kernel": True}),
        lambda tx: optax.partition({"a": tx, "b": optax.identity()}, {"bias": "b", "kernel": "a"}),
        lambda tx: gk.leaves.groups([(gk.leaves.by_path("kernel"), tx)], default=optax.sgd(0.1)),
        lambda tx: optax.named_chain(("first", optax.clip(1.0)), ("second", tx)),
        lambda tx: optax.apply_if_finite(tx, 3),
    ],
    ids=["MultiSteps", "masked", "partition", "groups", "named_chain", "apply_if_finite"],
)
def test_inside_wrappers(around: Any) -> None:
    mesh = mesh_of()
    state = init_sharded(around(optax.adam(0.1)), put(mesh, draw(0, SHAPES)))
    assert_lies(state, mesh)
    assert sum(x.shape == (8, 16) for x in jax.tree.leaves(state)) >= 2


def test_any_tree() -> None:
    """A tuple, whose names are numbers as those of links are; one bare array; NNX Variables; nothing at all."""
    mesh = mesh_of()
    params = put(mesh, draw(0, SHAPES))
    kernel, bias = params["kernel"], params["bias"]
    assert_lies(init_sharded(optax.adam(0.1), (bias, kernel)), mesh)
    assert_lies(init_sharded(optax.adam(0.1), kernel), mesh)
    assert_lies(init_sharded(optax.adam(0.1), {"count": bias, "mu": {"nu": kernel}}), mesh)
    assert_lies(init_sharded(optax.adam(0.1), nnx.State({"layer": {"kernel": nnx.Param(kernel)}})), mesh)
    assert specs(state_shardings(optax.adam(0.1), {}, mesh=mesh))[0].count == P()


def test_what_cannot_be_derived_raises() -> None:
    mesh, tx = mesh_of(), optax.adam(0.1)
    with pytest.raises(ValueError, match=r"every parameter must carry a NamedSharding; 'a/w' has"):
        state_shardings(tx, {"a": {"w": jnp.ones(4)}})
    with pytest.raises(ValueError, match="no parameters"):
        state_shardings(tx, {})
    with pytest.raises(ValueError, match=r"zero_axis must be one of .*, got 'batch'"):
        init_sharded(tx, abstract(mesh), zero_axis="batch")
    other = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    mixed = abstract(mesh) | {"other": jax.ShapeDtypeStruct((8,), np.float32, sharding=NamedSharding(other, P()))}
    with pytest.raises(ValueError, match="got 'other' on"):
        state_shardings(tx, mixed)
    replicated = state_shardings(tx, {"w": jnp.ones(4)}, mesh=mesh)
    assert replicated[0].mu["w"] == NamedSharding(mesh, P())
