"""The quadratic synchronization rule: rounds grow as the rate falls, and training ends with an exchange."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.parallel import local_updates, quadratic_synchronization, sync_steps


def test_a_constant_rate_has_constant_rounds() -> None:
    """floor((alpha / eta)^power), at least min_steps."""
    for power, want in ((1, 3), (2, 12), (3, 42)):
        period = quadratic_synchronization(0.1, alpha=0.35, min_steps=2, power=power)
        assert [int(period(step)) for step in (0, 7, 1000)] == 3 * [want]
    assert int(quadratic_synchronization(0.1, alpha=0.05, min_steps=4)(0)) == 4


def test_whole_ratios_are_not_one_step_short() -> None:
    """In float32 (0.3 / 0.1)^2 is below 9, and more than one such ratio is."""
    periods = [int(quadratic_synchronization(0.1, alpha=k / 10, min_steps=1)(0)) for k in range(1, 30)]
    assert periods == [k * k for k in range(1, 30)]


def test_rounds_grow_with_the_inverse_square_of_the_rate_and_the_last_step_ends_one() -> None:
    schedule = gk.schedules.warmup(10, 0.8) + gk.schedules.decay("cosine", 150)
    period = quadratic_synchronization(schedule, alpha=0.2, min_steps=2, warmup_steps=10, total_steps=160)
    ends = np.flatnonzero(sync_steps(period, 160)) + 1
    starts, lengths = np.concatenate([[0], ends[:-1]]), np.diff(ends, prepend=0)
    assert ends[-1] == 160 and (lengths[starts < 10] == 2).all()
    rates = np.asarray(schedule(jnp.asarray(starts)))
    want = np.maximum(2, np.floor((0.2 / np.maximum(rates, 1e-9)) ** 2))
    inside = (starts >= 10) & (ends < 160)
    np.testing.assert_array_equal(lengths[inside], want[inside])
    assert (np.diff(lengths[inside]) >= 0).all() and lengths.max() > 8


def test_a_rate_that_vanishes_does_not_overflow() -> None:
    """An integer made of infinity, or of 10^20, would be anything."""
    for rate in (0.0, 1e-30, 1e-12):
        period = jax.jit(quadratic_synchronization(rate, alpha=1.0, min_steps=1))
        assert int(period(0)) == 2**30
        assert int(quadratic_synchronization(rate, alpha=1.0, min_steps=1, total_steps=50)(20)) == 30


def test_after_the_end_rounds_are_single_steps() -> None:
    period = quadratic_synchronization(0.1, alpha=0.4, min_steps=2, total_steps=10)
    assert [int(period(step)) for step in (0, 9, 10, 11)] == [10, 1, 1, 1]


def test_replicas_meet_where_the_rule_says() -> None:
    """Two replicas with gradients of opposite sign: apart inside a round, equal after it."""
    rates = jnp.array([0.8, 0.8, 0.4, 0.4, 0.4, 0.4, 0.4])
    schedule = gk.schedules.array_schedule(rates)
    period = quadratic_synchronization(schedule, alpha=0.8, min_steps=1)
    tx = local_updates(gk.sgd(schedule), sync_every=period, axis_name="replica")

    @jax.jit
    def train(x: jax.Array) -> jax.Array:
        def one(x: jax.Array, sign: jax.Array) -> jax.Array:
            def step(carry: tuple, _: None) -> tuple:
                x, state = carry
                updates, state = tx.update(sign, state, x)
                return (x + updates, state), x + updates

            return jax.lax.scan(step, (x, tx.init(x)), None, 7)[1]

        return jax.vmap(one, axis_name="replica")(x, jnp.array([1.0, -1.0]))

    path = np.asarray(train(jnp.zeros(2)))
    apart = np.abs(path[0] - path[1]) > 1e-6
    # Rounds of 1 step at a rate of 0.8, then of (0.8 / 0.4)^2 = 4.
    assert apart.tolist() == [False, False, True, True, True, False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.0}, "alpha must be in"),
        ({"min_steps": 0}, "min_steps must be an integer >= 1"),
        ({"power": -1}, "power must be in"),
        ({"learning_rate": -0.1}, "learning_rate must be in"),
        ({"warmup_period": 3}, "warmup_period must be None without warmup_steps"),
        ({"warmup_steps": 5, "warmup_period": 0}, "warmup_period must be an integer >= 1"),
        ({"total_steps": 0}, "total_steps must be an integer >= 1"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quadratic_synchronization(**{"learning_rate": 0.1, "alpha": 0.4, "min_steps": 2, **changes})
