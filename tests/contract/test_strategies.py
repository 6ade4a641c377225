"""The contract of strategies: one transformation, the same on one device and on a mesh, on any tree, in any program.

A strategy is built around SGD with momentum where it takes an inner transformation, and of a learning rate where it
takes one. Its card's example ends a round every second step, so that three steps see all there is.
"""

import functools
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.catalogue import Card
from gradkit.engine.extras import samples
from gradkit.parallel import collective_bytes, init_replicas, replicate, synchronize
from tests.contract.forms import of, refuses
from tests.contract.methods import close, draw, grads_like, other_trees, same, step
from tests.traces import counted

pytestmark = pytest.mark.slow

W = 8
SHAPES = {"bias": (2,), "kernel": (3, 2), "scale": ()}
# Two programs of the same float32 arithmetic differ by a few roundings of 2^-24 per step, on numbers below 4.
F32 = 3 * 8 * 4 * 2**-24


def make(card: Card, inner: Any = None, **changes: Any) -> optax.GradientTransformationExtraArgs:
    first = next(iter(inspect.signature(card.function).parameters))
    assert first in ("inner", "learning_rate")
    argument = 0.1 if first == "learning_rate" else gk.sgd(0.1, momentum=0.9) if inner is None else inner
    return card.function(argument, **{**card.example, **changes})


def stepper(tx: Any, sync: Any = None) -> Any:
    """One step of one replica, as every loop takes it."""
    return functools.partial(step, tx, sync=sync)


def run(tx: Any, params: Any, program: Any, steps: int = 3) -> Any:
    state = init_replicas(tx, params)
    for t in range(steps):
        params, state = program(params, state, grads_like(params, t))
    return params, state


def on_mesh(tx: Any, mesh: Any, sync: Any = None) -> Any:
    """The step under `shard_map`, replicas along the only axis."""

    def block(*args: Any) -> Any:
        out = stepper(tx, sync)(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: x[None], out)

    return jax.jit(jax.shard_map(block, mesh=mesh, in_specs=P("replica"), out_specs=P("replica")))


def signature(tree: Any) -> Any:
    return jax.tree.structure(tree), [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]


@of("strategy", "jit")
def test_jit_equals_eager_and_compiles_once(card: Card) -> None:
    tx, params = make(card), replicate(draw(0, SHAPES), W)
    program = jax.vmap(stepper(tx), axis_name="replica")
    jitted, traces = counted(program)
    close(run(tx, params, program), run(tx, params, jitted), 0, F32)
    assert len(traces) == 1


@of("strategy", "scan")
def test_scan_equals_the_loop(card: Card) -> None:
    tx, params = make(card), replicate(draw(0, SHAPES), W)
    program = jax.vmap(stepper(tx), axis_name="replica")
    grads = jax.tree.map(lambda *g: jnp.stack(g), *[grads_like(params, t) for t in range(3)])
    scanned, _ = jax.jit(lambda c, g: jax.lax.scan(lambda c, g: (program(*c, g), None), c, g))(
        (params, init_replicas(tx, params)), grads
    )
    close(run(tx, params, jax.jit(program)), scanned, 0, F32)


@of("strategy", "mesh")
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_one_device_equals_a_mesh(card: Card, kind: AxisType) -> None:
    """Under `vmap` and under `shard_map`; born and kept on the mesh, and without a collective within a round."""
    tx, params = make(card), draw(0, SHAPES)
    want = run(tx, replicate(params, W), jax.jit(jax.vmap(stepper(tx), axis_name="replica")))
    mesh = jax.make_mesh((W,), ("replica",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        there = replicate(jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P())), params), W)
        state = init_replicas(tx, there)
        for t in range(3):
            grads = jax.tree.map(lambda g: jax.device_put(g, NamedSharding(mesh, P("replica"))), grads_like(there, t))
            program = on_mesh(tx, mesh)
            there, state = program(there, state, grads)
            for x in jax.tree.leaves((there, state)):
                assert x.sharding.is_equivalent_to(NamedSharding(mesh, P("replica")), x.ndim)
        close(want, (there, state), 0, F32)
        rows = {
            s: collective_bytes(on_mesh(tx, mesh, s).lower(there, state, grads).compile()) for s in (None, False, True)
        }
    assert rows[False] == ()
    size = card.sent * 4 * sum(x.size for x in jax.tree.leaves(params))
    assert sum(row.result_bytes for row in rows[True]) == sum(row.result_bytes for row in rows[None]) == size


