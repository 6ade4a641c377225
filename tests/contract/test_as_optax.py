"""What optax asks of its own optimizers in its tests of aliases and of shardings, asked of every method.

Under a trace alone: what a program computes is known to be right from the other points. That a hyperparameter can be
injected, found and set is in `tests/test_injection.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gradkit.catalogue import Card
from tests.contract.methods import draw, in_float64, methods
from tests.contract.shared import shared

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
