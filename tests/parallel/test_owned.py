"""State that lies with the owner of a matrix: the numbers of one device, 1 / N of the bytes, no more exchange."""

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.engine.owned import Owned
from gradkit.parallel import collective_bytes, init_sharded
from gradkit.training import Checkpoints
from tests.by_numpy import by_numpy

pytestmark = pytest.mark.usefixtures("x64")

METHODS = {
    "galore": lambda shard: gk.project_low_rank(rank=2, update_interval=2, shard=shard),
    "fira": lambda shard: gk.project_low_rank(
        rank=2, update_interval=2, residual="norm_scaled", growth_limit=1.01, shard=shard
    ),
    "conda": lambda shard: gk.scale_by_conda(update_interval=2, shard=shard),
    "dion": lambda shard: gk.scale_by_dion(rank=2, key=0, shard=shard),
    "staggered": lambda shard: gk.scale_by_conda(update_interval=3, stagger=True, shard=shard),
}
# Six matrices of one shape, padded to eight.
SHAPES = {f"{i}": (8, 16) for i in range(4)} | {"ScanBlock_0": (2, 16, 8)}


def is_owned(node: Any) -> bool:
    return isinstance(node, Owned)


def draw(step: int) -> Any:
    rng = np.random.default_rng(step)
    return {k: {"kernel": jnp.asarray(rng.standard_normal(s))} for k, s in SHAPES.items()}


def steps(update: Any, state: Any, put: Any) -> Any:
    d = None
    for t in range(3):
        d, state = update(put(draw(t)), state)
        jax.block_until_ready(d)
    return d, state


@functools.cache
def on_one_device(name: str) -> Any:
    tx = METHODS[name](None)
    return steps(by_numpy(tx.update), tx.init(draw(0)), lambda tree: tree)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("cut", [False, True], ids=["replicated", "long side"])
