"""Contract 3, 4 and 5: a method composes with everything, on any tree, and stacked layers are layers.

Every point is a plain function of a card.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import gradkit as gk
from gradkit.catalogue import Card
from tests.by_numpy import op_by_op
from tests.contract.methods import (
    SMALL,
    Model,
    as_it_is,
    close,
    combined_trees,
    draw,
    grads_like,
    in_float64,
    make,
    methods,
    run,
    same,
    supplied,
)
from tests.contract.shared import shared

F64 = 1e-12
# The more layers, the longer it compiles; of these all the same.
TEN_LAYERS = {"adaptive_grad_clip", "lamb", "lars", "muon"}


@pytest.mark.slow
@methods("wrappers")
@in_float64
def test_inside_other_transformations(card: Card) -> None:
    """Transformations of optax and gradkit around a method leave it what it is. Their Python runs as it is; the method
    in them is traced again only where they hand it another tree."""
    params, tx = draw(0, SMALL, np.float64), shared(card).numbers
    _, plain, _ = shared(card).reference[1]
    always = jax.tree.map(lambda _: True, params)
    wrapped = {
        "chain": optax.chain(optax.identity(), tx),
        "named_chain": optax.named_chain(("method", tx)),
        "masked": optax.masked(tx, always),
        "partition": optax.partition({"all": tx}, lambda tree: jax.tree.map(lambda _: "all", tree)),
        "groups": gk.leaves.groups([(gk.leaves.everything(), tx)]),
        "apply_if_finite": optax.apply_if_finite(tx, 3),
    }
    for outer in wrapped.values():
        with op_by_op():
            got, _ = run(outer, params, steps=2, how=as_it_is)
        close(plain, got, F64, F64)


@pytest.mark.slow
@methods("accumulation")
@in_float64
def test_multisteps(card: Card) -> None:
    """Two equal gradients accumulated are one."""
    params = draw(0, SMALL, np.float64)
    tx, g = optax.MultiSteps(shared(card).numbers, 2), grads_like(params, 0)
    with op_by_op(), jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic on counters
        first, state = tx.update(g, tx.init(params), params)
        second, state = tx.update(g, state, params)
    assert all(not np.any(np.asarray(u)) for u in jax.tree.leaves(first))
    close(shared(card).reference[0][0], second, F64, F64)


@methods("masked")
@in_float64
def test_only_its_own_leaves_count(card: Card) -> None:
    """In a partition a method sees its own leaves, and the result is as if there were no others; a method with a
    norm over all leaves together means those it is given."""
    params = draw(0, dtype=np.float64)
    own = {"kernel", "bias"}
    mask = {name: name in own for name in params}
    with op_by_op():
        got, _ = run(optax.masked(shared(card).numbers, mask), params, steps=2, how=as_it_is)
    part = {name: params[name] for name in own}
    state = shared(card).init(part)
    for step in range(2):
        g = grads_like(params, step)
        updates, state = shared(card).update({name: g[name] for name in own}, state, part)
        part = optax.apply_updates(part, updates)
    close({name: part[name] for name in sorted(own)}, {name: got[name] for name in sorted(own)}, F64, F64)


@methods("extra")
def test_extra_arguments_pass_through(card: Card) -> None:
    """What a method does not know is handed on to the links behind it, and by a wrapper to what it wraps."""
    seen = {}

    def spy(updates: object, state: object, params: object = None, **extra: object) -> tuple:
        seen.update(extra)
        return updates, state

    recorder = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), spy)
    params = draw(0)
    tx = optax.chain(make(card), recorder)
    g = grads_like(params, 0)
    # Shapes alone say who is handed what, and nothing need be computed.
    jax.eval_shape(lambda p: tx.update(g, tx.init(p), p, value=1.0, something_else=2), params)
    assert seen["value"] == 1.0 and seen["something_else"] == 2
    if card.form == "wrapper":
        around = gk.scale_by_adam() if card.wraps == "direction" else gk.sgd(0.1, momentum=0.9)
        inner = optax.chain(recorder, around)
        tx = supplied(card, card.function(inner, **card.example))
        seen.clear()
        jax.eval_shape(lambda p: tx.update(g, tx.init(p), p, value=3.0), params)
        assert seen == {"value": 3.0}


@pytest.mark.slow
@methods("flax")
def test_in_nnx_optimizer_and_linen_train_state(card: Card) -> None:
    """The optimizers of Flax take the steps that the method takes by itself."""
    model = Model(nnx.Rngs(0))
    start = nnx.as_pure(nnx.state(model, nnx.Param))
    tx = shared(card).numbers
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    g = grads_like(start, 0)
    variables = nnx.state(model, nnx.Param)
    for_nnx = jax.tree.unflatten(jax.tree.structure(variables), jax.tree.leaves(g))
    optimizer.update(model, for_nnx)
    optimizer.update(model, for_nnx)

    want, state = start, tx.init(start)
    for _ in range(2):
        updates, state = tx.update(g, state, want)
        want = optax.apply_updates(want, updates)
    close(want, nnx.as_pure(nnx.state(model, nnx.Param)), rtol=1e-6, atol=1e-7)

    linen = TrainState.create(apply_fn=lambda: None, params=start, tx=tx)
    linen = linen.apply_gradients(grads=g).apply_gradients(grads=g)
    close(want, linen.params, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@methods("trees")
def test_any_container(card: Card) -> None:
    """The numbers do not depend on what holds the leaves."""
    trees = combined_trees()
    want = jax.tree.leaves(run(shared(card).numbers, trees.pop("dict"), steps=2)[0])
    for name, tree in trees.items():
        got, _ = run(shared(card).numbers, tree, steps=2)
        assert jax.tree.structure(got) == jax.tree.structure(tree), name
        same(want, jax.tree.leaves(got))


@pytest.mark.slow
@methods("shapes")
def test_empty_trees_zero_sizes_and_all_ranks(card: Card) -> None:
    """Nothing at all, arrays without entries, and tensors of up to four axes: shapes stay, and numbers are finite."""
    assert run(shared(card).numbers, {})[0] == {}
    shapes = {"r0": (), "r1": (4,), "r2": (6, 4), "r3": (2, 1, 3), "r4": (1, 2, 2, 3), "none": (0, 4), "one": (1, 1)}
    params = draw(1, shapes)
    got, _ = run(shared(card).numbers, params, steps=2)
    for name, x in got.items():
        assert x.shape == params[name].shape
        assert np.isfinite(np.asarray(x)).all(), name


@pytest.mark.slow
@methods("stacked")
@in_float64
def test_stacked_layers_equal_separate_ones(card: Card) -> None:
    """Two layers in one leaf, as `nn.scan` makes them, are two layers; ten are ten; a scan of scans has four."""
    layers = 10 if card.name in TEN_LAYERS else 2
    block, inner = {"bias": (layers, 4), "query": {"kernel": (layers, 4, 2, 3)}}, {"kernel": (2, 2, 3, 4)}
    shapes = {"ScanBlock_0": block, "ScanOuter_0": {"ScanBlock_0": inner}, "head": {"kernel": (4, 2)}}

    def split(tree: Any) -> Any:
        tree = jax.tree.map(np.asarray, tree)
        outer = tree["ScanOuter_0"]["ScanBlock_0"]
        own = {f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], tree["ScanBlock_0"]) for i in range(layers)}
        own |= {f"inner_{i}{j}": jax.tree.map(lambda x, at=(i, j): x[at], outer) for i, j in np.ndindex(2, 2)}
        return {**own, "head": tree["head"]}

    def steps(params: Any, form: Callable[[Any], Any]) -> Any:
        all_grads = [form(grads_like(params, step)) for step in range(2)]
        params = form(params)
        state = shared(card).init(params)
        for g in all_grads:
            updates, state = shared(card).update(g, state, params)
            params = optax.apply_updates(params, updates)
        return params

    start = draw(4, shapes, np.float64)
    close(steps(start, split), split(steps(start, lambda tree: tree)), F64, F64)


def has_layout(card: Card) -> bool:
    return "layout" in inspect.signature(card.function).parameters


@pytest.mark.slow
@methods("layout", has_layout, "computes entry by entry, and has no argument `layout`")
@in_float64
def test_a_declared_stack_equals_the_recognised_one(card: Card) -> None:
    """Where a module has a name of its own, `layout` says that its first axis is a stack; or that it is none."""
    shapes = {"kernel": (5, 3, 4), "bias": (5, 4)}
    layers = draw(6, shapes, np.float64)
    stacked, joined = (gk.leaves.layout((gk.leaves.by_path("mix/.*"), {"stack": n})) for n in (1, 0))
    # A rate at which the bounds of no method hold all layers alike.
    declared, _ = run(make(card, 1.0, layout=stacked), {"mix": layers}, steps=2)
    recognised, _ = run(make(card, 1.0), {"ScanBlock_0": layers}, steps=2)
    close(recognised["ScanBlock_0"], declared["mix"], F64, F64)
    one_tensor, _ = run(make(card, 1.0, layout=joined), {"mix": layers}, steps=2)
    different = not np.allclose(one_tensor["mix"]["kernel"], declared["mix"]["kernel"], rtol=1e-9)
    assert different == (card.collectives == "norms")


@methods("map_params")
def test_what_belongs_to_parameters_can_be_mapped_and_found(card: Card) -> None:
    """`optax.tree.map_params` reaches the parameter-shaped state, and that alone; `optax.tree.get` finds the last rate,
    and none by the name that `optax.inject_hyperparams` gives the one to set."""
    tx = shared(card).tx
    state = shared(card).init(draw(0, SMALL))
    mapped = optax.tree.map_params(tx, lambda x: np.asarray(x) + 1, state)
    rows = zip(gk.leaves.names(state), jax.tree.leaves(state), jax.tree.leaves(mapped), strict=True)
    for name, before, after in rows:
        # What belongs to some axes of a parameter has a name of its own behind the parameter's.
        like = name.rpartition("/")[2] in SMALL
        np.testing.assert_array_equal(after, np.asarray(before) + 1 if like else before)
    assert optax.tree.get(state, "learning_rate") is None
    rates = [float(value) for _, value in optax.tree.get_all_with_path(state, "last_learning_rate")]
    assert rates[-1] == np.float32(0.01)
