"""The contract of aggregators: gradients come in with a leading axis, one per task, and leave as one update."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit import catalogue
from gradkit.catalogue import Card
from gradkit.training.one_step import needs_of, one_step
from tests.contract.forms import of, ranged, refuses
from tests.contract.methods import close, draw, other_trees, same
from tests.traces import counted

pytestmark = pytest.mark.slow

SHAPES = {"bias": (2,), "kernel": (3, 2), "scale": ()}
# Two programs of the same float64 arithmetic differ by a few roundings (2^-53) per operation.
F64 = 1e-12


def make(card: Card, m: int = 3, **changes: Any) -> optax.GradientTransformationExtraArgs:
    """The method for m tasks, or as near to that as it takes."""
    return card.function(**{**card.example_for(card.tasks.nearest(m)), **changes})


def count(card: Card, m: int = 3) -> int:
    """The number of gradients of m tasks, or as near to that as the method takes."""
    return card.tasks.nearest(m) * card.tasks.batches


def needed(card: Card, step: int = 0, m: int = 3) -> dict[str, Any]:
    """The extra arguments a method asks for."""
    losses = jnp.linspace(1, 2, count(card, m)) + step / 4
    known = {"key": jax.random.fold_in(jax.random.key(5), step), "losses": losses}
    return {name: known[name] for name in card.needs}


def stack(card: Card, params: Any, seed: int = 0, m: int = 3) -> Any:
    """The gradients of m tasks, which conflict here and there."""
    leaves, structure = jax.tree.flatten(params)
    m = count(card, m)
    drawn = draw(seed, [(m, *x.shape) for x in leaves])
    return structure.unflatten([np.asarray(g).astype(x.dtype) for g, x in zip(drawn, leaves, strict=True)])


def products(g: Any, x: Any) -> jax.Array:
    """One positive loss per row of `g`, linear in x, whose gradient that row is."""
    pairs = zip(*map(jax.tree.leaves, (g, x)), strict=True)
    return 100 + jnp.sum(jnp.stack([jnp.sum(a * b[None], axis=range(1, a.ndim)) for a, b in pairs]), axis=0)


@functools.cache
def _update(function: Any, m: int) -> Any:
    return jax.jit(make(catalogue.find(function.__name__), m).update)


def aggregate(card: Card, g: Any, params: Any, m: int = 3, **given: Any) -> Any:
    extra = {**needed(card, m=m), **{name: x for name, x in given.items() if name in card.needs}}
    return _update(card.function, card.tasks.nearest(m))(g, make(card, m).init(params), params, **extra)[0]


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


@of("aggregator", "jit")
def test_jit_equals_eager_and_the_axis_is_gone(card: Card, x64: None) -> None:
    params = draw(0, SHAPES, np.float64)
    g, tx = stack(card, params), make(card)
    before = jax.tree.map(np.array, g)
    state = tx.init(params)
    got = tx.update(g, state, params, **needed(card))
    assert jax.tree.map(jnp.shape, got[0]) == jax.tree.map(jnp.shape, params)
    update, traces = counted(tx.update)
    close(got, update(g, state, params, **needed(card)), F64, F64)
    again = tx.update(g, got[1], params, **needed(card))
    close(again, update(g, got[1], params, **needed(card)), F64, F64)
    assert len(traces) == 1
    same(before, g)


@of("aggregator", "scan")
def test_scan_equals_loop_in_a_chain_with_adam(card: Card, x64: None) -> None:
    """First in a chain whose parameters have no axis of tasks; Adam sees one gradient."""
    params = draw(0, SHAPES, np.float64)
    tx = optax.chain(make(card), gk.adam(0.1))
    many = [stack(card, params, seed) for seed in range(3)]

    needs = needs_of(tx, params)

    def loss(x: Any, g: Any, index: Any = None) -> jax.Array:
        """One linear loss per task; or the mean over the examples that are in `g`."""
        del index
        losses = products(g, x)
        return losses if "task_gradients" in needs else jnp.mean(losses)

    def step(carry: tuple[Any, Any], now: tuple[Any, Any]) -> tuple:
        g, extra = now
        extra.pop("losses", None)  # those of the step
        made = one_step(loss, tx, *carry, g, needs=needs, **extra)
        return (made.params, made.opt_state), None

    extras = [needed(card, i) for i in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *zip(many, extras, strict=True))
    # scan itself refuses a state whose structure, shapes, dtypes or weak types change.
    (scanned, _), _ = jax.jit(lambda p, s, xs: jax.lax.scan(step, (p, s), xs))(params, tx.init(params), stacked)

    alone, adam, x = make(card), gk.adam(0.1), params
    state, adam_state = alone.init(params), adam.init(params)
    aggregated, adapted = jax.jit(alone.update), jax.jit(adam.update)
    for g, extra in zip(many, extras, strict=True):
        extra |= {"losses": products(g, x)} if "losses" in extra else {}
        one, state = aggregated(g, state, x, **extra)
        updates, adam_state = adapted(one, adam_state, x)
        x = optax.apply_updates(x, updates)
    close(x, scanned, F64, F64)


@of("aggregator", "lazy")
def test_gradients_that_are_computed_as_they_are_asked_for_give_the_same(card: Card, x64: None) -> None:
    """A source hands over the gradients of losses, two at a time: the update is that of the stacked tree."""
    params = draw(0, SHAPES, np.float64)
    g = jax.tree.map(jnp.asarray, stack(card, params, m=4))

    losses = functools.partial(products, g)

    @jax.jit
    def update(params: Any) -> Any:
        found, lazy = gk.gradients.task_gradients(losses, chunk=2)(params)
        tx = make(card, 4)
        extra = {name: x for name, x in needed(card, m=4).items() if name != "losses"}
        return tx.update(lazy, tx.init(params), params, **extra)[0], lazy.losses, found

    got, seen, found = update(params)
    same(found, seen)
    close(aggregate(card, g, params, 4, losses=seen), got, F64, F64)
    with pytest.raises(ValueError, match=rf"{card.name}: gradients do not match"):
        jax.eval_shape(lambda x: make(card).update(gk.gradients.task_gradients(losses)(x)[1], (), {"other": x}), params)


@of("aggregator", "vmap")
def test_vmap_equals_separate_calls(card: Card, x64: None) -> None:
    params = draw(0, SHAPES, np.float64)
    seeds = [stack(card, params, seed) for seed in range(3)]
    many = jax.jit(jax.vmap(lambda g: aggregate(card, g, params)))(jax.tree.map(lambda *x: np.stack(x), *seeds))
    for i, g in enumerate(seeds[:2]):
        close(aggregate(card, g, params), jax.tree.map(lambda x, i=i: x[i], many), F64, F64)


@of("aggregator", "agreement")
@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_tasks_that_agree_get_what_they_agree_on(card: Card, m: int, x64: None) -> None:
    """m equal gradients give a positive multiple of that gradient, of any size, though their Gramian is singular."""
    params = draw(0, SHAPES, np.float64)
    for size in (1.0, 1e-6, 1e6):
        g = jax.tree.map(lambda x, size=size: size * np.asarray(x), draw(1, SHAPES, np.float64))
        update = aggregate(card, jax.tree.map(lambda x: np.stack([x] * count(card, m)), g), params, m)
        assert jax.tree.map(jnp.shape, update) == jax.tree.map(jnp.shape, params)
        out = flat(update)
        share = float(out @ flat(g) / (flat(g) @ flat(g)))
        assert share > 0
        np.testing.assert_allclose(out, share * flat(g), rtol=0, atol=1e-9 * share * size)


@of("aggregator", "zeros")
def test_zero_gradients_stay_finite(card: Card) -> None:
    """All gradients zero gives zero; one among others that is zero, or a leaf that is, gives numbers."""
    params = draw(0, SHAPES)
    g = stack(card, params)
    assert not flat(aggregate(card, jax.tree.map(np.zeros_like, g), params)).any()
    one = jax.tree.map(lambda x: np.concatenate([x[:1], 0 * x[1:2], x[2:]]), g)
    opposite = jax.tree.map(lambda x: np.concatenate([x[:1], -x[:1], x[2:]]), g)
    for case in (one, opposite, {**g, "kernel": np.zeros_like(g["kernel"])}):
        assert np.isfinite(flat(aggregate(card, case, params))).all()


@of("aggregator", "bfloat16")
def test_precision(card: Card) -> None:
    """From the same numbers, the bfloat16 result is the float32 result rounded once; every leaf keeps its dtype."""
    low, high = draw(0, SHAPES, jnp.bfloat16), draw(0, SHAPES)
    got, want = (aggregate(card, stack(card, p), p) for p in (low, high))
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(got))
    # One rounding to 8 bits, and float32 sums of some 10 numbers of about 1, 2^-24 each.
    close(want, got, rtol=2**-8, atol=1e-5)
    with jax.enable_x64(True):
        wide = draw(0, SHAPES, np.float64)
        exact = aggregate(card, stack(card, wide), wide)
        assert all(x.dtype == jnp.float64 for x in jax.tree.leaves(exact))
        # The condition of the small problem behind the weights may cost two digits.
        close(exact, want, rtol=1e-4, atol=1e-4)
        mixed = {**wide, "bias": low["bias"], "scale": high["scale"]}
        out = jax.eval_shape(lambda g: aggregate(card, g, mixed), stack(card, mixed))
        assert {name: x.dtype for name, x in out.items()} == {name: x.dtype for name, x in mixed.items()}


@of("aggregator", "complex")
def test_complex_is_right_or_refused(card: Card) -> None:
    """A method either says that it has no complex form, or turns with the phase of the gradients."""
    params = {"kernel": jnp.zeros((3, 2), jnp.complex64)}
    re, im = (stack(card, np.zeros((3, 2), np.float32), seed) for seed in (0, 1))
    g = {"kernel": re + np.complex64(1j) * im}
    try:
        got = aggregate(card, g, params)
    except ValueError as error:
        assert "complex" in str(error)
        return
    phase = np.complex64(np.exp(0.7j))
    turned = aggregate(card, jax.tree.map(lambda x: x * phase, g), params)
    close(jax.tree.map(lambda x: x * phase, got), turned, rtol=1e-4, atol=1e-5)


@of("aggregator", "trees")
def test_any_container(card: Card) -> None:
    """The program does not depend on what holds the leaves; a tree without leaves is left alone."""
    want = None
    for name, tree in other_trees().items():
        tx = make(card)
        update = functools.partial(tx.update, **needed(card))
        program, (got, _) = jax.make_jaxpr(update, return_shape=True)(stack(card, tree), tx.init(tree), tree)
        assert jax.tree.structure(got) == jax.tree.structure(tree), name
        want = str(program) if want is None else want
        assert str(program) == want, name
    assert make(card).update({}, make(card).init({}), {}, **needed(card))[0] == {}
    shapes = {"r0": (), "r1": (3,), "r3": (2, 1, 3), "r4": (1, 2, 2, 3), "none": (0, 4), "one": (1, 1)}
    params = draw(1, shapes)
    got = aggregate(card, stack(card, params, m=2), params, 2)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, params)
    assert np.isfinite(flat(got)).all()


@of("aggregator", "stacked")
def test_stacked_layers_equal_separate_ones(card: Card, x64: None) -> None:
    """Behind the axis of tasks, layers in one leaf, as `nn.scan` makes them, are layers."""
    layers = draw(0, {"bias": (2, 2), "kernel": (2, 3, 2)}, np.float64)
    g = stack(card, layers)
    together = aggregate(card, {"ScanBlock_0": g}, {"ScanBlock_0": layers})["ScanBlock_0"]

    def split(tree: dict, axis: int) -> dict:
        return {f"layer_{i}": jax.tree.map(lambda x, i=i: np.take(np.asarray(x), i, axis), tree) for i in range(2)}

    apart = aggregate(card, split(g, 1), split(layers, 0))
    close(apart, split(together, 0), F64, F64)


@of("aggregator", "gramian")
def test_conflict_is_a_matter_of_the_whole_tree(card: Card, x64: None) -> None:
    """Of weights that follow from a Gramian: the tree gives what one long vector gives."""
    if card.collectives != "gramian":
        return
    params = draw(0, SHAPES, np.float64)
    g = stack(card, params)
    long = np.concatenate([x.reshape(len(x), -1) for x in jax.tree.leaves(g)], axis=1)
    np.testing.assert_allclose(flat(aggregate(card, g, params)), aggregate(card, long, long[0]), rtol=F64, atol=F64)


@of("aggregator", "mismatch")
def test_gradients_that_are_not_stacked_alike_are_refused(card: Card) -> None:
    """By the names of method and leaf, and before any arithmetic: shapes alone are enough to tell."""
    params = draw(0, SHAPES)
    g, tx = stack(card, params), make(card)
    state = tx.init(params)
    axis, match = "same leading axis", "gradients do not match the parameters"
    cases = [
        ({**g, "bias": g["bias"][:-1]}, rf"{axis}.*bias"),
        ({**g, "scale": g["scale"][0]}, rf"{axis}.*scale"),
        (jax.tree.map(lambda x: x[:0], g), "leading axis"),
        ({**g, "kernel": g["kernel"][:, :, :1]}, "the gradient of 'kernel' has shape"),  # would broadcast
        (params, axis),
        ({name: x for name, x in g.items() if name != "bias"}, match),
        ({**g, "more": g["bias"]}, match),
    ]
    for bad, message in cases:
        with pytest.raises(ValueError, match=rf"{card.name}.*({message})"):
            jax.eval_shape(lambda g: tx.update(g, state, params, **needed(card)), bad)
    with pytest.raises(ValueError, match="dtype int32"):
        tx.init({"kernel": jnp.zeros((2, 2), jnp.int32)})


@of("aggregator", "extra")
def test_extra_arguments(card: Card) -> None:
    """Those it needs are asked for by name; all others pass through to the rest of the chain."""
    seen = {}

    def spy(updates: object, state: object, params: object = None, **extra: object) -> tuple:
        seen.update(extra)
        return updates, state

    recorder = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), spy)
    params = draw(0, SHAPES)
    g, tx = stack(card, params), optax.chain(make(card), recorder)
    jax.eval_shape(lambda g: tx.update(g, tx.init(params), params, value=1.0, something_else=2, **needed(card))[0], g)
    assert seen["value"] == 1.0 and seen["something_else"] == 2
    for name in card.needs:
        others = {key: value for key, value in needed(card).items() if key != name}
        with pytest.raises(ValueError, match=rf"{card.name} needs .*\b{name}\b"):
            make(card).update(g, make(card).init(params), params, **others)


@of("aggregator", "key")
def test_keys(card: Card, x64: None) -> None:
    """One key means one result; a key given at construction moves on, and one that comes with the step goes first."""
    if "key" not in card.needs:
        return
    params = draw(0, SHAPES, np.float64)
    g, step = stack(card, params, m=5), jax.random.key(1)
    loud = {"noise_multiplier": 1.0} if "noise_multiplier" in card.example else {}
    plain, seeded = make(card, 5, **loud), make(card, 5, key=jax.random.key(2), **loud)
    update = jax.jit(plain.update)
    want = update(g, plain.init(params), params, key=step)[0]
    same(want, update(g, plain.init(params), params, key=step)[0])
    update = jax.jit(seeded.update)
    close(want, update(g, seeded.init(params), params, key=step)[0], F64, F64)

    results, state = [], seeded.init(params)
    for _ in range(8):
        out, state = update(g, state, params)
        results.append(flat(out))
    # Each of five tasks visits the four others in one of 24 orders: eight steps will not draw one and the same.
    assert len({tuple(r) for r in np.round(results, 9)}) > 1
    np.testing.assert_array_equal(flat(update(g, seeded.init(params), params)[0]), results[0])


@of("aggregator", "abstract")
def test_abstract_init_and_words(card: Card) -> None:
    """init works on shapes alone; state per parameter is that of the card."""
    params, tx = {"kernel": jnp.zeros((64, 64))}, make(card)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    describe = lambda tree: jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)  # noqa: E731
    assert describe(tx.init(params)) == describe(jax.eval_shape(tx.init, params)) == describe(tx.init(shapes))
    words = sum(x.size for x in jax.tree.leaves(jax.eval_shape(tx.init, params))) / 64**2
    assert abs(words - card.words) < 0.01


@of("aggregator", "descends")
def test_descends_for_every_task(card: Card) -> None:
    """Quadratics with other minima and curvatures: from afar, the loss of every one of them falls by half."""
    which = jnp.arange(count(card)) % card.tasks.nearest(3)
    centres = jnp.array([[0.0, 1.0], [1.0, 0.0], [-0.5, -0.5], [0.5, 0.5], [-1.0, 0.0]])[which]
    curvatures = jnp.array([[1.0, 0.5], [0.5, 1.0], [0.7, 0.7], [0.6, 0.8], [0.8, 0.6]])[which]

    def losses(x: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(curvatures * jnp.square(x[None] - centres), axis=1)

    start = jnp.array([6.0, -5.0])
    tx = optax.chain(make(card), gk.sgd(0.1))
    needs = needs_of(tx, start)

    def loss(x: jax.Array, rows: jax.Array, index: Any = None) -> jax.Array:
        del index
        return losses(x)[rows] if "task_gradients" in needs else jnp.mean(losses(x)[rows])

    def step(carry: tuple[Any, Any], number: jax.Array) -> tuple:
        key = jax.random.fold_in(jax.random.key(5), number)
        made = one_step(loss, tx, *carry, jnp.arange(count(card)), needs=needs, key=key)
        return (made.params, made.opt_state), None

    (x, _), _ = jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), jnp.arange(60)))(start)
    assert np.all(losses(x) < 0.5 * losses(start))


@of("aggregator", "bad input")
@pytest.mark.parametrize("bad", [math.nan, -1.0, "high"])
def test_bad_hyperparameters_are_refused_by_name(card: Card, bad: object) -> None:
    for name in ranged(card):
        refuses(card, name, bad)
