"""The driver of arrival tables: every event sees what its worker has read, and a run repeats bit for bit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.parallel import (
    Aggregations,
    arrival_schedule,
    async_local_sgd,
    simulate_events,
    start_simulation,
)

N = 5


def pull(x: Any, own: Any, b: Any, steps: Any) -> Any:
    """The gradient of |x - b|^2 / 2, as often as the worker has steps; the worker counts its rounds."""
    return jax.tree.map(lambda x: (x - b) * steps.astype(x.dtype), x), own + 1


def play(table: Any, b: Any, W: int, rate: float = 0.1) -> Any:
    tx = optax.sgd(rate)
    run = start_simulation(jnp.zeros(N), tx, W, worker_state=jnp.zeros((), jnp.int32))
    return jax.jit(lambda run: simulate_events(table, pull, tx, run, data=b, record=lambda x: x))(run)


def test_against_a_history_of_all_versions(x64: None) -> None:
    """Twenty lines of NumPy that keep every version: the snapshots hold what `version_read` says."""
    table = arrival_schedule([0.58, 0.75, 1.51], [3, 2, 1], 20, spread=0.3)
    b = np.random.default_rng(0).standard_normal((20, N))
    versions = [np.zeros(N)]
    for e in range(20):
        read = versions[table.version_read[e]]
        versions.append(versions[-1] - 0.1 * table.steps[e] * (read - b[e]))
    run, path = play(table, jnp.asarray(b), 3)
    # 20 sums of two numbers below 8.
    np.testing.assert_allclose(path, np.array(versions[1:]), rtol=0, atol=20 * 2 * 8 * 2**-53)
    np.testing.assert_array_equal(run.workers, np.bincount(table.worker))
    last = [np.flatnonzero(table.worker == w)[-1] + 1 for w in range(3)]
    np.testing.assert_allclose(run.snapshots, np.array(versions)[last], rtol=0, atol=1e-13)
    assert int(run.events) == 20


def test_one_worker_is_training_in_sequence(x64: None) -> None:
    """Bit for bit, as nothing is stale."""
    b = jnp.asarray(np.random.default_rng(1).standard_normal((6, N)))
    _, path = play(arrival_schedule([0.7], 1, 6), b, 1)
    tx, x = optax.sgd(0.1), jnp.zeros(N)
    state = tx.init(x)
    step = jax.jit(lambda x, state, b: tx.update(x - b, state, x))
    for e in range(6):
        u, state = step(x, state, b[e])
        x = optax.apply_updates(x, u)
        np.testing.assert_array_equal(path[e], x)


def test_workers_of_one_speed_with_the_same_data_can_be_exchanged(x64: None) -> None:
    table = arrival_schedule([1.0, 1.0, 1.0], 1, 9)
    b = jnp.asarray(np.repeat(np.random.default_rng(2).standard_normal((3, N)), 3, 0))
    other = table._replace(worker=np.array([2, 0, 1])[table.worker])
    np.testing.assert_array_equal(play(table, b, 3)[1], play(other, b, 3)[1])


def test_a_run_repeats_and_goes_on_bit_for_bit() -> None:
    table = arrival_schedule([0.5, 0.8], 1, 11, spread=0.4, seed=5)
    b = jnp.asarray(np.random.default_rng(3).standard_normal((11, N)), jnp.float32)
    run, path = play(table, b, 2)
    again, _ = play(table, b, 2)
    tx = optax.sgd(0.1)
    half = start_simulation(jnp.zeros(N), tx, 2, worker_state=jnp.zeros((), jnp.int32))
    pieces = []
    for part in (slice(0, 4), slice(4, 11)):
        rows = jax.tree.map(lambda x, part=part: x[part], table)
        half, piece = simulate_events(rows, pull, tx, half, data=b[part], record=lambda x: x)
        pieces.append(piece)
    np.testing.assert_array_equal(np.concatenate(pieces), path)
    for a, c, d in zip(*map(jax.tree.leaves, (run, again, half)), strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(a, d)


def test_the_server_is_told_staleness_and_weight() -> None:
    def update(g: Any, state: Any, params: Any = None, *, staleness: Any, weight: Any) -> Any:
        return -g, (staleness, weight)

    tx = optax.GradientTransformationExtraArgs(lambda p: (jnp.zeros((), jnp.int32), jnp.zeros(())), update)
    table = arrival_schedule([1.0, 1.5], 1, 4)
    run = start_simulation(jnp.zeros(2), tx, 2)
    run, _ = simulate_events(table, lambda x, own, data, steps: (x, own), tx, run, weight=jnp.array([2.0, 7.0]))
    assert (int(run.server[0]), float(run.server[1])) == (table.staleness[3], [2.0, 7.0][table.worker[3]])


def test_local_steps_beyond_those_of_a_worker_count_nothing(x64: None) -> None:
    """The phase of two steps of four is the phase of two, also for the momentum that the worker keeps."""
    inner = gk.sgd(0.1, momentum=0.9)
    phase = jax.jit(async_local_sgd(jax.value_and_grad(lambda x, b: jnp.sum((x - b) ** 2)), inner))
    x, b = jnp.ones(N), jnp.asarray(np.random.default_rng(4).standard_normal((4, N)))
    got = phase(x, inner.init(x), b, jnp.asarray(2))
    want = phase(x, inner.init(x), b[:2], None)
    for a, c in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, c)
    np.testing.assert_array_equal(phase(x, inner.init(x), b, jnp.asarray(0))[0], 0.0)


def test_a_table_of_others_is_refused() -> None:
    tx = optax.sgd(1.0)
    run = start_simulation(jnp.zeros(2), tx, 2)
    with pytest.raises(ValueError, match="arrivals must be of the 2 workers of the run, got 3"):
        simulate_events(arrival_schedule([1.0, 1.0, 1.0], 1, 3), pull, tx, run)
    with pytest.raises(ValueError, match="got 3"):
        simulate_events(Aggregations(np.zeros((1, 3), int), np.ones(1), np.ones(3)), pull, tx, run)
    with pytest.raises(ValueError, match="data must have leading axes"):
        simulate_events(arrival_schedule([1.0, 1.0], 1, 3), pull, tx, run, data=jnp.zeros((2, N)))
    with pytest.raises(ValueError, match="weight must be one number for each of the 2 workers"):
        simulate_events(arrival_schedule([1.0, 1.0], 1, 3), pull, tx, run, weight=1.0)
