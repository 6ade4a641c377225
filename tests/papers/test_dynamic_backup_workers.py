"""Dynamic backup workers (Xu, Neglia, Sebastianelli, 2020)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit import parallel


def run(rules: Any, gradients: Any, times: Any, losses: Any) -> Any:
    """k after every round."""
    state, ks, observe = rules.init(), [], jax.jit(rules.observe)
    for g, t, loss in zip(gradients, times, losses, strict=True):
        state = observe(state, jnp.asarray(g), loss, jnp.asarray(t))
        ks.append(int(rules.choose(state)))
    return ks


def descent(noise: float, times: Any, rounds: int = 12) -> tuple[Any, Any, Any]:
    """Gradients of |x|^2 / 2 on four workers, and the losses of gradient descent with eta = 0.1."""
    rng, x, gs, losses = np.random.default_rng(0), np.full(3, 10.0), [], []
    for _ in range(rounds):
        gs.append((x + noise * rng.standard_normal((4, 3))).astype(np.float32))
        losses.append(float(x @ x / 2))
        x = x - 0.1 * x
    return gs, [np.asarray(times, np.float32)] * rounds, losses


def test_without_noise_one_gradient_is_enough() -> None:
    assert run(parallel.dynamic_backup_workers(4, 0.1), *descent(0.0, [1.0, 2.0, 3.0, 4.0]))[-1] == 1


def test_when_all_arrive_together_all_are_waited_for() -> None:
    assert run(parallel.dynamic_backup_workers(4, 0.1), *descent(1.0, [2.0, 2.0, 2.0, 2.0]))[-1] == 4


def test_one_slow_worker_is_a_backup() -> None:
    """Three come at once, and a fourth a hundred times as late: noise is worth the third, and not the fourth."""
    assert run(parallel.dynamic_backup_workers(4, 0.1), *descent(2.0, [1.0, 1.0, 1.0, 100.0]))[-1] == 3


def test_more_are_waited_for_after_a_loss_that_grows() -> None:
    gs, times, losses = descent(0.0, [1.0, 2.0, 3.0, 4.0], 6)
    ks = run(parallel.dynamic_backup_workers(4, 0.1), [*gs, gs[-1]], [*times, times[-1]], [*losses, 2 * losses[-1]])
    assert ks[-2] == 1 and ks[-1] >= 2


def test_the_mean_of_the_earliest_and_of_none_else() -> None:
    """Ties by number; what a late worker holds is not read; k is data."""
    g = {"w": jnp.array([[1.0, 2.0], [np.nan, np.nan], [3.0, 4.0], [5.0, 6.0]])}
    times = jnp.array([1.0, np.inf, 1.0, 0.5])
    mean = jax.jit(parallel.backup_mean)
    np.testing.assert_array_equal(mean(g, times, 1)["w"], [5.0, 6.0])
    np.testing.assert_array_equal(mean(g, times, 2)["w"], [3.0, 4.0])
    np.testing.assert_array_equal(mean(g, times, 3)["w"], [3.0, 4.0])
    assert mean._cache_size() == 1
    on_replicas = jax.vmap(lambda g: parallel.backup_mean(g, times, 2, axis_name="replica"), axis_name="replica")(g)
    np.testing.assert_array_equal(on_replicas["w"], [[3.0, 4.0]] * 4)


def test_the_variance_of_a_single_gradient_is_the_last_known() -> None:
    """And T falls nowhere: from k = 1, the later arrivals of rounds before are still known."""
    rules = parallel.dynamic_backup_workers(4, 0.1)
    state, observe = rules.init(), jax.jit(rules.observe)
    for g, t, loss in zip(*descent(0.0, [1.0, 2.0, 3.0, 4.0]), strict=True):
        state = observe(state, jnp.asarray(g), loss, jnp.asarray(t))
    assert int(state.k) == 1
    assert np.isfinite(np.asarray(state.variance)[:12]).all()
    assert float(state.time_sum.sum()) > 0


def test_bad_arguments_are_refused() -> None:
    for k in (0, 5):
        with pytest.raises(ValueError, match="k must be an integer >= 1"):
            parallel.backup_mean(jnp.ones(4), jnp.ones(4), k)
    with pytest.raises(ValueError, match="leading axis of 4 workers"):
        parallel.backup_mean(jnp.ones(3), jnp.ones(4), 2)
    with pytest.raises(ValueError, match="workers must be an integer >= 1"):
        parallel.dynamic_backup_workers(0, 0.1)