@of("strategy", "agree")
def test_replicas_agree_when_a_round_ends_and_only_then(card: Card) -> None:
    tx, params = make(card), replicate(draw(0, SHAPES), W)
    program = jax.jit(jax.vmap(stepper(tx), axis_name="replica"))
    for steps in (1, 2, 3, 4):
        end, state = run(tx, params, program, steps)
        for x in jax.tree.leaves(end):
            assert (np.ptp(x, axis=0).max() <= F32) == (steps % 2 == 0)
    meet = jax.jit(jax.vmap(lambda p, s: synchronize(tx, p, s), axis_name="replica"))
    for steps in (1, 3):
        end, state = meet(*run(tx, params, program, steps))
        assert signature(state) == signature(init_replicas(tx, params))
        for x in map(np.asarray, jax.tree.leaves(end)):
            np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape))


@of("strategy", "state")
def test_the_state_never_changes_its_form(card: Card) -> None:
    tx, params = make(card), draw(0, SHAPES)
    state = tx.init(params)
    assert signature(state) == signature(jax.eval_shape(tx.init, params))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert jax.tree.map(jnp.shape, tx.init(shapes)) == jax.tree.map(jnp.shape, state)
    words = sum(x.size for x in jax.tree.leaves(state)) - sum(x.ndim == 0 for x in jax.tree.leaves(state))
    inner = 0 if "learning_rate" in inspect.signature(card.function).parameters else 1  # the momentum
    whole = [x.size for x in jax.tree.leaves(params) if x.ndim]
    assert words == (card.words + inner) * sum(whole)
    for sync in (None, False, True):
        many = replicate(params, W)
        program = jax.vmap(stepper(tx, sync), axis_name="replica")
        end = jax.eval_shape(program, many, init_replicas(tx, many), many)
        assert signature(end) == signature((many, init_replicas(tx, many)))


@of("strategy", "trees")
def test_any_container(card: Card) -> None:
    """The program does not depend on what holds the leaves; a tree without leaves stays one."""
    tx, want = make(card), None
    program = jax.vmap(stepper(tx), axis_name="replica", axis_size=2)
    for name, tree in other_trees().items():
        end, _ = run(tx, replicate(tree, 2), program, 2)
        assert jax.tree.structure(end) == jax.tree.structure(tree), name
        want = jax.tree.leaves(end) if want is None else want
        close(want, jax.tree.leaves(end), 0, F32)
    assert program({}, replicate(tx.init({}), 2), {})[0] == {}


@of("strategy", "bfloat16")
def test_bfloat16_parameters(card: Card) -> None:
    """They leave as they came, near the run in float32; the mean of replicas is taken in float32."""
    tx, start = make(card), draw(0, SHAPES, jnp.bfloat16)
    program = jax.jit(jax.vmap(stepper(tx), axis_name="replica"))
    low, _ = run(tx, replicate(start, W), program)
    high, _ = run(tx, replicate(jax.tree.map(lambda x: x.astype(jnp.float32), start), W), program)
    for a, b in zip(jax.tree.leaves(low), jax.tree.leaves(high), strict=True):
        assert a.dtype == jnp.bfloat16
        # Each of three steps rounds the update and the sum, numbers below 4, by 2^-9 of their size; once more at sync.
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=0, atol=4 * 3 * 4 * 2**-9)

    meet = jax.vmap(lambda p, s: synchronize(tx, p, s), axis_name="replica")
    near = jnp.concatenate([jnp.full((W - 1, 2), 1.0, jnp.bfloat16), jnp.full((1, 2), 1 + 2.0**-7, jnp.bfloat16)])
    state = jax.vmap(tx.init)(jnp.ones_like(near))
    np.testing.assert_array_equal(meet(near, state)[0].astype(jnp.float32), 1.0)


