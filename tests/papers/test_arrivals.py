"""Arrival tables: the order of events, what workers have read, and that the same arguments give the same table."""

import numpy as np
import pytest

from gradkit.parallel import Aggregations, arrival_schedule


def test_the_speeds_of_the_paper() -> None:
    table = arrival_schedule([0.58, 0.75, 1.51, 3.33], 1, 12)
    assert table.worker.tolist() == [0, 1, 0, 1, 2, 0, 1, 0, 0, 1, 2, 3]
    assert table.staleness.tolist() == [0, 1, 1, 1, 4, 2, 2, 1, 0, 2, 5, 11]
    np.testing.assert_array_equal(table.version_read, np.arange(12) - table.staleness)
    np.testing.assert_allclose(table.time[[0, 1, 11]], [0.58, 0.75, 3.33], rtol=1e-15)


@pytest.mark.parametrize("W", [1, 3, 4])
def test_equal_speeds_take_turns(W: int) -> None:
    """Every event but the first W is of parameters W - 1 versions old; one worker alone is never stale."""
    table = arrival_schedule(np.full(W, 0.3), 2, 4 * W)
    np.testing.assert_array_equal(table.worker, np.tile(np.arange(W), 4))
    np.testing.assert_array_equal(table.staleness[W:], W - 1)
    np.testing.assert_array_equal(table.staleness[:W], np.arange(W))


def test_local_steps_are_time() -> None:
    """A worker half as fast that makes half the steps arrives as often."""
    table = arrival_schedule([0.5, 1.0], [4, 2], 8)
    np.testing.assert_array_equal(np.bincount(table.worker), [4, 4])
    np.testing.assert_array_equal(table.steps, np.where(table.worker == 0, 4, 2))


def test_measured_rounds_are_taken_in_turn() -> None:
    """Worker 0 needs 1, 3, 1, 3, ...: it arrives at 1, 4, 5, 8."""
    table = arrival_schedule([[1.0, 3.0], [np.inf, np.inf]], 1, 4)
    np.testing.assert_array_equal(table.time, [1, 4, 5, 8])


def test_random_times_have_their_mean_and_repeat_bit_for_bit() -> None:
    make = lambda seed: arrival_schedule([0.5, 2.0], 4, 4000, spread=0.5, seed=seed)  # noqa: E731
    one, again, other = make(1), make(1), make(2)
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.time, other.time)
    own = np.diff(one.time[one.worker == 0])
    # Log-normal of mean 2: its deviation is 2 sqrt(exp(0.25) - 1) = 1.07; five of those of the mean of 3200.
    assert abs(own.mean() - 2.0) < 5 * 1.07 / np.sqrt(len(own))
    np.testing.assert_allclose(np.log(own).std(), 0.5, rtol=5 / np.sqrt(2 * len(own)))


def test_failures_cost_time_and_nothing_else() -> None:
    """A round is lost with probability 1/2, so an arrival takes two on average; the other worker is not touched."""
    table = arrival_schedule([1.0, 1.0], 1, 4000, failure=0.5, seed=3)
    own = np.diff(table.time[table.worker == 1])
    assert set(np.unique(own % 1)) == {0.0}
    # Geometric with mean 2 and deviation sqrt(2).
    assert abs(own.mean() - 2) < 5 * np.sqrt(2 / len(own))


def test_a_dead_worker_never_arrives_and_dead_workers_are_refused() -> None:
    assert (arrival_schedule([1.0, np.inf], 1, 5).worker == 0).all()
    with pytest.raises(ValueError, match="seconds_per_step must be finite"):
        arrival_schedule([np.inf], 1, 5)
    with pytest.raises(ValueError, match="no worker arrives after event 1"):
        arrival_schedule([[1.0, np.inf]], 1, 5)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("seconds_per_step", {"seconds_per_step": [1.0, -1.0]}),
        ("seconds_per_step", {"seconds_per_step": []}),
        ("seconds_per_step", {"seconds_per_step": [np.nan]}),
        ("local_steps", {"local_steps": 0}),
        ("local_steps", {"local_steps": [1, 2, 3]}),
        ("local_steps", {"local_steps": 1.5}),
        ("num_events", {"num_events": 0}),
        ("spread", {"spread": -1.0}),
        ("failure", {"failure": 1.0}),
        ("seed", {"seed": -1}),
    ],
)
def test_bad_input(name: str, change: dict) -> None:
    given = {"seconds_per_step": [1.0, 2.0], "local_steps": 1, "num_events": 3, **change}
    with pytest.raises(ValueError, match=f"{name} must be"):
        arrival_schedule(**given)


def test_staleness_in_versions_of_a_buffer() -> None:
    """Against counting: a version is out when K arrivals are in; what was read is the last one that was out then."""
    table, K = arrival_schedule([0.58, 0.75, 1.51], 1, 40, spread=0.5), 3
    buffered = table.published_every(K)
    out = np.array([e // K for e in range(41)])
    np.testing.assert_array_equal(buffered.staleness, out[np.arange(40)] - out[table.version_read])
    np.testing.assert_array_equal(table.published_every(1).staleness, table.staleness)
    late = buffered._replace(**{name: x[7:] for name, x in table._asdict().items()}).published_every(K)
    np.testing.assert_array_equal(late.staleness, buffered.staleness[7:])


def test_the_frequency_of_a_table() -> None:
    sent = np.array([[0, -1], [1, 0], [2, -1], [3, 2]])
    np.testing.assert_array_equal(Aggregations(sent, np.arange(4.0), np.ones(2)).participation, [1.0, 0.5])
