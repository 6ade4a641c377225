"""Local SGD: it is local updates of SGD, and its theorem's average is the weighted sum the paper writes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.parallel import local_sgd, local_updates, quadratic_weighted_average, replica_mean
from tests.contract.methods import same
from tests.papers.test_local_updates import W, problem, train


def test_it_is_local_updates_of_sgd() -> None:
    options = {"sync_every": 3, "average_state": True}
    got = train(local_sgd(0.1, momentum=0.9, nesterov=True, **options), 4)
    want = train(local_updates(gk.sgd(0.1, momentum=0.9, nesterov=True), **options), 4)
    same(got, want)
    plain = local_sgd(0.1).init(jnp.ones(3))
    assert all(x.shape == () for x in jax.tree.leaves(plain))
    assert int(plain.next_sync) == 8


def test_the_average_is_the_papers_sum(x64: None) -> None:
    """(1 / S_T) sum_t (a + t)^2 x_t over the points where gradients were taken, summed in one go; and its mean over
    replicas is the average of the mean iterate."""
    a, T = 20.5, 12
    start = problem()[2]
    tx = local_updates(quadratic_weighted_average(gk.sgd(0.1), offset=a), sync_every=4)
    path, state = train(tx, T)
    points = np.concatenate([np.tile(start, (1, W, 1)), path[:-1]])
    w = (a + np.arange(T)) ** 2
    want = np.einsum("t,twn->wn", w, points) / w.sum()
    np.testing.assert_allclose(gk.eval_params(state, jnp.asarray(path[-1])), want, rtol=1e-13)
    together = jax.vmap(replica_mean, axis_name="replica")(state.inner.average)
    np.testing.assert_allclose(together, np.tile(want.mean(0), (W, 1)), rtol=0, atol=1e-14)


def test_the_average_does_not_change_the_run_or_lose_its_weights() -> None:
    x = jnp.ones(3)
    tx, plain = quadratic_weighted_average(gk.adam(0.1), offset=16.0), gk.adam(0.1)
    state, alone = tx.init(x), plain.init(x)
    same(gk.eval_params(state, x), x)
    same(tx.update(x, state, x)[0], plain.update(x, alone, x)[0])
    # After a million steps, float32 weights are still those of the closed form: 3 / T up to 1 / T^2.
    late = state._replace(count=jnp.array(10**6, jnp.int32), average=jnp.zeros(3))
    share = tx.update(x, late, x)[1].average
    t = np.arange(10**6 + 1, dtype=np.float64)
    np.testing.assert_allclose(share, (16 + 10**6) ** 2 / np.sum((16 + t) ** 2), rtol=10 * 2**-24)


def test_the_rate_of_the_theorem_converges(x64: None) -> None:
    """With gamma_t = 4 / (mu (a + t)), a > max(16 kappa, H), the average approaches the minimum of the mean loss, and
    four times as many steps end at most half as far: without noise, the start is forgotten as 1 / T^2 or faster."""
    A, b, start = problem()
    A = A + np.eye(len(A))
    mu, L = np.linalg.eigvalsh(A)[[0, -1]]
    a = 16 * L / mu + 1
    best = np.linalg.solve(A, b.mean(0))
    inner = quadratic_weighted_average(gk.sgd(lambda t: 4 / (mu * (a + t.astype(float)))), offset=a)
    tx = local_updates(inner, sync_every=4)

    def run(steps: int) -> float:
        def step(carry: tuple, _: None) -> tuple:
            x, state = carry
            grads = x @ jnp.asarray(A) - jnp.asarray(b)
            updates, state = jax.vmap(tx.update, axis_name="replica")(grads, state, x)
            return (optax.apply_updates(x, updates), state), None

        x = jnp.tile(jnp.asarray(start)[None], (W, 1))
        (x, state), _ = jax.lax.scan(step, (x, jax.vmap(tx.init)(x)), None, steps)
        return float(np.linalg.norm(state.inner.average.mean(0) - best))

    far, near = run(200), run(800)
    assert near < far / 2 < np.linalg.norm(start - best) / 2


def test_bad_input() -> None:
    for bad in (0.0, -1.0, float("nan"), "a"):
        with pytest.raises(ValueError, match="offset must be"):
            quadratic_weighted_average(gk.sgd(0.1), offset=bad)
    with pytest.raises(ValueError, match="sync_every must be"):
        local_sgd(0.1, sync_every=0)
    with pytest.raises(ValueError, match="learning_rate must be"):
        local_sgd(-0.1)
