"""The contract of schedules: a pure function of the step, of one dtype, finite for ever, and a learning rate."""

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
from tests.contract.forms import of, ranged, refuses
from tests.traces import counted

pytestmark = pytest.mark.slow

STEPS = 24
# Two programs of the same arithmetic differ by a few roundings per operation: 2^-53 here, 2^-24 in float32.
F64, F32 = 1e-13, 1e-6


def make(card: Card, **changes: Any) -> Any:
    return card.function(**{**card.example, **changes})


def near(want: object, got: object, tolerance: float) -> None:
    """To a share of the largest value: next to zero, a rounding is no share of the value itself."""
    want, got = (np.asarray(x, np.float64) for x in (want, got))
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


@of("schedule", "steps")
def test_steps_of_every_kind_give_one_value(card: Card, x64: None) -> None:
    """Python integers, integers of any dtype, traced ones, an axis of them with and without vmap: jit = eager."""
    schedule, steps = make(card), jnp.arange(STEPS, dtype=jnp.int32)
    want = np.array([schedule(step) for step in range(STEPS)])
    assert np.ptp(want) > 0  # an example that never moves would test nothing
    near(want, [schedule(step) for step in steps], F64)
    near(want, [schedule(np.int64(step)) for step in range(STEPS)], F64)
    jitted, traces = counted(schedule)
    near(want, [jitted(step) for step in steps], F64)
    assert len(traces) == 1
    near(want, jitted(steps), F64)
    near(want, jax.jit(jax.vmap(schedule))(steps), F64)


@of("schedule", "dtype")
def test_values_are_scalars_of_one_dtype(card: Card) -> None:
    """float32 whatever counts the steps, float64 where it is enabled; a weak type would recompile the step."""
    for enabled, dtype in ((False, jnp.float32), (True, jnp.float64)):
        with jax.enable_x64(enabled):
            for step in (0, 3, jnp.int32(3), np.int64(3)):
                schedule = make(card)
                known = jax.eval_shape(lambda schedule=schedule, step=step: schedule(step))
                for value in (known, jax.eval_shape(schedule, step)):
                    assert (value.dtype, value.shape, value.weak_type) == (dtype, (), False)


@of("schedule", "finite")
def test_finite_for_ever(card: Card) -> None:
    """At all steps near the beginning, around every power of two, up to the last that a counter reaches."""
    powers = 2 ** np.arange(31, dtype=np.int64)
    steps = np.concatenate([np.arange(300), powers - 1, powers, powers + 1, [10**7, 2**31 - 1]])
    steps = jnp.asarray(steps[steps < 2**31], jnp.int32)
    values = jax.jit(make(card))(steps)
    assert np.isfinite(values).all()
    # Far out too a step is counted exactly: float32 differs from float64 by its own rounding alone.
    with jax.enable_x64(True):
        near(jax.jit(make(card))(steps), values, 10 * F32)


@of("schedule", "peak")
def test_traced_peaks_equal_separate_schedules(card: Card, x64: None) -> None:
    if "peak_value" not in inspect.signature(card.function).parameters:
        return
    steps, peaks = jnp.arange(STEPS, dtype=jnp.int32), jnp.array([0.01, 0.3, 2.0])
    many = jax.jit(jax.vmap(lambda peak: make(card, peak_value=peak)(steps)))(peaks)
    for peak, values in zip(peaks, many, strict=True):
        near(jax.jit(make(card, peak_value=float(peak)))(steps), values, F64)


@of("schedule", "learning rate")
def test_is_the_learning_rate_of_a_run(card: Card, x64: None) -> None:
    """The first update has the rate schedule(0), the next schedule(1), ...: also inside a scan, with bf16 leaves."""
    tx = gk.sgd(make(card))
    params = {"wide": jnp.zeros(()), "low": jnp.zeros((2,), jnp.bfloat16)}

    def step(state: object, _: None) -> tuple:
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        return state, updates

    _, updates = jax.lax.scan(step, tx.init(params), None, STEPS)
    rates = jax.jit(make(card))(jnp.arange(STEPS, dtype=jnp.int32))
    near(rates, -updates["wide"], F64)
    assert updates["low"].dtype == jnp.bfloat16
    # A rate goes through float32, then once to 8 bits.
    near(rates, -updates["low"][:, 0], 2**-8)


@of("schedule", "inject")
def test_is_a_hyperparameter(card: Card) -> None:
    """Injected, it is read at the count of the update, and the state shows the value that was used."""
    tx = gk.inject_hyperparams(lambda rate: optax.scale(rate))(make(card))
    x = jnp.ones(())
    state, update = tx.init(x), jax.jit(tx.update)
    for value in jax.jit(make(card))(jnp.arange(3, dtype=jnp.int32)):
        scaled, state = update(x, state, x)
        np.testing.assert_allclose(scaled, value, rtol=F32)
        np.testing.assert_allclose(state.hyperparams["rate"], value, rtol=F32)


@of("schedule", "bad input")
@pytest.mark.parametrize("bad", [math.nan, -1.0, "high"])
def test_bad_hyperparameters_are_refused_by_name(card: Card, bad: object) -> None:
    for name in ranged(card):
        refuses(card, name, bad)
