"""Contract 7 and 8 for what is no link of a chain: sources, aggregators, strategies, schedules, meters.

On a mesh of (data, fsdp, tensor) every one of them gives what one device gives, and what has a state goes on from a
checkpoint of it with the same bits.
"""

import inspect
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.catalogue import Card
from gradkit.engine.extras import samples
from gradkit.parallel import init_replicas, make_mesh, replicate
from gradkit.training import Checkpoints
from tests.contract.forms import of
from tests.contract.methods import draw, grads_like, same

pytestmark = pytest.mark.slow

SHAPES = {"bias": (16,), "kernel": (8, 16)}
SPECS = {"bias": P("tensor"), "kernel": P("fsdp", "tensor")}
EPS = float(np.finfo(np.float32).eps)


def put(tree: Any, specs: Any = SPECS, lead: tuple[Any, ...] = ()) -> Any:
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    return jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, P(*lead, *s))), tree, specs)


def near(got: Any, want: Any, roundings: int) -> None:
    """To a number of roundings of the largest entry of each leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=0, atol=roundings * EPS * np.abs(y).max(initial=0))


def loss(params: Any, batch: jax.Array) -> jax.Array:
    h = jnp.tanh(batch @ params["kernel"] + params["bias"][None])
    return jnp.mean(jnp.sum(h**2, axis=1))


@of("source", "mesh")
def test_a_source_on_a_mesh(card: Card) -> None:
    """Parameters cut along two axes, the batch along the third."""
    alone = lambda params, batch: [loss(params, batch)]  # noqa: E731 - of the one task there is
    source = card.function(alone if card.name == "task_gradients" else loss, **card.example)
    drawn = {"key": 7} if "key" in card.needs else {}

    @jax.jit
    def fn(params: Any, batch: jax.Array) -> Any:
        value, g = source(params, batch, **drawn)
        return (value, g.stacked()) if isinstance(g, gk.gradients.LazyGradients) else (value, g)

    params = draw(0, SHAPES)
    batch = jnp.asarray(np.random.default_rng(1).standard_normal((8, 8)), jnp.float32)
    want = fn(params, batch)
    got = fn(put(params), put(batch, P("data")))
    # Sums of 8 products, 16 squares and 8 examples in another order, twice where a source looks at a second point;
    # norms of 144 squares.
    near(got, want, 2 * 144)


def aggregate(card: Card, grads: Any, params: Any, state: Any) -> tuple[Any, Any]:
    tx = card.function(**card.example_for(card.tasks.nearest(3)))
    extra = samples(grads, card.needs)
    return jax.jit(lambda g, s, p: tx.update(g, s, p, **extra))(grads, state, params)


@of("aggregator", "mesh")
def test_an_aggregator_on_a_mesh(card: Card, tmp_path: Path) -> None:
    m = card.tasks.nearest(3) * card.tasks.batches
    params = draw(0, SHAPES)
    grads = {name: jnp.asarray(x) for name, x in draw(1, {name: (m, *s) for name, s in SHAPES.items()}).items()}
    state = card.function(**card.example_for(card.tasks.nearest(3))).init(params)
    want, after = aggregate(card, grads, params, state)
    got, _ = aggregate(card, put(grads, lead=(None,)), put(params), state)
    # A Gramian is of sums of 144 products in another order; three weights are made of it, some by a solver whose
    # answer moves with the condition of the three gradients, which is below 8 here.
    near(got, want, 8 * 144)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": params, "opt_state": after})
        back, _ = checkpoints.restore({"params": params, "opt_state": after})
    same(aggregate(card, grads, params, after), aggregate(card, grads, back["params"], back["opt_state"]))


@of("strategy", "checkpoint")
def test_a_strategy_goes_on_from_a_checkpoint(card: Card, tmp_path: Path) -> None:
    """In the middle of a round, on a mesh of replicas that are cut themselves, and on another mesh."""
    first, *others = inspect.signature(card.function).parameters
    rounds = {"sync_every": 3} if "sync_every" in others else {}
    tx = card.function(0.1 if first == "learning_rate" else gk.sgd(0.1, momentum=0.9), **{**card.example, **rounds})

    @jax.jit
    def step(params: Any, state: Any, t: Any) -> Any:
        def one(p: Any, s: Any, g: Any) -> Any:
            updates, s = tx.update(g, s, p, **samples(g, card.needs))
            return optax.apply_updates(p, updates), s

        grads = jax.tree.map(lambda x, g: g.astype(x.dtype) * (1 + t), params, shared)
        return jax.vmap(one, axis_name="replica")(params, state, grads)

    here = draw(0, SHAPES)
    shared = grads_like({name: jnp.zeros((4, *s), jnp.float32) for name, s in SHAPES.items()}, 0)
    mesh = make_mesh("replica=4,fsdp=2")
    lies = {"bias": NamedSharding(mesh, P("fsdp")), "kernel": NamedSharding(mesh, P(None, "fsdp"))}
    params = replicate(jax.device_put(here, lies), 4)
    state = init_replicas(tx, params)
    for t in (0.0, 1.0):
        params, state = step(params, state, t)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, {"params": params, "opt_state": state})
        back, _ = checkpoints.restore({"params": params, "opt_state": state})
        alone = replicate(here, 4)
        other, _ = checkpoints.restore({"params": alone, "opt_state": init_replicas(tx, alone)})
    for x, y in zip(jax.tree.leaves(back), jax.tree.leaves({"params": params, "opt_state": state}), strict=True):
        assert x.sharding == y.sharding
    want = step(params, state, 2.0)  # ends the round
    same(want, step(back["params"], back["opt_state"], 2.0))
    near(step(other["params"], other["opt_state"], 2.0), want, 8)


@of("schedule", "mesh")
def test_a_schedule_of_a_counter_that_all_devices_have(card: Card) -> None:
    schedule = card.function(**card.example)
    step = jnp.asarray(3, jnp.int32)
    same(jax.jit(schedule)(step), jax.jit(schedule)(put(step, P())))


@of("diagnostic", "mesh")
def test_a_meter_of_numbers_that_all_devices_have(card: Card) -> None:
    if "loss_fn" in inspect.signature(card.function).parameters:
        return  # a function of the loss and of trees that lie wherever they lie: nothing of its own to go wrong here
    meter = card.function(**card.example)
    keywords = (p for p in inspect.signature(meter.update).parameters.values() if p.kind is p.KEYWORD_ONLY)
    values = {p.name: jnp.asarray(2.0 + i) for i, p in enumerate(keywords)}
    update = jax.jit(lambda state, values: meter.update(state, **values))
    state = meter.init()
    whole = jax.tree.map(lambda _: P(), (state, values))
    same(update(state, values), update(*put((state, values), whole)))