@of("strategy", "float64")
def test_every_leaf_keeps_its_dtype(card: Card, x64: None) -> None:
    params = draw(0, SHAPES, np.float64)
    mixed = {**params, "bias": params["bias"].astype(jnp.bfloat16), "scale": params["scale"].astype(jnp.float32)}
    tx, many = make(card), replicate(mixed, W)
    end, _ = run(tx, many, jax.vmap(stepper(tx), axis_name="replica"), 2)
    assert jax.tree.map(lambda x: x.dtype, end) == jax.tree.map(lambda x: x.dtype, many)


@of("strategy", "donation")
def test_parameters_and_state_can_be_donated(card: Card) -> None:
    tx, params = make(card), replicate(draw(0, SHAPES), W)
    want = run(tx, params, jax.jit(jax.vmap(stepper(tx), axis_name="replica")))
    donated = jax.jit(jax.vmap(stepper(tx), axis_name="replica"), donate_argnums=(0, 1))
    same(want, run(tx, replicate(draw(0, SHAPES), W), donated))
    # A state made without `jit`, as anyone would in a notebook.
    fresh = draw(0, SHAPES)
    alone = jax.jit(stepper(tx, False), donate_argnums=(0, 1))
    alone(fresh, tx.init(fresh), draw(1, SHAPES))


@of("strategy", "extra")
def test_extra_arguments_reach_the_inner_transformation(card: Card) -> None:
    """And `sync` does not: it is the strategy's own."""
    if "learning_rate" in inspect.signature(card.function).parameters:
        return
    seen = {}

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        seen.update(extra)
        return updates, state

    tx = make(card, optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update))
    params = draw(0, SHAPES)
    tx.update(params, tx.init(params), params, value=3.0, sync=False)
    assert seen == {"value": 3.0}


@of("strategy", "zeros")
def test_zero_gradients_leave_equal_replicas_where_they_are(card: Card) -> None:
    tx, params = make(card), replicate(draw(0, SHAPES), W)
    program = jax.vmap(stepper(tx), axis_name="replica")
    end, state = params, init_replicas(tx, params)
    for _ in range(3):
        end, state = program(end, state, jax.tree.map(jnp.zeros_like, params))
    close(params, end, 0, F32)


@of("strategy", "bad input")
@pytest.mark.parametrize("bad", [math.nan, -1.0, "high"])
def test_bad_arguments_are_refused_by_name(card: Card, bad: object) -> None:
    for name, parameter in inspect.signature(card.function).parameters.items():
        switch = parameter.default is None or isinstance(parameter.default, bool)
        if name == "learning_rate":
            with pytest.raises(ValueError, match="learning_rate must be"):
                card.function(bad, **card.example)
        elif name not in ("inner", "axis_name") and not switch:
            first = 0.1 if "learning_rate" in inspect.signature(card.function).parameters else gk.sgd(0.1)
            refuses(card, name, bad, first)


@of("strategy", "bad use")
def test_what_does_not_fit_is_refused_before_any_arithmetic(card: Card) -> None:
    tx, params = make(card, sync_every=1), draw(0, SHAPES)
    state = tx.init(params)
    with pytest.raises(ValueError, match="needs params"):
        tx.update(params, state)
    with pytest.raises(ValueError, match="do not match the parameters: missing"):
        tx.update({"bias": params["bias"]}, state, params)
    with pytest.raises(ValueError, match="only floating point leaves"):
        tx.init({"n": jnp.zeros(3, jnp.int32)})
    with pytest.raises(ValueError, match="there is no axis 'replica' here"):
        tx.update(params, state, params, **samples(params, card.needs))
    other = make(card, sync_every=1, axis_name="worker")

    def elsewhere(params: Any, state: Any) -> Any:
        return other.update(params, state, params, **samples(params, card.needs))

    with pytest.raises(ValueError, match="there is no axis 'worker' here"):
        jax.vmap(elsewhere, axis_name="replica")(replicate(params, W), replicate(state, W))
