"""What optax asks of its own optimizers in its tests of aliases and of shardings, asked of every method.

Under a trace alone: what a program computes is known to be right from the other points. That a hyperparameter can be
injected, found and set is in `tests/test_injection.py`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.catalogue import Card
from gradkit.leaves.keeping import Kept, without_kept
from tests.contract.methods import SMALL, draw, in_float64, methods
from tests.contract.shared import shared
from tests.stand_ins import NamedArray, named

DTYPES = {"bias": jnp.float16, "kernel": jnp.bfloat16, "conv": np.float32, "scale": np.float64}
SHAPES = {"bias": (4,), "kernel": (6, 4), "conv": (2, 2, 3, 4), "scale": ()}


def types(tree: Any) -> list[Any]:
    """Structure, shapes, dtypes, weak types and shardings: all that `lax.cond` and `lax.scan` compare."""
    leaves = map(jax.typeof, jax.tree.leaves(tree))
    return [jax.tree.structure(tree), *((x.shape, x.dtype, x.weak_type, x.sharding.spec) for x in leaves)]


def traced(f: Any, *args: Any) -> None:
    jax.make_jaxpr(f)(*args)


@methods("as optax")
@in_float64
def test_a_branch_and_a_loop_keep_the_types(card: Card) -> None:
    """A step that is taken or not, by `lax.cond` and in a `lax.scan`, with four dtypes at once; an unknown argument."""
    tx = shared(card).tx
    params = {name: jnp.ones(SHAPES[name], dtype) for name, dtype in DTYPES.items()}

    def program(params: Any, taken: Any) -> Any:
        state = tx.init(params)

        def step(carry: Any, _: Any) -> Any:
            updates, after = jax.lax.cond(
                taken, lambda: tx.update(params, carry, params, nobody_knows_this=1), lambda: (params, carry)
            )
            assert types(updates) == types(params)
            direct, same = tx.update(params, carry, params)
            assert types(direct) == types(params)
            assert types(same) == types(carry) == types(after)
            return after, None

        return jax.lax.scan(step, state, None, length=2)

    traced(program, params, np.bool_(True))


@methods("as optax")
def test_leaves_that_are_none_or_masked(card: Card) -> None:
    """They stay what they are, and have no state."""
    tx, bare = shared(card).tx, draw(0, {"bias": (4,), "kernel": (6, 4)})
    tree = {"block": {**bare, "absent": None}, "masked": optax.MaskedNode()}

    def program(tree: Any, bare: Any) -> Any:
        state, want = tx.init(tree), tx.init({"block": bare})
        assert [x.shape for x in jax.tree.leaves(state)] == [x.shape for x in jax.tree.leaves(want)]
        updates, after = tx.update(tree, state, tree)
        assert jax.tree.structure(updates) == jax.tree.structure(tree)
        assert types(after) == types(state)
        return updates

    traced(program, tree, bare)


@methods("as optax")
def test_shardings_are_part_of_the_type(card: Card) -> None:
    """Over Explicit axes the state of an update has the types, shardings among them, that `init` gave it."""
    tx = shared(card).tx
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(np.zeros((2, 8, 4), jnp.float16), NamedSharding(mesh, P(None, "x")))
        params = {"layers": {"kernel": x}}

        def program(params: Any) -> Any:
            state = tx.init(params)
            updates, after = tx.update(params, state, params)
            assert types(updates) == types(params)
            assert types(after) == types(state)
            return updates

        traced(program, params)


@methods("as optax")
def test_what_init_keeps_of_names_of_axes(card: Card) -> None:
    """Where names on boxes say what shapes do not, the state is for all who map it that of bare stacked layers."""
    tx, shape = shared(card).tx, jax.ShapeDtypeStruct((4, 3, 6), jnp.float32)
    boxed = {"mix": {"kernel": nn.LogicallyPartitioned(shape, ("embed", "layers", "mlp"))}}
    bare = {"mix": {"kernel": shape}}
    state: Any = nn.meta.unbox(jax.eval_shape(tx.init, boxed))
    # It stands around a number in every state; a state by names of leaves is opted out of being mapped.
    kept = [x for x in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Kept)) if isinstance(x, Kept)]
    assert all(map(is_number, kept))
    if "map_params" not in card.opt_outs:
        layers = jax.eval_shape(tx.init, {"ScanBlock_0": {"kernel": jax.ShapeDtypeStruct((3, 4, 6), jnp.float32)}})
        marked, want = (
            optax.tree.map_params(tx, lambda _: "parameter", own, transform_non_params=lambda _: "none")
            for own in (state, layers)
        )
        assert jax.tree.leaves(marked) == jax.tree.leaves(want)
    if "input_moment" in card.needs:
        return  # the sample is that of the layout without names
    updates, after = jax.eval_shape(tx.update, bare, state, bare)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.structure(updates) == jax.tree.structure(bare)


def is_number(kept: Kept) -> bool:
    return jax.tree.structure(without_kept(kept)) == jax.tree.structure(0)


@methods("as optax")
def test_a_node_with_one_array_is_a_leaf(card: Card) -> None:
    """A leaf in a registered node, such as a named array, gets the name, the state and the program of a bare one; one
    that is masked in such a node is masked."""
    tx, leaves = shared(card).tx, draw(0, SMALL)
    axes = {"bias": ("mlp",), "kernel": ("embed", "mlp")}
    bare = {"block": leaves, "other": optax.MaskedNode()}
    nodes = {"block": {n: named(x, *axes[n]) for n, x in leaves.items()}, "other": NamedArray(optax.MaskedNode(), ())}
    state, want = jax.eval_shape(tx.init, nodes), jax.eval_shape(tx.init, bare)
    for own, same in ((nodes, bare), (state, want)):
        assert gk.leaves.names(own) == gk.leaves.names(same)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(state)] == [(x.shape, x.dtype) for x in jax.tree.leaves(want)]
    program, (updates, after) = jax.make_jaxpr(tx.update, return_shape=True)(nodes, state, nodes)
    assert str(program) == str(jax.make_jaxpr(tx.update)(bare, want, bare))
    assert jax.tree.structure(updates) == jax.tree.structure(nodes)
    assert jax.tree.structure(after) == jax.tree.structure(state)
