"""The contract of sources: they take the place of `jax.value_and_grad`, on any tree and in any program.

Every source is called as fn(params, batch): one that looks at no batch passes it to the loss like any argument. One
that gives a gradient per task or example is called with the mean of these behind it; one that draws, with a key.
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

import gradkit as gk
from gradkit import catalogue
from gradkit.catalogue import Card
from gradkit.engine.core import wide_dtype
from gradkit.training.one_step import one_step
from tests.contract.forms import of, ranged, refuses
from tests.contract.methods import close, draw, other_trees, same
from tests.traces import counted

pytestmark = pytest.mark.slow

SHAPES = {"bias": (2,), "kernel": (3, 2), "scale": ()}
BATCH = 8
# Two programs of the same float64 arithmetic differ by a few roundings (2^-53) per operation.
F64 = 1e-12


def batch() -> jax.Array:
    return jnp.linspace(0.5, 2.0, BATCH)


def loss(params: Any, batch: jax.Array, scale: Any = 1.0, *, shift: Any = 0.0) -> jax.Array:
    """The mean over the batch of a smooth function that is not quadratic, in float32 or wider."""
    w = jnp.concatenate([jnp.zeros((1,), float), *(x.astype(float).reshape(-1) for x in jax.tree.leaves(params))])
    x = batch.astype(w.dtype)
    example = jnp.sum(jnp.square(w)[None] * x[:, None] + jnp.sin(w[None] + x[:, None]), axis=1)
    return scale * (jnp.mean(example) + shift * jnp.sum(w))


def linear(params: Any, batch: jax.Array) -> jax.Array:
    """Loss whose gradient is the mean of the batch, wherever it is taken."""
    return jnp.mean(batch) * sum(jnp.sum(x).astype(batch.dtype) for x in jax.tree.leaves(params))


def of_one_task(loss_fn: Any) -> Any:
    """A loss as that of the one task there is."""

    def fn(*args: Any, **kwargs: Any) -> Any:
        out = loss_fn(*args, **kwargs)
        return ([out[0]], *out[1:]) if isinstance(out, tuple) else [out]

    return fn


def make(card: Card, loss_fn: Any = loss, **changes: Any) -> Any:
    loss_fn = of_one_task(loss_fn) if card.name == "task_gradients" and callable(loss_fn) else loss_fn
    source = card.function(loss_fn, **{**card.example, **changes})
    if "key" in card.needs:
        source = functools.partial(source, key=7)

    def fn(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        value, g = source(*args, **kwargs)
        if not isinstance(g, gk.gradients.LazyGradients):
            return value, g
        value, *aux = value if changes.get("has_aux") else (value,)
        value = jnp.mean(value)
        mean = g.combine(jnp.full(g.count, 1 / g.count, g.losses.dtype))
        # Of replicas with examples of their own, as an aggregator does it.
        mean = mean if "axis_name" not in changes else jax.lax.pmean(mean, changes["axis_name"])
        return ((value, *aux) if aux else value), mean

    return fn


@functools.cache
def _compiled(name: str) -> Any:
    return jax.jit(make(catalogue.find(name)))


def run(card: Card, params: Any, batch: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Value and gradient of `loss`, compiled once for all tests."""
    return _compiled(card.name)(params, batch, *args, **kwargs)


def has(card: Card, name: str) -> bool:
    return name in inspect.signature(card.function).parameters


def gradient(result: Any, params: Any) -> Any:
    """The gradient a source returns or its mean, once its structure, shapes and dtypes are those it should have."""
    moments = isinstance(result, gk.gradients.GradientMoments)
    g = result.mean if moments else result
    assert jax.tree.structure(g) == jax.tree.structure(params)
    for x, p in zip(jax.tree.leaves(g), jax.tree.leaves(params), strict=True):
        assert x.shape == p.shape
        assert x.dtype == (wide_dtype(p.dtype) if moments else p.dtype)
    return g


def finite(tree: Any) -> bool:
    return all(np.isfinite(np.asarray(x, np.float64)).all() for x in jax.tree.leaves(tree))