@pytest.mark.parametrize("name", METHODS)
def test_owners(name: str, cut: bool, kind: AxisType) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    specs = {k: {"kernel": P(None, "x") if cut else P()} for k in SHAPES}
    put = lambda tree: jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), tree, specs)  # noqa: E731
    shard = gk.MatrixSharding(mesh, "x", min_dim=0, specs=specs if kind == AxisType.Auto else None)
    tx = METHODS[name](shard)
    with jax.set_mesh(mesh):
        params = put(draw(0))
        state = init_sharded(tx, params)
        eager = tx.init(params)
        assert jax.tree.map(lambda x: x.sharding.spec, state) == jax.tree.map(lambda x: x.sharding.spec, eager)
        program = jax.jit(tx.update).lower(params, state).compile()
        got, after = steps(program, state, put)
    want, end = on_one_device(name)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-9, atol=1e-9)

    # Of eight matrices, two of them zeros, every device holds one, before and after.
    owned = [x for s in (state, after) for x in jax.tree.leaves(s, is_leaf=is_owned) if is_owned(x)]
    for own in owned:
        assert own.owners == ("x",)
        for x in jax.tree.leaves(own.arrays):
            assert x.shape[0] == 8 and x.addressable_data(0).shape[0] == 1
    # Alone, state is as large but for padding and the counts.
    largest = sum(x.size for own in owned[: len(owned) // 2] for x in jax.tree.leaves(own.arrays) if x.ndim > 1)
    assert sum(x.size for x in jax.tree.leaves(end) if x.ndim > 1) * 8 == largest * 6

    rows = collective_bytes(program)
    if cut:
        assert [row.opcode for row in rows] == ["all-to-all"] * 2
        assert sum(row.result_bytes for row in rows) == 2 * 8 * 128
    else:
        assert [row.opcode for row in rows] == ["all-gather"]
        assert rows[0].result_bytes == 8 * 8 * 128


FITTED = {
    **METHODS,
    "shampoo": lambda shard: gk.scale_by_shampoo(shard=shard, update_interval=2),
    "blocks": lambda shard: gk.distributed_shampoo(1.0, max_dim=5, shard=shard),
    "soap": lambda shard: gk.scale_by_soap(shard=shard, update_interval=2),
    "kron": lambda shard: gk.scale_by_kron(update_probability=0.5, key=jax.random.key(0), shard=shard),
    "soap staggered": lambda shard: gk.scale_by_soap(shard=shard, update_interval=3, stagger=True),
}
PLACES = {
    "one device": (1, {}),
    "two": (2, {"0": P("x"), "ScanBlock_0": P(None, None, "x")}),
    # Stacks of their own: cut along layers, along columns, and not at all.
    "eight": (8, {"0": P(None, "y"), "1": P(None, "y"), "ScanBlock_0": P("x", "y")}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FITTED)
def test_a_checkpoint_fits_any_mesh(name: str, tmp_path: Path) -> None:
    """Two steps on one, four, eight devices and a third elsewhere are three steps on one device."""

    @functools.cache
    def on(place: str) -> tuple[Any, Any, Any, Any]:
        """The beginning, the step, where trees go, and the mesh."""
        devices, cut = PLACES[place]
        auto = (AxisType.Auto,) * 2
        sizes = (min(2, devices), max(1, devices // 2))
        mesh = jax.make_mesh(sizes, ("x", "y"), axis_types=auto, devices=jax.devices()[:devices])
        specs = {k: {"kernel": cut.get(k, P())} for k in SHAPES}
        put = lambda tree: jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), tree, specs)  # noqa: E731
        shard = gk.MatrixSharding(mesh, ("x", "y"), min_dim=0, specs=specs)
        tx = FITTED[name](shard)
        return functools.partial(init_sharded, tx), jax.jit(tx.update), put, functools.partial(jax.set_mesh, mesh)

    def third(place: str, saved: Checkpoints | None) -> Any:
        init, update, put, where = on(place)
        with where():
            params = put(draw(0))
            state = init(params)
            if saved is None:
                for t in (0, 1):
                    _, state = update(put(draw(t)), state, params)
                with Checkpoints(tmp_path / place) as checkpoints:
                    checkpoints.save(2, {"params": params, "opt_state": state})
            else:
                back, report = saved.restore({"params": params, "opt_state": state})
                assert not report.fresh and not report.dropped
                lies = jax.tree.map(lambda x: x.sharding, state)
                assert jax.tree.map(lambda x: x.sharding, back["opt_state"]) == lies
                state = back["opt_state"]
            return jax.tree.map(np.asarray, update(put(draw(2)), state, params)[0])

    want = third("one device", None)
    third("eight", None)
    for source, place in (("one device", "eight"), ("eight", "two"), ("eight", "one device")):
        got = third(place, Checkpoints(tmp_path / source))
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9, err_msg=f"from {source} to {place}")


@pytest.mark.parametrize(("projection", "transposed"), [("left", False), ("std", True)])
def test_state_has_the_order_of_the_leaf(projection: str, transposed: bool) -> None:
    """Where an inner axis of a side is sharded, an all-to-all joins the shards in another order; state must not depend
    on it, or it means something else on the next mesh. Leaves of one shape of matrix, each with another order."""
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    specs = {"out": P("x", "y"), "query": P(None, "x", "y"), "up": P(None, "y"), "value": P("y", "x")}
    shapes = {"out": (4, 4, 16), "query": (16, 2, 8), "up": (16, 16), "value": (16, 4, 4)}
    rng = np.random.default_rng(0)
    updates = {k: {"kernel": rng.standard_normal(shape)} for k, shape in shapes.items()}
    specs = {k: {"kernel": spec} for k, spec in specs.items()}
    shard = gk.MatrixSharding(mesh, ("x", "y"), min_dim=0, specs=specs)
    tx = gk.scale_by_conda(b1=0.5, projection=projection, layout=gk.leaves.infer_layout(updates), shard=shard)
    there = jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), updates, specs)
    with jax.set_mesh(mesh):
        _, state = jax.jit(tx.update)(there, init_sharded(tx, there))
    found = {name: row for own in state.mu.values() for name, row in zip(own.rows, own.arrays, strict=True)}
    for k, x in updates.items():
        matrix = x["kernel"].reshape(16, 16)
        want = matrix.T if transposed else matrix
        np.testing.assert_allclose(found[f"{k}/kernel[0,0]"], want / 2, rtol=1e-15)


@pytest.mark.parametrize("given", [True, False], ids=["shard", "axes alone"])
def test_explicit_axes_need_no_mesh_around_the_update(given: bool) -> None:
    """The mesh is in the types of the arrays: the same update inside of `jax.set_mesh` and outside."""
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    specs = {k: {"kernel": P(None, "y")} for k in SHAPES} | {"0": {"kernel": P("x")}, "ScanBlock_0": {"kernel": P("x")}}
    params = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), draw(0), specs)
    tx = gk.scale_by_conda(shard=gk.MatrixSharding(mesh, ("x", "y"), min_dim=0) if given else None)
    got, after = jax.jit(tx.update)(params, tx.init(params))
    with jax.set_mesh(mesh):
        want, state = jax.jit(tx.update)(params, init_sharded(tx, params))
    for x, y in zip(jax.tree.leaves((got, after)), jax.tree.leaves((want, state)), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-12)


