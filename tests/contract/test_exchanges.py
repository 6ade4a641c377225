"""The contract of exchanges: the gradient of every replica goes in, and one that all of them share comes out."""

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

from gradkit import catalogue
from gradkit.catalogue import Card
from gradkit.parallel import init_replicas, replicate
from tests.contract.forms import of, ranged, refuses
from tests.contract.methods import close, draw, other_trees

pytestmark = pytest.mark.slow

W = 8
SHAPES = {"bias": (2,), "kernel": (6, 4), "scale": ()}
# Two programs of the same float32 arithmetic differ by a few roundings of 2^-24 per step, on numbers below 8.
F32 = 3 * 8 * 8 * 2**-24


def make(card: Card, **changes: Any) -> optax.GradientTransformationExtraArgs:
    return card.function(**{**card.example, **changes})


def gradients(step: int, replicas: int = W, dtype: Any = np.float32) -> Any:
    """One row per replica, each of its own."""
    rows = [draw(100 * step + w, SHAPES, dtype) for w in range(replicas)]
    return jax.tree.map(lambda *x: jnp.stack([jnp.asarray(v) for v in x]), *rows)


def program(tx: Any) -> Any:
    return jax.vmap(lambda g, s, p: tx.update(g, s, p), axis_name="replica")


@functools.cache
def _program(function: Any) -> Any:
    return jax.jit(program(make(catalogue.find(function.__name__))))


def run(card: Card, how: Any = None, steps: int = 3, replicas: int = W, dtype: Any = np.float32) -> Any:
    """What every step gives, and the state after the last."""
    how, params = how or _program(card.function), gradients(99, replicas, dtype)
    state, out = init_replicas(make(card), params), []
    for t in range(steps):
        mean, state = how(gradients(t, replicas, dtype), state, params)
        out.append(mean)
    return out, state


def numbers(tree: Any) -> Any:
    """Keys as the numbers they are."""
    typed = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: jax.random.key_data(x) if typed(x) else x, tree)


def signature(tree: Any) -> Any:
    return jax.tree.structure(tree), [(x.shape, x.dtype, getattr(x, "weak_type", False)) for x in jax.tree.leaves(tree)]


@of("exchange", "jit")
def test_jit_equals_eager(card: Card) -> None:
    close(numbers(run(card, program(make(card)), 2)), numbers(run(card, steps=2)), 0, F32)


@of("exchange", "scan")
def test_scan_equals_the_loop(card: Card) -> None:
    """And scan itself refuses a state whose structure, shapes, dtypes or weak types change."""
    params, tx = gradients(99), make(card)
    grads = jax.tree.map(lambda *g: jnp.stack(g), *[gradients(t) for t in range(3)])

    def one(state: Any, g: Any) -> Any:
        mean, state = program(tx)(g, state, params)
        return state, mean

    state, means = jax.jit(lambda s, g: jax.lax.scan(one, s, g))(init_replicas(tx, params), grads)
    looped, end = run(card)
    close(jax.tree.map(lambda *x: jnp.stack(x), *looped), means, 0, F32)
    close(numbers(end), numbers(state), 0, F32)


@of("exchange", "mesh")
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_one_device_equals_a_mesh(card: Card, kind: AxisType) -> None:
    """Under `vmap` and under `shard_map`, where a step after another one has the same types; born on the mesh."""
    want, end = run(card)
    mesh = jax.make_mesh((W,), ("replica",), axis_types=(kind,))
    tx = make(card)
    place = functools.partial(jax.tree.map, lambda x: jax.device_put(x, NamedSharding(mesh, P("replica"))))

    def block(*args: Any) -> Any:
        out = tx.update(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: x[None], out)

    with jax.set_mesh(mesh):
        step = jax.jit(jax.shard_map(block, mesh=mesh, in_specs=P("replica"), out_specs=P("replica")))
        params = place(gradients(99))
        state = init_replicas(tx, params)
        for t in range(3):
            mean, state = step(place(gradients(t)), state, params)
            close(want[t], mean, 0, F32)
            for x in jax.tree.leaves(state):
                assert x.sharding.is_equivalent_to(NamedSharding(mesh, P("replica")), x.ndim)
    close(numbers(end), numbers(state), 0, F32)
    for x in map(np.asarray, jax.tree.leaves(mean)):
        np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape))


@of("exchange", "agree")
def test_all_replicas_get_the_same_bits(card: Card) -> None:
    for mean in run(card)[0]:
        for x in map(np.asarray, jax.tree.leaves(mean)):
            np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape))


