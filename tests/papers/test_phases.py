"""Schedules composed of phases: values, boundaries, composition, and steps beyond what float32 can count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradkit.schedules import Schedule, array_schedule, decay, hold, phases, repeat, take, warmup
from gradkit.schedules.phases import CURVES, ramp

# One rounding to float32 of a value of size 1, and one of the product before it.
ROUNDING = 2 * 2.0**-24


def curve(shape: str, a: float, b: float, p: np.ndarray) -> np.ndarray:
    """The table of the module, in numpy."""
    return {
        "linear": a + (b - a) * p,
        "cosine": a + (b - a) * (1 - np.cos(np.pi * p)) / 2,
        "1-sqrt": a + (b - a) * np.sqrt(p),
        "1-square": a + (b - a) * p**2,
        "exponential": a * (b / a) ** p,
    }[shape]


@pytest.mark.parametrize("shape", list(CURVES))
def test_curves(shape: str, x64: None) -> None:
    """Every shape against its formula, both ends exactly, and the last value for ever."""
    steps = np.arange(12)
    got = np.asarray(ramp(9, shape, 0.7, 0.1)(jnp.arange(12)))
    want = np.where(steps < 9, curve(shape, 0.7, 0.1, np.minimum(steps, 9) / 9), 0.1)
    # A few roundings of the first value, a seventh of which is the least.
    np.testing.assert_allclose(got, want, rtol=0, atol=4 * 2.0**-53)
    assert got[0] == 0.7 and (got[9:] == 0.1).all()


def test_half_life_halves_then_jumps(x64: None) -> None:
    got = decay("half_life", 7, 0.05, init_value=0.8, half_life=2.0)(jnp.arange(9))
    np.testing.assert_allclose(got, [*(0.8 * 0.5 ** (np.arange(7) / 2)), 0.05, 0.05], rtol=1e-15)


def test_a_phase_starts_where_the_one_before_ended() -> None:
    schedule = warmup(2, 1.0) + hold(1) + decay("linear", 2, 0.5) + hold(1, 3.0) + decay("linear", 1)
    assert schedule.length == 7
    assert schedule(jnp.arange(9)).tolist() == [0.0, 0.5, 1.0, 1.0, 0.75, 3.0, 3.0, 0.0, 0.0]


def test_plus_is_associative_and_equals_the_table() -> None:
    a, b, c = warmup(3, 2.0), hold(2), decay("cosine", 4, 0.5)
    table = phases([(3, "linear", 0.0, 2.0), (2, "linear", None, None), (4, "cosine", None, 0.5)])
    values = [schedule(jnp.arange(12)).tolist() for schedule in ((a + b) + c, a + (b + c), table, phases([a, b, c]))]
    assert values[0] == values[1] == values[2] == values[3]


def test_phases_of_length_zero_are_passed_over() -> None:
    schedule = warmup(0, 2.0) + hold(0) + decay("1-sqrt", 0, 0.5) + hold()
    assert schedule(jnp.arange(3)).tolist() == [0.5, 0.5, 0.5]
    assert float((warmup(0, 2.0) + hold())(0)) == 2.0


def test_fractions_of_a_run() -> None:
    """They are the steps they stand for; bends are whole, also where no length is, and nothing is lost."""
    rows = [(0.1, "linear", 0.0, 1.0), (None, "linear", None, None), (0.2, "1-sqrt", None, 0.0)]
    for total in (10, 100, 12345):
        warm, cool = round(0.1 * total), total - round(0.8 * total)
        want = warmup(warm, 1.0) + hold(total - warm - cool) + decay("1-sqrt", cool)
        got = phases(rows, total_steps=total)
        assert [phase.length for phase in got.phases] == [phase.length for phase in want.phases]
        np.testing.assert_array_equal(got(jnp.arange(40)), want(jnp.arange(40)))
    thirds = phases(3 * [(1 / 3, "linear", 1.0, 0.0)], total_steps=100)
    assert [phase.length for phase in thirds.phases] == [33, 34, 33] and thirds.length == 100
    mixed = phases([warmup(7, 1.0), (0.5, "linear", None, None), (None, "linear", None, 0.0)], total_steps=20)
    assert [phase.length for phase in mixed.phases] == [7, 10, 3]


def test_bend_between_two_steps() -> None:
    schedule = phases([(1.5, "linear", 0.0, 3.0), (2.5, "linear", None, 0.5)])
    assert schedule(jnp.arange(6)).tolist() == [0.0, 2.0, 2.5, 1.5, 0.5, 0.5]


def test_steps_are_counted_in_integers() -> None:
    """Two odd steps above 2^24 differ, though float32 cannot tell them apart."""
    far = 2**25
    schedule = hold(far + 1, 1.0) + hold(2, 2.0) + decay("linear", 4)
    got = schedule(jnp.arange(far, far + 8))
    assert got.tolist() == [1.0, 2.0, 2.0, 2.0, 1.5, 1.0, 0.5, 0.0]


def test_repeat() -> None:
    cycle = warmup(2, 1.0) + decay("linear", 1, 0.5)
    assert repeat(cycle)(jnp.arange(8)).tolist() == [0.0, 0.5, 1.0, 0.0, 0.5, 1.0, 0.0, 0.5]
    twice = repeat(cycle, 2) + decay("linear", 2)
    assert twice(jnp.arange(9)).tolist() == [0.0, 0.5, 1.0, 0.0, 0.5, 1.0, 0.5, 0.25, 0.0]
    far = 3 * 10**8
    assert repeat(cycle)(jnp.arange(far, far + 3)).tolist() == [0.0, 0.5, 1.0]


def test_take_composes() -> None:
    foreign = optax.linear_schedule(1.0, 0.0, 4)
    assert (take(foreign, 2) + hold(2) + decay("linear", 1))(jnp.arange(6)).tolist() == [1, 0.75, 0.5, 0.5, 0.5, 0]


def test_steps_of_every_kind_and_values_of_one_dtype() -> None:
    schedule = warmup(4, 1.0) + hold(2) + decay("1-sqrt", 3)
    want = schedule(jnp.arange(10))
    assert want.dtype == jnp.float32 and not want.weak_type
    for step in (3, np.int64(3), jnp.int32(3), jnp.uint8(3), 3.0):
        value = schedule(step)
        assert value.dtype == jnp.float32 and value.shape == () and value == want[3]
    np.testing.assert_array_equal(jax.jit(schedule)(jnp.arange(10)), want)
    with jax.enable_x64(True):
        assert schedule(jnp.int32(3)).dtype == schedule(jnp.int64(3)).dtype == jnp.float64


def test_traced_values_equal_separate_schedules() -> None:
    def value(peak: jax.Array, end: jax.Array) -> jax.Array:
        return (warmup(2, peak) + hold(1) + decay("exponential", 4, end))(jnp.arange(8))

    peaks, ends = jnp.array([0.1, 2.0]), jnp.array([0.01, 0.5])
    got = jax.vmap(value)(peaks, ends)
    for i in range(2):
        np.testing.assert_allclose(got[i], value(peaks[i], ends[i]), rtol=ROUNDING)


def test_a_schedule_is_a_learning_rate() -> None:
    """optax asks for the value of update 0 first."""
    tx = optax.sgd(array_schedule([0.5, 0.25]))
    x, state = jnp.ones(()), tx.init(jnp.ones(()))
    for _ in range(2):
        updates, state = tx.update(jnp.ones(()), state, x)
        x = optax.apply_updates(x, updates)
    assert float(x) == 0.25


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: warmup(-1, 1.0), "steps must be an integer >= 0"),
        (lambda: warmup(2.5, 1.0), "steps must be an integer"),
        (lambda: warmup(2, float("nan")), "peak_value must be in"),
        (lambda: decay("liner", 3), "did you mean 'linear'"),
        (lambda: decay("exponential", 3, 0.0, init_value=1.0), r"end_value must be in \(0, inf\)"),
        (lambda: decay("half_life", 3, init_value=1.0), "half_life must be given with"),
        (lambda: decay("linear", 3, init_value=1.0, half_life=2.0), "half_life must be given with"),
        (lambda: decay("linear", 3)(0), "init_value must be given"),
        (lambda: hold()(0), "init_value must be given"),
        (lambda: hold(value=1.0) + hold(3), "must have no phase after one without an end"),
        (lambda: hold(2**31 - 1, 1.0) + hold(2), "at most"),
        (lambda: (warmup(3, 0.0) + decay("exponential", 3, 0.1))(0), "first value of an exponential phase"),
        (lambda: phases([]), "table must be rows"),
        (lambda: phases(3), "table must be rows"),
        (lambda: phases(["hold"]), "a row must be a schedule or"),
        (lambda: phases([(0.5, "linear", 0.0, 1.0), (0.6, "linear", None, 0.0)], total_steps=10), "at most 1"),
        (lambda: phases(2 * [(None, "linear", 0.0, 1.0)], total_steps=10), "one of them None"),
        (lambda: phases([(3, "linear", 0.0, 1.0)], total_steps=10), r"a length must be in \[0, 1\]"),
        (lambda: phases([warmup(11, 1.0)], total_steps=10), "at most 1"),
        (lambda: phases([(1.0, "linear", 0.0, 1.0)], total_steps=0), "total_steps must be an integer >= 1"),
        (lambda: phases([(3, "linear", 1.0)]), "length, shape, from, to"),
        (lambda: repeat(hold(value=1.0)), "can be repeated"),
        (lambda: repeat(hold(3, 1.0), 0), "times must be an integer >= 1"),
        (lambda: take(0.1, 3), "schedule must be callable"),
    ],
)
def test_bad_input(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_adding_something_else_is_an_error() -> None:
    with pytest.raises(TypeError):
        _ = warmup(2, 1.0) + (lambda step: step)  # pyright: ignore[reportOperatorIssue]
    assert repr(warmup(2, 1.0) + hold()) == "Schedule(lengths=(2, None))"
    assert isinstance(warmup(2, 1.0) + hold(), Schedule)