@pytest.mark.parametrize("method", [gk.scale_by_muon, gk.scale_by_soap, gk.scale_by_conda])
@pytest.mark.parametrize("arrays", ["without a mesh", "sharded otherwise"])
def test_arrays_that_are_not_sharded_as_the_argument_says_are_named(method: Any, arrays: str) -> None:
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    own = NamedSharding(mesh, P("y")) if arrays == "sharded otherwise" else None
    params = {"w": jax.ShapeDtypeStruct((16, 16), np.float32, sharding=own)}
    tx = method(shard=gk.MatrixSharding(mesh, ("x", "y"), min_dim=0, specs=P("x")))
    match = (
        r"^scale_by_\w+: 'w' is sharded over Explicit axes as .*, but shard= has P\('x',?\) of the mesh .* write jax"
    )
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(lambda g: tx.update(g, tx.init(params), g), params)


def replicated_over_explicit_axes() -> tuple[Any, Any]:
    """A mesh, and parameters of which one is sharded over four devices and three are on all."""
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Explicit,) * 2)
    specs = {"up": P("fsdp"), "b": P(), "c": P(), "d": P()}
    return mesh, {k: jax.ShapeDtypeStruct((16, 16), np.float32, sharding=NamedSharding(mesh, specs[k])) for k in specs}


def test_replicated_stacks_are_warned_of() -> None:
    """Three quarters of the state would be on every device: one warning names them, and the argument that mends it."""
    mesh, params = replicated_over_explicit_axes()
    tx = gk.scale_by_soap(layout=gk.leaves.layout((gk.leaves.by_path(".*"), {"role": "matrix"})))
    with jax.set_mesh(mesh), pytest.warns(UserWarning, match="would have 81% of the state, where 25% is") as found:
        jax.eval_shape(tx.init, params)
    (text,) = [str(w.message) for w in found]
    assert text.startswith("scale_by_soap: ") and "b, c, d, which are replicated" in text
    assert "Write shard=gk.MatrixSharding(mesh, ('data', 'fsdp'))" in text


def test_what_is_shared_out_is_not_warned_of() -> None:
    mesh, params = replicated_over_explicit_axes()
    with jax.set_mesh(mesh):
        tx = gk.scale_by_soap(shard=gk.MatrixSharding(mesh, ("data", "fsdp"), min_dim=0))
        state = init_sharded(tx, params)
        held = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state))
        # Of the stack of three, padded to four, each device has one matrix; of the single one, `up`, an eighth.
        assert held <= (1 + 1 / 8) / (4 + 1) * sum(x.size for x in jax.tree.leaves(state)) + 8
        plain = {k: x for k, x in params.items() if k == "up"}
        jax.eval_shape(gk.scale_by_soap().init, plain)


def test_an_init_that_saw_something_else_is_named() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    shard = gk.MatrixSharding(mesh, "x", min_dim=0, specs=P())
    state = gk.scale_by_conda().init(draw(0))
    with pytest.raises(ValueError, match=r"scale_by_conda: its state has stacks .* and the updates make"):
        gk.scale_by_conda(shard=shard).update(draw(0), state)


@pytest.mark.parametrize("name", ["galore", "staggered"])
def test_inside_shard_map(name: str) -> None:
    """With no mesh of its own: state is local, and replicated leaves are shared out over the axis."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    shard = gk.MatrixSharding(None, "x", min_dim=0)
    tx, alone = METHODS[name](shard), METHODS[name](None)

    def run(g: Any) -> Any:
        state = tx.init(g)
        assert [x.arrays.shape for x in state.failed.values()] == [(1,)]
        _, state = tx.update(g, state)
        return tx.update(jax.tree.map(lambda x: 2 * x, g), state)[0]

    got = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False))(draw(0))
    _, state = alone.update(draw(0), alone.init(draw(0)))
    want, _ = alone.update(jax.tree.map(lambda x: 2 * x, draw(0)), state)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", [gk.conda, gk.galore, gk.fira], ids=lambda method: method.__name__)
def test_traced_hyperparameters_over_explicit_axes(method: Any) -> None:
    """Numbers that are traced reach the owner as arguments."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    make = lambda rate, b1: method(rate, b1=b1, shard=gk.MatrixSharding(mesh, "x", min_dim=0))  # noqa: E731
    tx = gk.inject_hyperparams(make)(0.1, 0.9)
    with jax.set_mesh(mesh):
        x = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P())), draw(0))
        got, _ = jax.jit(tx.update)(x, tx.init(x), x)
    plain = method(0.1)
    want, _ = plain.update(draw(0), plain.init(draw(0)), draw(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6, atol=1e-9), got, want)