@of("exchange", "state")
def test_the_state_never_changes_its_form(card: Card) -> None:
    tx, params = make(card), draw(0, SHAPES)
    state = tx.init(params)
    assert signature(state) == signature(jax.eval_shape(tx.init, params))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert jax.tree.map(jnp.shape, tx.init(shapes)) == jax.tree.map(jnp.shape, state)
    # Of the shape of the parameters, whatever a compressor keeps beside: of leaves that it leaves out, nothing.
    kernels = [x for x in jax.tree.leaves(state) if x.shape == SHAPES["kernel"]]
    assert len(kernels) == card.words
    many = init_replicas(tx, gradients(0))
    assert signature(jax.eval_shape(program(tx), gradients(0), many, gradients(0))[1]) == signature(many)


@of("exchange", "trees")
def test_any_container(card: Card) -> None:
    """The program does not depend on what holds the leaves; a tree without leaves stays one."""
    tx, want = make(card), None
    for name, tree in other_trees().items():
        mean, _ = program(tx)(replicate(tree, 2), init_replicas(tx, replicate(tree, 2)), replicate(tree, 2))
        assert jax.tree.structure(mean) == jax.tree.structure(tree), name
        want = jax.tree.leaves(mean) if want is None else want
        close(want, jax.tree.leaves(mean), 0, F32)
    empty = jax.vmap(lambda g, s: tx.update(g, s), axis_name="replica", axis_size=2)
    assert empty({}, jax.tree.map(lambda x: jnp.stack([x, x]), tx.init({})))[0] == {}


@of("exchange", "bfloat16")
def test_bfloat16_gradients(card: Card) -> None:
    """From the same numbers, what leaves is the float32 result rounded once."""
    low, high = run(card, steps=1, dtype=jnp.bfloat16)[0][0], run(card, steps=1)[0][0]
    for a, b in zip(jax.tree.leaves(low), jax.tree.leaves(high), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=2**-8, atol=F32)


@of("exchange", "float64")
def test_every_leaf_keeps_its_dtype(card: Card, x64: None) -> None:
    tx, params = make(card), draw(0, SHAPES, np.float64)
    mixed = {**params, "bias": params["bias"].astype(jnp.bfloat16), "scale": params["scale"].astype(jnp.float32)}
    many = replicate(mixed, 2)
    mean = jax.eval_shape(program(tx), many, init_replicas(tx, many), many)[0]
    assert jax.tree.map(lambda x: x.dtype, mean) == jax.tree.map(lambda x: x.dtype, mixed)


@of("exchange", "zeros")
def test_zero_gradients_give_zero(card: Card) -> None:
    """At the start, and no NaN in what is kept for later."""
    g = jax.tree.map(jnp.zeros_like, gradients(0))
    mean, state = _program(card.function)(g, init_replicas(make(card), g), g)
    assert not any(np.any(x) for x in jax.tree.leaves(mean))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(numbers(state)))


@of("exchange", "nan")
def test_what_is_not_a_number_is_not_hidden(card: Card) -> None:
    """A replica that diverges is seen by all: its leaf is not finite everywhere it is heard of."""
    g = gradients(0)
    g = {**g, "kernel": g["kernel"].at[3, 2, 1].set(jnp.nan)}
    mean, _ = _program(card.function)(g, init_replicas(make(card), g), g)
    assert not np.isfinite(mean["kernel"]).all(axis=(1, 2)).any()
    assert np.isfinite(mean["bias"]).all()


@of("exchange", "bad input")
@pytest.mark.parametrize("bad", [math.nan, -1.0, "high"])
def test_bad_arguments_are_refused_by_name(card: Card, bad: object) -> None:
    for name in ranged(card):
        if name != "axis_name" and not callable(getattr(card.example.get(name), "init", None)):
            refuses(card, name, bad)


@of("exchange", "bad use")
def test_what_does_not_fit_is_refused_before_any_arithmetic(card: Card) -> None:
    tx, params = make(card), draw(0, SHAPES)
    state = tx.init(params)
    with pytest.raises(ValueError, match="do not match the parameters: missing"):
        tx.update({"bias": params["bias"]}, state, params)
    with pytest.raises(ValueError, match="only floating point leaves"):
        tx.init({"n": jnp.zeros(3, jnp.int32)})
    with pytest.raises(ValueError, match="there is no axis 'replica' here"):
        tx.update(params, state, params)
    assert "axis_name" in inspect.signature(card.function).parameters
    with pytest.raises(ValueError, match="axis_name must be"):
        make(card, axis_name=None)