@of("source", "value_and_grad")
def test_looks_like_value_and_grad(card: Card, x64: None) -> None:
    """The value is that of the loss at the parameters, the gradient a tree like them; nothing is kept in between."""
    params = draw(0, SHAPES, np.float64)
    before = jax.tree.map(np.array, params)
    value, result = run(card, params, batch())
    assert value.shape == () and value.dtype == jnp.float64
    close(loss(params, batch()), value, F64)
    gradient(result, params)
    same(before, params)
    same((value, result), run(card, params, batch()))


@of("source", "linear")
def test_where_the_gradient_is_the_same_everywhere_it_is_that(card: Card, x64: None) -> None:
    """Of a linear loss every source gives the exact gradient: no factor of microbatches or replicas is lost."""
    params = draw(0, SHAPES, np.float64)
    want = jax.tree.map(lambda x: jnp.full_like(x, batch().mean()), params)
    close(want, gradient(jax.jit(make(card, linear))(params, batch())[1], params), F64)
    if has(card, "axis_name"):
        parts = batch().reshape(2, BATCH // 2)
        fn = jax.vmap(make(card, linear, axis_name="replica"), in_axes=(None, 0), axis_name="replica")
        value, result = jax.jit(fn)(params, parts)
        close(jnp.full((2,), linear(params, batch())), value, F64)
        for replica in range(2):
            own = jax.tree.map(lambda x, replica=replica: x[replica], result)
            close(want, gradient(own, params), F64)


@of("source", "jit")
def test_jit_equals_eager_and_vmap_equals_separate_calls(card: Card, x64: None) -> None:
    params = [draw(seed, SHAPES, np.float64) for seed in range(2)]
    fn = make(card)
    jitted, traces = counted(fn)
    want = [jitted(p, batch()) for p in params]
    assert len(traces) == 1
    close(fn(params[0], batch()), want[0], F64, F64)
    many = jax.jit(jax.vmap(fn, in_axes=(0, None)))(jax.tree.map(lambda *x: np.stack(x), *params), batch())
    close(jax.tree.map(lambda *x: np.stack(x), *want), many, F64, F64)


@of("source", "trees")
def test_any_container(card: Card, x64: None) -> None:
    """The program does not depend on what holds the leaves; a tree without leaves has an empty gradient."""
    want = None
    for name, tree in other_trees().items():
        program, (_, result) = jax.make_jaxpr(make(card), return_shape=True)(tree, batch())
        gradient(result, tree)
        want = str(program) if want is None else want
        assert str(program) == want, name
    assert gradient(jax.eval_shape(make(card), {}, batch())[1], {}) == {}


@of("source", "bfloat16")
def test_bfloat16_parameters(card: Card) -> None:
    """Gradients in bfloat16, from sums in float32: a sum of 512 ones in bfloat16 would stop at 256."""
    low = draw(0, SHAPES, jnp.bfloat16)
    many = {"microbatches": 512} if "microbatches" in card.example else {}
    value, result = jax.jit(make(card, linear, **many))(low, jnp.ones(512))
    assert value.dtype == jnp.float32
    assert all(np.all(np.asarray(x) == 1) for x in jax.tree.leaves(gradient(result, low)))

    g = gradient(run(card, low, batch())[1], low)
    high = gradient(run(card, draw(0, SHAPES), batch())[1], draw(0, SHAPES))
    for a, b, x in zip(*map(jax.tree.leaves, (g, high, low)), strict=True):
        a, b, x = (np.asarray(v, np.float64) for v in (a, b, x))
        # A gradient is rounded at most twice (per part, and as a whole); a point beside the parameters once, by 2^-9
        # of its size, which is here below |x| + 1. The curvature of the loss is below 2 * 2 + 1.
        assert np.all(np.abs(a - b) <= 2 * 2**-8 * np.abs(b) + 5 * 2**-9 * (np.abs(x) + 1))


@of("source", "float64")
def test_every_leaf_keeps_its_dtype(card: Card, x64: None) -> None:
    params = draw(0, SHAPES, np.float64)
    mixed = {**params, "bias": params["bias"].astype(jnp.bfloat16), "scale": params["scale"].astype(jnp.float32)}
    value, result = jax.eval_shape(make(card), mixed, batch())
    assert value.dtype == jnp.float64
    gradient(result, mixed)


@of("source", "aux")
def test_aux_comes_beside_the_value(card: Card, x64: None) -> None:
    """Aux is that of the value's own pass (or of each microbatch's, stacked), never that of a point beside."""
    if not has(card, "has_aux"):
        return
    params = draw(0, SHAPES, np.float64)
    want = run(card, params, batch())
    fn = make(card, lambda p, b: (loss(p, b), {"twice": 2 * loss(p, b), "seen": p["scale"]}), has_aux=True)
    (value, aux), result = jax.jit(fn)(params, batch())
    close(want, (value, result), F64, F64)
    np.testing.assert_allclose(np.mean(aux["twice"]), 2 * value, rtol=F64)
    np.testing.assert_array_equal(aux["seen"], np.full_like(aux["seen"], params["scale"]))


@of("source", "extra")
def test_further_arguments_reach_every_pass(card: Card, x64: None) -> None:
    params = draw(0, SHAPES, np.float64)
    want = jax.jit(make(card, lambda p, b: loss(p, b, 3.0, shift=0.5)))(params, batch())
    close(want, run(card, params, batch(), jnp.array(3.0), shift=jnp.array(0.5)), F64, F64)


@of("source", "zeros")
def test_a_zero_gradient_is_an_ordinary_gradient(card: Card) -> None:
    params = draw(0, SHAPES)
    fn = jax.jit(make(card, lambda p, b: 0.0 * loss(p, b)))
    for p in (params, jax.tree.map(jnp.zeros_like, params)):
        value, result = fn(p, batch())
        assert finite((value, result))
        assert not any(np.any(np.asarray(x)) for x in jax.tree.leaves(gradient(result, p)))


@of("source", "descends")
def test_feeds_a_chain_and_descends(card: Card) -> None:
    """In a scan of 60 steps of clipped SGD the distance of the loss to its least value falls to a tenth."""
    x, y = draw(1, {"x": (BATCH, 3), "y": (BATCH, 2)}).values()

    def regression(p: dict, batch: tuple) -> jax.Array:
        x, y = batch
        return jnp.mean(jnp.square(x @ p["kernel"] + p["bias"][None] - y))

    params = {"bias": jnp.full((2,), 3.0), "kernel": jnp.full((3, 2), -3.0)}
    tx = optax.chain(optax.clip_by_global_norm(5.0), gk.sgd(0.1))

    def source(loss: Any) -> Any:
        def fn(params: Any, batch: Any, **own: Any) -> Any:
            value, result = make(card, loss)(params, batch, **own)
            return value, gradient(result, params)

        if "key" in card.needs:  # every loop hands it the key of the step
            return lambda params, batch, *, key: fn(params, batch, key=key)
        return fn

    def step(carry: tuple[Any, Any], t: jax.Array) -> tuple:
        made = one_step(regression, tx, *carry, (x, y), needs=(), gradient=source, key=jax.random.key(t))
        return (made.params, made.opt_state), made.value

    (end, _), values = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), jnp.arange(60)))(params)
    design = np.column_stack([x, np.ones(BATCH)])
    best = np.mean((design @ np.linalg.lstsq(design, np.asarray(y), rcond=None)[0] - y) ** 2)
    assert regression(end, (x, y)) - best < 0.1 * (values[0] - best)


@of("source", "bad input")
@pytest.mark.parametrize("bad", [math.nan, -1.0, "high"])
def test_bad_arguments_are_refused_by_name(card: Card, bad: object) -> None:
    with pytest.raises(ValueError, match="loss_fn must be callable"):
        make(card, bad)
    for name in ranged(card):
        refuses(card, name, bad, loss)
