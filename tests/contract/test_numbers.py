"""Contract 6, 10 and 11: precision, bad input, descent."""

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradkit.catalogue import Card
from tests.by_numpy import by_numpy
from tests.contract.methods import SMALL, as_it_is, close, draw, grads_like, make, methods, run


@methods("bfloat16")
def test_bfloat16_parameters_are_computed_in_float32(card: Card) -> None:
    """From the same numbers, the bfloat16 update is the float32 update rounded once; accumulators are float32."""
    low, high = draw(0, SMALL, jnp.bfloat16), draw(0, SMALL)
    tx = make(card)
    update = by_numpy(tx.update)
    state, wide = tx.init(low), tx.init(high)
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
    low, _ = run(make(card), draw(0, SMALL, jnp.bfloat16), steps=20)
    high, _ = run(make(card), draw(0, SMALL), steps=20)
    for a, b, start in zip(*map(jax.tree.leaves, (low, high, draw(0, SMALL))), strict=True):
        a, b, start = (np.asarray(x, np.float64) for x in (a, b, start))
        # Each step rounds every parameter by at most 2^-8 of its size, and its update by 2^-8; discontinuous rules
        # (a sign, a mask) may turn on a rounded parameter, which moves it by a step.
        size = np.abs(start).max() + np.abs(b - start).max()
        assert np.abs(a - b).max() <= 20 * 2**-8 * 2 * size + 2 * np.abs(b - start).max() / 20


@methods("float64")
def test_float64_is_kept(card: Card, x64: None) -> None:
    """Dtypes are known before anything is computed."""
    params = draw(0, dtype=np.float64)
    new, state = jax.eval_shape(lambda: run(make(card), params, steps=2, how=as_it_is))
    assert all(x.dtype == jnp.float64 for x in jax.tree.leaves(new))
    assert all(
        s.dtype == jnp.float64 for s in jax.tree.leaves(state) if s.ndim and jnp.issubdtype(s.dtype, jnp.floating)
    )
    mixed = {**params, "half": jnp.ones(3, jnp.bfloat16), "single": jnp.ones(3, jnp.float32)}
    got, _ = jax.eval_shape(lambda: run(make(card), mixed, steps=2, how=as_it_is))
    assert {name: x.dtype for name, x in got.items()} == {name: x.dtype for name, x in mixed.items()}


@methods("zeros")
def test_zero_gradients_and_zero_parameters_stay_finite(card: Card) -> None:
    for params in (draw(0, SMALL), jax.tree.map(jnp.zeros_like, draw(0, SMALL))):
        tx = make(card)
        zero = jax.tree.map(jnp.zeros_like, params)
        update, state, x = by_numpy(tx.update), tx.init(params), params
        for g in (zero, grads_like(params, 0), zero):
            updates, state = update(g, state, x)
            x = optax.apply_updates(x, updates)
            assert all(np.isfinite(u).all() for u in jax.tree.leaves((updates, state)))


@methods("complex")
def test_complex_is_right_or_refused(card: Card) -> None:
    """A method either says that it has no complex form, or turns with the phase of gradients and parameters."""
    real = draw(0, {"kernel": (6, 4)})["kernel"]
    params = {"kernel": jax.lax.complex(real, draw(1, {"k": (6, 4)})["k"])}
    tx = make(card)
    try:
        state = tx.init(params)
    except ValueError as error:
        assert "complex" in str(error)
        return
    phase = np.complex64(np.exp(0.7j))
    g = jax.tree.map(lambda x: x * (0.3 - 0.4j), params)
    update = by_numpy(tx.update)
    updates, _ = update(g, state, params)
    turned, _ = update(jax.tree.map(lambda x: x * phase, g), state, jax.tree.map(lambda x: x * phase, params))
    close(jax.tree.map(lambda u: u * phase, updates), turned, rtol=1e-5, atol=1e-6)


def _numbers(card: Card) -> list[str]:
    """The hyperparameters of a method: arguments whose default is a number, and the required ones."""
    # A reference is a name, which only the parameters can tell to be wrong; a lower bound of the loss is any number.
    skip = {"f_min", "flip_sign", "inner", "reference", "shift"}
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
    state, g = tx.init(params), grads_like(params, 0)
    missing = {name: x for name, x in g.items() if name != "bias"}
    wrong_shape = {**g, "kernel": g["kernel"][:, :1]}  # would broadcast
    for bad in (missing, {**g, "more": g["bias"]}, wrong_shape):
        with pytest.raises(
            ValueError, match=r"gradients do not match the parameters|the gradient of 'kernel' has shape"
        ):
            tx.update(bad, state, params)
    with pytest.raises(ValueError, match="dtype int32"):
        tx.init({"kernel": jnp.zeros((2, 2), jnp.int32)})


@pytest.mark.slow
@methods("descends")
def test_descends_on_a_quadratic_and_on_digits(card: Card) -> None:
    """With the best of six learning rates the loss falls by half within 60 steps on both."""
    from sklearn.datasets import load_digits

    x, y = load_digits(n_class=4, return_X_y=True)
    x, y = jnp.asarray(x[:256] / 16, jnp.float32), jnp.asarray(y[:256], jnp.int32)
    curvature = jnp.linspace(0.5, 2.0, 12).reshape(3, 4)

    def digits(p: dict) -> jax.Array:
        logits = x @ p["kernel"] + p["bias"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def quadratic(p: dict) -> jax.Array:
        return 0.5 * jnp.sum(curvature * (p["kernel"] - 1) ** 2) + 0.5 * jnp.sum((p["bias"] + 1) ** 2)

    problems = {
        "quadratic": (quadratic, draw(0, {"bias": (4,), "kernel": (3, 4)})),
        "digits": (digits, jax.tree.map(lambda w: 0.1 * w, draw(0, {"bias": (4,), "kernel": (64, 4)}))),
    }
    for name, (loss, start) in problems.items():

        def final(rate: jax.Array, loss: Any = loss, start: Any = start) -> jax.Array:
            tx = make(card, rate)

            def step(carry: tuple, _: None) -> tuple:
                params, state = carry
                updates, state = tx.update(jax.grad(loss)(params), state, params)
                return (optax.apply_updates(params, updates), state), None

            (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), None, 60)
            return loss(params)

        best = np.nanmin(by_numpy(jax.vmap(final))(jnp.logspace(-3, 2, 6)))
        assert best < 0.5 * loss(start), name
