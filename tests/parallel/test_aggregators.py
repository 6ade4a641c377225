"""What aggregators move between eight devices, by the programs that are compiled: one test over all makers.

An aggregator of the Gramian asks for one sum of m^2 numbers and nothing else, whatever it does with them; weights of
losses, fixed weights and rules for one coordinate ask for nothing; norms for a few numbers per gradient. No gradient,
and no parameter, is ever gathered.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.catalogue import cards
from gradkit.engine.extras import samples
from gradkit.parallel import make_mesh
from gradkit.parallel.traffic import collective_bytes

pytestmark = [pytest.mark.slow, pytest.mark.full_pipeline]

SHAPES = {"bias": (64,), "kernel": (32, 64), "other": (64, 32)}
SPECS = {"bias": P("fsdp"), "kernel": P("fsdp", None), "other": P(None, "fsdp")}
# Of every maker the method that does most with what it is given, and the numbers that may travel for m gradients.
ONE_OF_EACH = {
    "cagrad": lambda m: len(SHAPES) * m * m,
    "gradvac": lambda m: len(SHAPES) * m * m,
    "stch": lambda m: 0,
    "mean": lambda m: 0,
    "trimmed_mean": lambda m: 0,
    "graddrop": lambda m: 0,
    "gradnorm": lambda m: len(SHAPES) * m,
    "excess_mtl": lambda m: len(SHAPES) * m,
    "bloop": lambda m: 2 * len(SHAPES),
}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_only_a_few_numbers_travel(name: str) -> None:
    """Compiled for gradients that are sharded over eight devices like the parameters; the update stays so."""
    card = cards("aggregator")[name]
    m = card.tasks.nearest(4)
    tx = card.function(**card.example_for(m))
    mesh = make_mesh("fsdp=8")

    def shard(shape: tuple[int, ...], spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    params = {leaf: shard(shape, SPECS[leaf]) for leaf, shape in SHAPES.items()}
    grads = {leaf: shard((m, *shape), P(None, *SPECS[leaf])) for leaf, shape in SHAPES.items()}
    state = gk.parallel.init_sharded(tx, params)
    extra = samples({leaf: np.zeros((m, 1), np.float32) for leaf in SHAPES}, card.needs)

    def update(g: object, state: object, x: object) -> object:
        return tx.update(g, state, x, **extra)[0]

    compiled = jax.jit(update, out_shardings={leaf: x.sharding for leaf, x in params.items()}).lower(
        grads, state, params
    )
    found = collective_bytes(compiled.compile())
    numbers = sum(math.prod(shape) for each in found for shape in each.shapes)
    assert {each.opcode for each in found} <= {"all-reduce"}
    assert numbers <= ONE_OF_EACH[name](m), found
    if card.collectives == "gramian":
        # The leaves are added up before they travel, or each by itself.
        assert {math.prod(shape) for each in found for shape in each.shapes} == {m * m}


def test_every_maker_and_every_word_of_a_card_is_there() -> None:
    """What a card says of collectives is what is measured here, of one method for each."""
    words = {cards("aggregator")[name].collectives for name in ONE_OF_EACH}
    assert words == {card.collectives for card in cards("aggregator").values()}
