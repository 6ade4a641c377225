"""Contract 6, 10 and 11: precision, bad input, descent. Every point is a plain function of a card."""

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
from gradkit.catalogue import Card
from gradkit.training.one_step import needs_of, one_step
from tests.contract.methods import SHAPES, SMALL, close, draw, grads_like, in_float64, make, methods, run
from tests.contract.shared import shared


@methods("bfloat16")
def test_bfloat16_parameters_are_computed_in_float32(card: Card) -> None:
    """From the same numbers, the bfloat16 update is the float32 update rounded once; accumulators are float32."""
    low, high = draw(0, SMALL, jnp.bfloat16), draw(0, SMALL)
    init, update = shared(card).init, shared(card).update
    state, wide = init(low), init(high)
    for step in range(3):
        got, state = update(grads_like(low, step), state, low)
        want, wide = update(grads_like(high, step), wide, high)
    assert all(u.dtype == jnp.bfloat16 for u in jax.tree.leaves(got))
    assert all(s.dtype in (jnp.float32, jnp.int32) for s in jax.tree.leaves(state))
    if card.form == "optimizer":
        # One rounding to 8 bits; programs of two dtypes may differ in the last float32 bit, which can tip it.
        close(want, got, rtol=2**-8 * 1.01, atol=1e-30)
    else:
        # A chain of two links: one rounding each.
        close(want, got, rtol=2**-7 * 1.01, atol=1e-30)


@pytest.mark.slow
@methods("bfloat16")
def test_bfloat16_run_stays_near_the_float32_run(card: Card) -> None:
    """After 20 steps the distance is what rounding the parameters at every step can make."""
    low, _ = run(shared(card).numbers, draw(0, SMALL, jnp.bfloat16), steps=20)
    high, _ = run(shared(card).numbers, draw(0, SMALL), steps=20)
    for a, b, start in zip(*map(jax.tree.leaves, (low, high, draw(0, SMALL))), strict=True):
        a, b, start = (np.asarray(x, np.float64) for x in (a, b, start))
        # Each step rounds every parameter by at most 2^-8 of its size, and its update by 2^-8; discontinuous rules
        # (a sign, a mask) may turn on a rounded parameter, which moves it by a step.
        size = np.abs(start).max() + np.abs(b - start).max()
        assert np.abs(a - b).max() <= 20 * 2**-8 * 2 * size + 2 * np.abs(b - start).max() / 20


@methods("float64")
@in_float64
def test_float64_is_kept(card: Card) -> None:
    """Parameters and state of float64 stay float64, and beside other dtypes each leaf keeps its own. Dtypes are known
    before anything is computed."""
    params, tx = draw(0, SMALL, np.float64), shared(card)
    state = tx.init(params)
    _, (updates, after) = tx.update.program(grads_like(params, 0), state, params)
    assert all(x.dtype == jnp.float64 for x in jax.tree.leaves(updates))
    for s in jax.tree.leaves((state, after)):
        assert s.dtype == jnp.float64 or not s.ndim or not jnp.issubdtype(s.dtype, jnp.floating)
    dtypes = {"bias": jnp.bfloat16, "conv": np.float64, "kernel": np.float64, "scale": np.float32}
    mixed = {name: x.astype(dtypes[name]) for name, x in draw(0, SHAPES, np.float64).items()}
    updates, _ = jax.eval_shape(lambda p: tx.tx.update(grads_like(p, 0), tx.tx.init(p), p), mixed)
    assert {name: x.dtype for name, x in updates.items()} == dtypes


@methods("zeros")
def test_zero_gradients_and_zero_parameters_stay_finite(card: Card) -> None:
    for params in (draw(0, SMALL), jax.tree.map(np.zeros_like, draw(0, SMALL))):
        zero = jax.tree.map(np.zeros_like, params)
        update, state, w = shared(card).update, shared(card).init(params), params
        for g in (zero, grads_like(params, 0), zero):
            updates, state = update(g, state, w)
            w = optax.apply_updates(w, updates)
            for name, x in zip(gk.leaves.names((updates, state)), jax.tree.leaves((updates, state)), strict=True):
                assert np.isfinite(np.asarray(x)).all(), name


