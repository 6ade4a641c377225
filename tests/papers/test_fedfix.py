"""Asynchronous averaging: the tables of the schemes, and that unbiased weights find the right minimum."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradkit.parallel import Aggregations, arrival_weights, async_fedavg, fedfix, simulate_events, start_simulation

TAU = np.array([1.0, 0.7, 0.4])
P = np.array([0.5, 0.3, 0.2])
# Losses a_i (x - c_i)^2 / 2: their weighted sums have different minima.
A, C = np.array([1.0, 2.0, 0.5]), np.array([0.0, 1.0, 4.0])


def minimum(q: np.ndarray) -> float:
    return float((q * A * C).sum() / (q * A).sum())


def end(table: Aggregations, rate: float) -> float:
    tx = optax.sgd(rate)

    def phase(x: Any, own: Any, data: Any, steps: Any) -> Any:
        a, c = data
        return 0.01 * a * (x - c), own

    data = jax.tree.map(lambda v: jnp.broadcast_to(jnp.asarray(v), table.sent.shape), (A, C))
    run = start_simulation(jnp.zeros(()), tx, 3)
    run, path = jax.jit(lambda r: simulate_events(table, phase, tx, r, data=data, record=lambda x: x))(run)
    return float(path[-len(path) // 4 :].mean())


def test_the_table_of_the_paper() -> None:
    """Times 1, 0.7 and 0.4 and a period of 0.5: the last arrives in each, the others in every second."""
    table = fedfix(TAU, 4, period=0.5)
    assert table.sent.tolist() == [[-1, -1, 0], [0, 0, 1], [-1, -1, 2], [2, 2, 3]]
    np.testing.assert_allclose(table.time, [0.5, 1.0, 1.5, 2.0])
    np.testing.assert_allclose(table.weights, [2 / 3, 2 / 3, 1 / 3])
    np.testing.assert_array_equal(table.participation, [0.5, 0.5, 1.0])


def test_a_long_period_is_synchronous() -> None:
    table = fedfix(TAU, 5, period=1.0, importance=P)
    np.testing.assert_array_equal(table.sent, np.arange(5)[:, None] + np.zeros((1, 3), int))
    np.testing.assert_allclose(table.weights, arrival_weights("synchronous", TAU, P))


def test_multiples_of_the_period_in_binary() -> None:
    """1.1 / 0.1 is above 11 and 0.6 / 0.2 below 3."""
    np.testing.assert_allclose(arrival_weights("fedfix", [1.1, 0.3], period=0.1), [5.5, 1.5])
    assert fedfix([1.1], 11, period=0.1).sent[:, 0].tolist() == [-1] * 10 + [0]


@pytest.mark.parametrize("scheme", ["async", "fedfix", "fedbuff"])
def test_unbiased_weights_are_importance_over_frequency(scheme: str) -> None:
    by_time = fedfix(TAU, 600, period=0.5, importance=P)
    table = async_fedavg(TAU, 2000, importance=P) if scheme == "async" else by_time
    own = {"fedfix": {"period": 0.5}, "fedbuff": {"participation": table.participation}}.get(scheme, {})
    # A count of 2000 arrivals is right to one arrival.
    np.testing.assert_allclose(arrival_weights(scheme, TAU, P, **own) * table.participation, P, rtol=4e-3)


@pytest.mark.parametrize("unbiased", [True, False])
def test_the_limit(unbiased: bool, x64: None) -> None:
    """Unbiased: that of sum p_i F_i. Equal weights: that of sum f_i F_i, with the frequencies of the table."""
    for table in (
        async_fedavg(TAU, 6000, importance=P, unbiased=unbiased),
        fedfix(TAU, 4000, period=0.5, importance=P, unbiased=unbiased),
    ):
        q = P if unbiased else table.participation
        # Steps of 0.01: the end hovers around the minimum by that share of the distances between the c_i.
        assert abs(end(table, 1.0) - minimum(q)) < 0.03
    assert abs(minimum(P) - minimum(np.ones(3))) > 0.1


def test_a_run_goes_on_in_the_middle_of_a_table() -> None:
    """Bit for bit: what absent workers have read is kept."""
    table, tx = fedfix(TAU, 9, period=0.5), optax.sgd(0.5)

    def play(run: Any, rows: Aggregations) -> Any:
        return simulate_events(rows, lambda x, own, data, steps: (x - 1.0, own), tx, run)[0]

    start = start_simulation(jnp.zeros(2), tx, 3)
    halves = [table._replace(sent=table.sent[part], time=table.time[part]) for part in (slice(4), slice(4, 9))]
    whole, parts = play(start, table), play(play(start, halves[0]), halves[1])
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="importance must be 3 numbers that add up to 1"):
        fedfix(TAU, 3, period=1.0, importance=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="period must be"):
        fedfix(TAU, 3, period=0.0)
    with pytest.raises(ValueError, match="period must be"):
        arrival_weights("fedfix", TAU)
    with pytest.raises(ValueError, match="participation must be given"):
        arrival_weights("fedbuff", TAU)
    with pytest.raises(ValueError, match=r"participation must be 3 numbers in \(0, 1\]"):
        arrival_weights("fedbuff", TAU, participation=[0.5, 0.5, 2.0])
    with pytest.raises(ValueError, match="scheme must be one of"):
        arrival_weights("fedavg", TAU)
    with pytest.raises(ValueError, match="tau must be"):
        async_fedavg([0.0], 3)
