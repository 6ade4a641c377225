"""SVRG (Johnson, Zhang, 2013; as in Bottou, Curtis, Nocedal, 2016)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal

N, D = 50, 5


def ridge() -> tuple:
    """Gradient of example j, full gradient, and the solution."""
    X, y = normal(0, N, D), normal(1, N)
    A, b = np.asarray(X.T @ X) / N + 0.1 * np.eye(D), np.asarray(X.T @ y) / N

    def one(w: jax.Array, j: jax.Array) -> jax.Array:
        return X[j] * (jnp.dot(X[j], w) - y[j]) + 0.1 * w

    return one, lambda w: jnp.asarray(A) @ w - jnp.asarray(b), np.linalg.solve(A, b)


def test_at_the_snapshot_it_is_the_full_gradient(x64: None) -> None:
    one, full, _ = ridge()
    tx, w = gk.svrg_estimator(3), normal(2, D)
    state, snapshot = tx.init(w), w
    for t in range(7):
        extra = {"grad_fn": lambda w, t=t: one(w, t), "full_grad_fn": full}
        assert bool(state.due) == (t % 3 == 0)
        v, state = tx.update(one(w, t), state, w, **extra)
        if t % 3 == 0:
            assert_equal(v, full(w))
            snapshot = w
        assert_equal(v, one(w, t) - one(snapshot, t) + full(snapshot))
        w = w - 0.1 * v


def test_it_is_unbiased(x64: None) -> None:
    """The mean over all examples is the full gradient, anywhere."""
    one, full, _ = ridge()
    tx, w, away = gk.svrg_estimator(9), normal(2, D), normal(3, D)
    _, state = tx.update(one(w, 0), tx.init(w), w, grad_fn=lambda w: one(w, 0), full_grad_fn=full)
    each = [
        tx.update(one(away, j), state, away, grad_fn=lambda w, j=j: one(w, j), full_grad_fn=full)[0] for j in range(N)
    ]
    assert_equal(jnp.mean(jnp.stack(each), 0), full(away))


@pytest.mark.parametrize("mode", ["last", "average"])
def test_arrays_take_the_place_of_functions(mode: str, x64: None) -> None:
    """With the gradients at `state.point(params)`; and the average is that of the iterates since the last snapshot."""
    one, full, _ = ridge()
    tx = gk.svrg_estimator(3, mode=mode)
    paths = []
    for arrays in (False, True):
        w = normal(2, D)
        state, path, snapshots = tx.init(w), [w], []
        for t in range(8):
            s = state.point(w)
            snapshots.append(s)
            given = {"snapshot_grads": one(s, t), "full_grads": full(s)}
            called = {"grad_fn": lambda w, t=t: one(w, t), "full_grad_fn": full}
            v, state = tx.update(one(w, t), state, w, **(given if arrays else called))
            w = w - 0.1 * v
            path.append(w)
        if mode == "average":
            assert_equal(snapshots[3], jnp.mean(jnp.stack(path[:3]), 0))
            assert_equal(snapshots[6], jnp.mean(jnp.stack(path[3:6]), 0))
        else:
            assert_equal(snapshots[3], path[3])
        paths.append(path)
    assert_equal(*paths)


@pytest.mark.parametrize("mode", ["last", "average"])
def test_converges_linearly_where_sgd_stalls(mode: str, x64: None) -> None:
    one, full, solution = ridge()
    indices = jnp.asarray(np.random.default_rng(0).integers(0, N, 4000))

    def distances(svrg: bool) -> np.ndarray:
        head = gk.svrg_estimator(2 * N, mode=mode) if svrg else optax.identity()
        tx = optax.with_extra_args_support(optax.chain(head, gk.sgd(0.05)))

        def step(carry: tuple, j: jax.Array) -> tuple:
            w, state = carry
            u, state = tx.update(one(w, j), state, w, grad_fn=lambda w: one(w, j), full_grad_fn=full)
            return (w + u, state), jnp.linalg.norm(w - solution)

        start = jnp.zeros(D)
        return np.asarray(jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), indices)[1])())

    svrg, sgd = distances(True), distances(False)
    # Every 1000 steps the distance falls at least to a hundredth, until it is rounding error.
    for k in (1000, 2000, 3000):
        assert svrg[k] < max(0.01 * svrg[k - 1000], 1e-13)
    assert svrg[-1] < 1e-10 and sgd[2000:].min() > 1e-2


def test_missing_arguments() -> None:
    tx, x = gk.svrg_estimator(2), jnp.ones(2)
    with pytest.raises(ValueError, match="svrg_estimator needs the extra argument grad_fn or snapshot_grads"):
        tx.update(x, tx.init(x), x, full_grads=x)
    with pytest.raises(ValueError, match="svrg_estimator needs the extra argument full_grad_fn or full_grads"):
        tx.update(x, tx.init(x), x, snapshot_grads=x)