@methods("nonfinite")
@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_after_a_gradient_that_is_not_finite_a_method_recovers_or_says_so(card: Card, bad: float) -> None:
    """Three good steps, one bad, ten good: updates are finite and move what they moved, or a metric says why not."""
    params, tx = draw(0, SMALL), shared(card)
    state = tx.init(params)

    def told(state: Any) -> dict[str, float]:
        return {k: float(v) for k, v in gk.diagnostics.metrics(state, nonfinite=True).items()}

    for step in range(3):
        before, state = tx.update(grads_like(params, step), state, params)
    assert told(state)["nonfinite_state"] == 0
    broken = {k: np.array(x) for k, x in grads_like(params, 3).items()}
    broken["kernel"][1, 1] = bad
    after, state = tx.update(broken, state, params)
    for step in range(4, 14):
        after, state = tx.update(grads_like(params, step), state, params)

    def alive(x: Any, y: Any) -> bool:
        return bool(np.isfinite(y).all() and (np.any(y) or not np.any(x)))

    if not all(map(alive, jax.tree.leaves(before), jax.tree.leaves(after))):
        assert told(state)["nonfinite_state"] > 0


@methods("complex")
def test_complex_is_right_or_refused(card: Card) -> None:
    """A method either says that it has no complex form, or turns with the phase of gradients and parameters."""
    real = draw(0, {"kernel": (6, 4)})["kernel"]
    params = {"kernel": np.asarray(real) + 1j * np.asarray(draw(1, {"k": (6, 4)})["k"])}
    try:
        state = shared(card).init(params)
    except ValueError as error:
        assert "complex" in str(error)
        return
    phase = np.complex64(np.exp(0.7j))
    g = jax.tree.map(lambda x: x * np.complex64(0.3 - 0.4j), params)
    update = shared(card).update
    updates, _ = update(g, state, params)
    there = jax.tree.map(lambda x: x * phase, params)  # from where a state may hold a copy
    turned, _ = update(jax.tree.map(lambda x: x * phase, g), shared(card).init(there), there)
    close(jax.tree.map(lambda u: np.asarray(u) * phase, updates), turned, rtol=1e-5, atol=1e-6)


def _numbers(card: Card) -> list[str]:
    """The hyperparameters of a method: arguments whose default is a number, and the required ones."""
    # A reference is a name, which only the parameters can tell to be wrong; a lower bound of the loss is any number.
    skip = {"f_min", "flip_sign", "inner", "lower_bound", "reference", "shift"}
    found = []
    for name, parameter in inspect.signature(card.function).parameters.items():
        required = parameter.default is inspect.Parameter.empty
        number = isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool)
        if name not in skip and (required or number):
            found.append(name)
    return found


@methods("bad input")
@pytest.mark.parametrize("bad", [math.nan, -1.0, "high"])
def test_bad_hyperparameters_are_refused_by_name(card: Card, bad: object) -> None:
    for name in _numbers(card):
        with pytest.raises(ValueError, match=rf"\b{name}\b must be"):
            if name == "learning_rate" and card.form != "primitive":
                make(card, bad)
            else:
                make(card, **{name: bad})


@methods("mismatch")
def test_gradients_that_do_not_match_are_refused(card: Card) -> None:
    params, tx = draw(0), make(card)
    # What raises before any arithmetic raises on shapes too.
    state, g = jax.eval_shape(tx.init, params), grads_like(params, 0)
    missing = {name: x for name, x in g.items() if name != "bias"}
    wrong_shape = {**g, "kernel": np.asarray(g["kernel"])[:, :1]}  # would broadcast
    for bad in (missing, {**g, "more": g["bias"]}, wrong_shape):
        with pytest.raises(
            ValueError, match=r"gradients do not match the parameters|the gradient of 'kernel' has shape"
        ):
            tx.update(bad, state, params)
    with pytest.raises(ValueError, match="dtype int32"):
        tx.init({"kernel": np.zeros((2, 2), np.int32)})


