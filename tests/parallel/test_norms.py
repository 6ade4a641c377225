"""Norms of sharded leaves: one exchange for all of them, and the numbers of one device."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.engine.norms import global_norm
from gradkit.parallel import collective_bytes, declare_specs, init_sharded, inside_shard_map
from tests.by_numpy import by_numpy
from tests.contract.methods import METHODS, draw, grads_like, make
from tests.parallel.test_shardings import EXCHANGES, KINDS, NO_SUMS, assert_close, mesh_of

# Cut along summed and along kept axes, over one mesh axis and over two, and not at all.
SHAPES = {"ScanBlock_0": {"bias": (4, 8), "kernel": (4, 8, 4)}, "bias": (8,), "empty": (0, 3), "kernel": (8, 8)}
SPECS = {
    "ScanBlock_0": {"bias": P("data"), "kernel": P("data", None, "tensor")},
    "bias": P("tensor"),
    "empty": P(),
    "kernel": P(("tensor", "fsdp")),
} | {"plain": P(), "scale": P(), "wide": P("fsdp", "tensor")}
SHAPES |= {"plain": (3, 5), "scale": (), "wide": (4, 16)}
# The largest block has 8 * 8 entries: a sum in another order is off by so many roundings at most, a quotient of two
# such norms, and what is then added to it, by no more than twice as many.
ROUNDINGS = 128

CASES: dict[str, tuple[Callable[[], Any], int]] = {
    name: ((lambda card=card: make(card)), EXCHANGES.get(name, 1))
    for name, card in METHODS.items()
    if card.collectives == "norms" and name not in NO_SUMS
}
CASES["clipped adamw"] = (lambda: optax.chain(gk.clip_by_global_norm(1.0), gk.adamw(0.01)), 1)
CASES["clipped lamb"] = (lambda: gk.lamb(0.01, max_norm=1.0), 2)
CASES["units"] = (lambda: gk.scale_by_trust_ratio(block="unit"), 1)
EVERY_CASE = pytest.mark.parametrize("name", CASES)


def put(mesh: Any, tree: Any) -> Any:
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, SPECS)


def stepper(tx: Any) -> Callable[..., Any]:
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def alone(name: str) -> Any:
    tx, params = CASES[name][0](), draw(0, SHAPES)
    return by_numpy(stepper(tx))(params, tx.init(params), grads_like(params, 0))


def entries(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def assert_exchanges(program: Any, number: int) -> None:
    """So many all-reduces, of fewer numbers than a step has parameters, and nothing else."""
    rows = collective_bytes(program)
    assert [row.opcode for row in rows] == ["all-reduce"] * number, rows
    assert all(row.result_bytes < 4 * 4 * entries(draw(0, SHAPES)) for row in rows)


@pytest.mark.slow
@KINDS
@EVERY_CASE
def test_all_norms_of_a_step_are_one_exchange(name: str, kind: AxisType) -> None:
    tx, number = CASES[name][0](), CASES[name][1]
    mesh, here = mesh_of(kind), draw(0, SHAPES)
    params, grads = put(mesh, here), put(mesh, grads_like(here, 0))
    state = init_sharded(tx, params)
    with jax.set_mesh(mesh):
        program = jax.jit(stepper(tx), donate_argnums=(0, 1)).lower(params, state, grads).compile()
        there = program(params, state, grads)
    assert_exchanges(program, number)
    assert_close(there, alone(name), ROUNDINGS)


@pytest.mark.slow
@EVERY_CASE
def test_inside_shard_map(name: str) -> None:
    """Shards and replicated leaves, with types that know which is which: the numbers of one device all the same."""
    inner, number = CASES[name][0](), CASES[name][1]
    mesh, here = mesh_of(), draw(0, SHAPES)
    tx = inside_shard_map(inner, SPECS)
    params, grads = put(mesh, here), put(mesh, grads_like(here, 0))
    state = init_sharded(inner, params)
    lies = jax.tree.map(lambda x: x.sharding.spec, state)
    step = jax.shard_map(stepper(tx), mesh=mesh, in_specs=(SPECS, lies, SPECS), out_specs=(SPECS, lies))
    program = jax.jit(step).lower(params, state, grads).compile()
    assert_exchanges(program, number)
    assert_close(program(params, state, grads), alone(name), ROUNDINGS)


@pytest.mark.full_pipeline
@KINDS
def test_in_a_scan_and_under_vmap(kind: AxisType) -> None:
    """Two steps at two learning rates: one exchange in the body of the loop, of the norms at both rates."""
    mesh, here = mesh_of(kind), draw(0, SHAPES)

    def run(rate: Any, params: Any, grads: Any) -> Any:
        tx = gk.lars(rate)
        carry = (params, tx.init(params))
        return jax.lax.scan(lambda carry, g: (stepper(tx)(*carry, g), None), carry, grads)[0][0]

    grads = jax.tree.map(lambda *g: jnp.stack(g), *(grads_like(here, i) for i in range(2)))
    rates = jnp.array([0.1, 0.3])
    with jax.set_mesh(mesh):
        cut = jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, P(None, *spec))), grads, SPECS)
        program = jax.jit(jax.vmap(run, in_axes=(0, None, None))).lower(rates, put(mesh, here), cut).compile()
        there = program(rates, put(mesh, here), cut)
    assert [row.opcode for row in collective_bytes(program)] == ["all-reduce"]
    here = draw(0, SHAPES)
    there = jax.tree.map(np.asarray, there)
    for i, rate in enumerate(rates):
        assert_close(jax.tree.map(operator.itemgetter(i), there), jax.jit(run)(rate, here, grads), 2 * ROUNDINGS)


def test_without_types_that_know_what_varies() -> None:
    """check_vma=False: the specs alone decide; one spec stands for all leaves below it; or a function gives them."""
    mesh, here = mesh_of(), {"a": {"w": jnp.ones((4, 2)), "v": jnp.ones(8)}, "b": jnp.full(3, 2.0)}
    cut = {"a": P("fsdp"), "b": P()}
    for specs in (cut, lambda name, shape: P("fsdp") if name.startswith("a/") and len(shape) else P()):
        tx = inside_shard_map(gk.clip_by_global_norm(1.0), specs)
        clip = jax.shard_map(
            lambda g: tx.update(g, tx.init(g))[1].metrics["gradient_norm"],  # noqa: B023
            mesh=mesh,
            in_specs=(cut,),
            out_specs=P(),
            check_vma=False,
        )
        assert float(jax.jit(clip)(here)) == np.sqrt(8 + 8 + 3 * 4, dtype=np.float32)


def test_a_replica_has_its_own_norm() -> None:
    """Gradients that differ over an axis in no spec are other gradients, and no shards of one."""
    mesh = mesh_of()
    tx = inside_shard_map(gk.clip_by_global_norm(1.0), P("fsdp"))

    def norm(scale: jax.Array, g: jax.Array) -> jax.Array:
        return tx.update(scale * g, tx.init(g))[1].metrics["gradient_norm"].reshape(1)

    each = jax.shard_map(norm, mesh=mesh, in_specs=(P("data"), P("fsdp")), out_specs=P("data"))
    assert jax.jit(each)(jnp.array([1.0, 3.0]), jnp.array([3.0, 4.0])).tolist() == [5.0, 15.0]


def test_under_vmap_with_an_axis_name() -> None:
    tx = inside_shard_map(gk.clip_by_global_norm(1.0), P("fsdp"))
    clip = jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="fsdp")
    np.testing.assert_allclose(np.asarray(clip(jnp.array([[3.0], [4.0]]))), [[0.6], [0.8]], rtol=3e-7)


def test_a_source_inside_shard_map() -> None:
    """SAM at sharded parameters climbs by the norm of the whole gradient."""
    mesh, w = mesh_of(), jnp.array([3.0, 0.0, 0.0, 4.0])

    def gradient(w: jax.Array) -> jax.Array:
        with declare_specs(w, P("tensor")):
            return gk.gradients.sam(lambda w: jnp.sum(w**2) / 2, rho=0.5)(w)[1]

    there = jax.shard_map(gradient, mesh=mesh, in_specs=P("tensor"), out_specs=P("tensor"))(w)
    np.testing.assert_allclose(there, 1.1 * w, rtol=3e-7)


def test_specs_that_do_not_fit_raise() -> None:
    mesh = mesh_of()

    def update(specs: Any, g: Any, around: Any = lambda tx: tx) -> Any:
        tx = inside_shard_map(around(gk.clip_by_global_norm(1.0)), specs)
        return jax.shard_map(lambda g: tx.update(g, tx.init(g))[0], mesh=mesh, in_specs=P(), out_specs=P())(g)

    with pytest.raises(ValueError, match=r"the spec P\('fsdp', 'tensor'\) of 'a' has more entries"):
        update({"a": P("fsdp", "tensor")}, {"a": jnp.ones(4)})
    with pytest.raises(ValueError, match="say nothing of the leaf ''"):
        update({"a": P("fsdp")}, {"a": jnp.ones(4)}, around=optax.flatten)
    with pytest.raises(ValueError, match="Dict key mismatch"):
        update({"b": P("fsdp")}, {"a": jnp.ones(4)})


def test_one_device_pays_nothing() -> None:
    """The program on one device has a sum per leaf and one of these, of the squares and of those of numbers made
    smaller, and no trace of the rest; there are derivatives."""
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.arange(4.0)}
    text = jax.jit(global_norm).lower(tree).as_text()
    assert text.count("stablehlo.reduce(") == 2 * 3
    assert "custom_call" not in text and "barrier" not in text
    norm = np.sqrt(np.sum(np.arange(6.0) ** 2) + np.sum(np.arange(4.0) ** 2))
    mesh = mesh_of()
    cut = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P("fsdp"))), tree)
    for t in (tree, cut):
        slope = jax.jit(jax.grad(global_norm))(t)
        assert_close(slope, jax.tree.map(lambda x: x / norm, tree), 16)


def test_float64_of_this_thread_alone(x64: None) -> None:
    """The compiler asks back in another thread, where float64 may be unknown: the sums are right, one by one."""
    mesh = mesh_of()
    x = jax.device_put(jnp.full(8, 1.0 + 2.0**-40), NamedSharding(mesh, P("fsdp")))
    got = jax.jit(global_norm)([x])
    assert got.dtype == np.float64
    np.testing.assert_allclose(float(got), np.sqrt(8.0) * (1 + 2.0**-40), rtol=8 * np.finfo(np.float64).eps)
