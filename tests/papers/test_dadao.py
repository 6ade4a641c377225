"""DADAO (Nabli, Oyallon, 2022)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit import parallel

RING = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0.0]])


def problem() -> tuple[Any, Any]:
    """Quadratics of four workers, with eigenvalues from 1 to 4."""
    rng = np.random.default_rng(0)
    Q = [np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(4)]
    return jnp.asarray([q * [1.0, 2.0, 4.0] @ q.T for q in Q]), jnp.asarray(rng.standard_normal((4, 3)))


def run(rules: Any, events: np.ndarray) -> Any:
    A, b = problem()

    def step(state: Any, event: Any) -> tuple[Any, None]:
        kind, time, i, j = event
        i, j = i.astype(jnp.int32), j.astype(jnp.int32)
        computed = rules.gradient_event(state, i, time, lambda x, i: A[i] @ (x - b[i]))
        talked = rules.gossip_event(state, i, jnp.maximum(j, 0), time)
        return jax.tree.map(lambda c, t: jnp.where(kind == 1, c, t), computed, talked), None

    state = rules.init(jnp.zeros((4, 3)))
    return jax.jit(lambda s, e: jax.lax.scan(step, s, e)[0])(state, jnp.asarray(events))


def chi(rates: np.ndarray) -> float:
    """1 / the smallest positive eigenvalue of the Laplacian, with the half of the paper."""
    laplacian = np.diag(rates.sum(1)) - rates
    return float(2 / np.linalg.eigvalsh(laplacian)[1])


def test_all_workers_reach_the_minimum_of_all(x64: None) -> None:
    rates = 2.0 * RING
    events = parallel.poisson_events(0, 1.0, rates, 900.0)
    state = run(parallel.dadao(1.0, 4.0, chi(rates)), events)
    A, b = map(np.asarray, problem())
    want = np.linalg.solve(A.sum(0), np.einsum("wij,wj->i", A, b))
    # The theory's rate is exp(-t sqrt(mu / L) / 16) or so, 900 units of time: below 1e-6.
    np.testing.assert_allclose(state.x, np.tile(want, (4, 1)), rtol=0, atol=1e-6)


def test_gossip_moves_no_sum(x64: None) -> None:
    """Where all rows are at one time: z and z~ add up to 0 after gossip, whatever the gradients were."""
    rules = parallel.dadao(1.0, 4.0, 1.0)
    state = rules.init(jnp.zeros((4, 3)))._replace(y=jnp.asarray(np.random.default_rng(1).standard_normal((4, 3))))
    for i, j in ((0, 1), (1, 3), (2, 3)):
        state = rules.gossip_event(state, i, j, 0.0)
    assert np.abs(state.z).max() > 0
    np.testing.assert_allclose(np.sum(state.z, axis=0), 0, atol=1e-13)
    np.testing.assert_allclose(np.sum(state.z_tilde, axis=0), 0, atol=1e-13)


def test_an_event_touches_its_workers_alone_and_time_runs_forward(x64: None) -> None:
    rules = parallel.dadao(1.0, 4.0, 1.0)
    state = run(rules, np.array([[1, 1.0, 1, -1], [0, 2.0, 1, 2.0]]))
    np.testing.assert_array_equal(state.time, [0, 2, 2, 0])
    assert not np.any(state.x[0]) and np.any(state.z[2])
    late = rules.gossip_event(state, 1, 2, 0.5)
    np.testing.assert_array_equal(late.time, state.time)
    assert np.isfinite(late.z).all()


def test_ticks_are_poisson_and_a_table_can_be_drawn_again() -> None:
    events = parallel.poisson_events(3, [1.0, 0.0, 2.0, 1.0], RING, 1000.0)
    np.testing.assert_array_equal(events, parallel.poisson_events(3, [1.0, 0.0, 2.0, 1.0], RING, 1000.0))
    assert (np.diff(events[:, 1]) >= 0).all() and events[-1, 1] < 1000
    gradients = events[events[:, 0] == 1]
    counts = [np.sum(gradients[:, 2] == i) for i in range(4)]
    # Five standard deviations of a Poisson number.
    np.testing.assert_allclose(counts, [1000, 0, 2000, 1000], atol=5 * 2000**0.5)
    gossip = events[events[:, 0] == 0]
    assert {(int(i), int(j)) for _, _, i, j in gossip} == {(0, 1), (0, 3), (1, 2), (2, 3)}
    assert abs(len(gossip) - 4000) < 5 * 4000**0.5


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="L must be >= mu"):
        parallel.dadao(2.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="mu must be in"):
        parallel.dadao(0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="leading axis of workers"):
        parallel.dadao(1.0, 1.0, 1.0).init({"a": jnp.ones((2, 1)), "b": jnp.ones(())})
    with pytest.raises(ValueError, match="edge_rates must connect all workers"):
        parallel.poisson_events(0, 1.0, np.eye(2) * 0, 1.0)
    with pytest.raises(ValueError, match="edge_rates must be a symmetric matrix"):
        parallel.poisson_events(0, 1.0, [[0.0, 1.0], [2.0, 0.0]], 1.0)
    with pytest.raises(ValueError, match="rate_grad must be numbers >= 0"):
        parallel.poisson_events(0, -1.0, RING, 1.0)