@methods("mismatch")
def test_a_state_of_other_shapes_is_refused_by_the_name_of_the_leaf(card: Card) -> None:
    """Transposed, of one row (which would be broadcast), of other columns; a method without such a state may go on."""
    tx = make(card)
    state = jax.eval_shape(tx.init, draw(0, SMALL))
    shaped = {x.shape for x in jax.tree.leaves(state)} & {(4,), (6, 4), (4, 6)}
    for shapes in (
        {"bias": (4,), "kernel": (4, 6)},
        {"bias": (4,), "kernel": (1, 4)},
        {"bias": (3,), "kernel": (6, 3)},
    ):
        params = draw(0, shapes)
        try:
            jax.eval_shape(tx.update, grads_like(params, 0), state, params)
        except ValueError as error:
            said = str(error)
            # Of a block of a leaf, by the name of the leaf and of the block.
            assert "gradient of 'kernel" in said or "gradient of 'bias" in said, said
            assert said.count("shape (") + said.count("shape None") >= 2 and "call init again" in said, said
        else:
            # What matrices are given to keeps nothing of a vector, which Adam has beside it.
            beside = {(4,)} if card.only == "matrices" and shapes["bias"] == (4,) else set()
            assert not shaped - beside


@functools.cache
def landscape() -> tuple[Any, Any]:
    """(loss of a problem's number and parameters, both starts): a quadratic, and handwritten digits.

    They have parameters of the same shapes, so that a method is one program on both.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(n_class=4, return_X_y=True)
    x, y = (x[:256] / 16).astype(np.float32), y[:256].astype(np.int32)
    curvature = np.linspace(0.5, 2.0, 256, dtype=np.float32).reshape(64, 4)

    def digits(p: dict) -> jax.Array:
        logits = jnp.asarray(x) @ p["kernel"] + p["bias"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(y)).mean()

    def quadratic(p: dict) -> jax.Array:
        return 0.5 * jnp.sum(curvature * (p["kernel"] - 0.25) ** 2) + 0.5 * jnp.sum((p["bias"] + 1) ** 2)

    start = draw(0, {"bias": (4,), "kernel": (64, 4)})
    starts = jax.tree.map(lambda w: np.stack([np.asarray(w), 0.1 * np.asarray(w)]), start)
    return lambda problem, p: jnp.where(problem == 0, quadratic(p), digits(p)), starts


@pytest.mark.slow
@methods("descends")
def test_descends_on_a_quadratic_and_on_digits(card: Card) -> None:
    """With the best of six learning rates the loss falls by half within 60 steps on both: twelve runs, one program.
    The steps are those of every loop; what no loop can make is a sample."""
    loss, starts = landscape()

    def losses(rate: jax.Array, problem: jax.Array, start: Any) -> tuple[jax.Array, jax.Array]:
        tx = make(card, rate)
        needs = needs_of(tx, start)

        def value(params: Any, problem: jax.Array, index: Any = None) -> jax.Array:
            del index
            return loss(problem, params)

        def step(carry: tuple[Any, Any], number: jax.Array) -> tuple:
            key = jax.random.fold_in(jax.random.key(5), number)
            made = one_step(value, tx, *carry, problem, needs=needs, key=key, examples=False)
            return (made.params, made.opt_state), None

        (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), np.arange(60))
        return loss(problem, start), loss(problem, params)

    over_both = jax.vmap(jax.vmap(losses, (0, None, None)), (None, 0, 0))
    rates = np.logspace(-3, 2, 6, dtype=np.float32)
    first, last = jax.jit(over_both)(rates, np.arange(2), starts)
    ratios = np.nanmin(np.asarray(last) / np.asarray(first), axis=1)
    assert (ratios < 0.5).all(), dict(zip(("quadratic", "digits"), ratios, strict=True))
