"""FedBuff: when the server steps, what old arrivals weigh, and what the order in a buffer changes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.parallel import fedbuff, flush_buffer, polynomial_staleness, threshold_staleness


def play(tx: Any, deltas: np.ndarray, staleness: Any = None, weight: Any = None) -> Any:
    """(all updates, last state)."""
    count = len(deltas)
    tau = np.zeros(count, np.int32) if staleness is None else np.asarray(staleness, np.int32)
    w = np.ones(count) if weight is None else np.asarray(weight)
    x = jnp.zeros(deltas.shape[1], deltas.dtype)

    def step(carry: Any, row: Any) -> Any:
        x, state = carry
        d, tau, w = row
        u, state = tx.update(d, state, x, staleness=tau, weight=w)
        return (x + u, state), u

    run = jax.jit(lambda x, rows: jax.lax.scan(step, (x, tx.init(x)), rows))
    (_, state), updates = run(x, (jnp.asarray(deltas), jnp.asarray(tau), jnp.asarray(w)))
    return np.asarray(updates), state


DELTAS = np.random.default_rng(0).standard_normal((12, 3))


def test_a_buffer_of_one_without_staleness_is_the_server(x64: None) -> None:
    got, _ = play(fedbuff(gk.adam(0.1), buffer_size=1), DELTAS)
    tx = gk.adam(0.1)
    state, want = tx.init(jnp.zeros(3)), []
    update = jax.jit(tx.update)
    for d in DELTAS:
        u, state = update(jnp.asarray(d), state)
        want.append(u)
    np.testing.assert_allclose(got, np.array(want), rtol=1e-12)


def test_a_full_buffer_of_fresh_arrivals_is_synchronous(x64: None) -> None:
    """FedAvg: a step by the mean of all workers, and none before."""
    got, state = play(fedbuff(optax.sgd(0.5, 0.9), buffer_size=4), DELTAS)
    np.testing.assert_array_equal(got[np.arange(12) % 4 != 3], 0.0)
    m, want = np.zeros(3), []
    for mean in DELTAS.reshape(3, 4, 3).mean(1):
        m = 0.9 * m + mean
        want.append(-0.5 * m)
    np.testing.assert_allclose(got[3::4], want, rtol=1e-12)
    assert int(state.arrived) == 0 and not np.asarray(state.total).any()


@pytest.mark.parametrize("normalize", ["buffer", "weights"])
def test_old_arrivals_count_less(normalize: str, x64: None) -> None:
    tau, w = np.array([0, 3, 8, 15]), np.array([2.0, 1.0, 5.0, 1.0])
    got, _ = play(fedbuff(optax.sgd(1.0), buffer_size=4, normalize=normalize), DELTAS[:4], tau, w)
    s = w / np.sqrt(1 + tau)
    want = -(s[:, None] * DELTAS[:4]).sum(0) / (4 if normalize == "buffer" else s.sum())
    # The weights are float32.
    np.testing.assert_allclose(got[-1], want, rtol=1e-5)


def test_the_order_in_a_buffer_does_not_matter(x64: None) -> None:
    tau, order = np.array([0, 3, 1, 2]), np.array([2, 0, 3, 1])
    tx = fedbuff(optax.sgd(1.0), buffer_size=4)
    one, _ = play(tx, DELTAS[:4], tau)
    other, _ = play(tx, DELTAS[:4][order], tau[order])
    np.testing.assert_allclose(one[-1], other[-1], rtol=1e-13)


def test_weights_of_zero_make_no_step() -> None:
    """Also not one by the momentum of the server, and no division by zero."""
    tx = fedbuff(optax.sgd(1.0, 0.9), buffer_size=2, staleness=threshold_staleness(1), normalize="weights")
    got, _ = play(tx, DELTAS[:6].astype(np.float32), [0, 0, 5, 5, 0, 5])
    assert np.abs(got[1]).min() > 0 and np.isfinite(got).all()
    np.testing.assert_array_equal(got[3], 0.0)
    m = DELTAS[:2].mean(0)
    # An empty step keeps what has arrived, of weight 0, out of the next mean.
    np.testing.assert_allclose(got[4], -(0.9 * m + DELTAS[4]), rtol=1e-5)


def test_a_run_over_a_table_keeps_the_versions_that_the_buffer_published(x64: None) -> None:
    """In NumPy, with all versions kept: workers read what is out, and old arrivals weigh by the versions since."""
    K, b = 2, np.random.default_rng(1).standard_normal((11, 3))
    table = gk.parallel.arrival_schedule([0.58, 0.75, 1.51], 1, 11).published_every(K)
    versions, total = [np.zeros(3)], np.zeros(3)
    read = [0, 0, 0]
    for e in range(11):
        w = table.worker[e]
        tau = len(versions) - 1 - read[w]
        assert tau == table.staleness[e]
        total = total + (versions[read[w]] - b[e]) / np.sqrt(1 + tau)
        if (e + 1) % K == 0:
            versions.append(versions[-1] - 0.3 * total / K)
            total = np.zeros(3)
        read[w] = len(versions) - 1
    tx = fedbuff(optax.sgd(0.3), buffer_size=K)
    run = gk.parallel.start_simulation(jnp.zeros(3), tx, 3)
    run, _ = gk.parallel.simulate_events(table, lambda x, own, b, k: (x - b, own), tx, run, data=jnp.asarray(b))
    # The weights are float32.
    np.testing.assert_allclose(run.params, versions[-1], rtol=1e-5)


def test_what_is_left_is_flushed(x64: None) -> None:
    tx = optax.sgd(1.0)
    _, state = play(fedbuff(tx, buffer_size=5), DELTAS[:7])
    x, after = flush_buffer(tx, jnp.zeros(3), state)
    np.testing.assert_allclose(x, -DELTAS[5:7].mean(0), rtol=1e-12)
    again, _ = flush_buffer(tx, x, after)
    np.testing.assert_array_equal(x, again)


def test_staleness_functions() -> None:
    tau = jnp.arange(5)
    np.testing.assert_allclose(polynomial_staleness(2.0)(tau), (1.0 + np.arange(5)) ** -2, rtol=1e-6)
    np.testing.assert_array_equal(polynomial_staleness(0.0)(tau), 1.0)
    np.testing.assert_array_equal(threshold_staleness(2, 0.5)(tau), [1, 1, 1, 0.5, 0.5])
    for weight in (polynomial_staleness(), threshold_staleness(3)):
        with pytest.raises(ValueError, match="staleness must be a number of versions >= 0, got -1"):
            weight(-1)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="buffer_size must be an integer >= 1"):
        fedbuff(optax.sgd(1.0), buffer_size=0)
    with pytest.raises(ValueError, match="normalize must be one of"):
        fedbuff(optax.sgd(1.0), normalize="mean")
    with pytest.raises(ValueError, match="staleness must be callable"):
        fedbuff(optax.sgd(1.0), staleness=0.5)
    with pytest.raises(ValueError, match="exponent must be"):
        polynomial_staleness(-1.0)
    with pytest.raises(ValueError, match="value must be"):
        threshold_staleness(1, 2.0)
