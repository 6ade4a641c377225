"""Selection by the gradient of a divergence (Everaert and Potts, 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.batches import gio_kl, gio_select
from tests.papers.replay import assert_equal, normal


def by_hand(X: np.ndarray, W: np.ndarray, k: int) -> float:
    """The estimate with explicit loops and all neighbours sorted."""
    n, d, m = len(X), X.shape[1], len(W)
    total = 0.0
    for i, x in enumerate(X):
        rho = np.sort([np.linalg.norm(x - y) for j, y in enumerate(X) if j != i])[k - 1]
        nu = np.sort(np.linalg.norm(W - x, axis=1))
        for j in range(1, m + 1):
            total += d * np.log(nu[j - 1] + 1e-8) - d * np.log(rho + 1e-8) + np.log(k * m / (j * (n - 1)))
    return total / (n * m)


def test_the_estimate_is_the_sum_over_neighbours(x64: None) -> None:
    X, W = normal(0, 9, 3), normal(1, 7, 3)
    for k in (1, 4):
        np.testing.assert_allclose(gio_kl(X, W, k=k), by_hand(np.asarray(X), np.asarray(W), k), rtol=1e-12)


def test_more_of_the_target_brings_it_down(x64: None) -> None:
    X, W = normal(0, 40, 2) + 2, normal(1, 10, 2)
    kl = [float(gio_kl(X, jnp.concatenate([W, normal(2, n, 2) + 2]))) for n in (0, 10, 40)]
    assert kl[0] > kl[1] > kl[2]


def test_it_takes_what_is_like_the_target_and_stops(x64: None) -> None:
    """From a pool of which a third is like the target; nothing twice, the divergence falls to the stop."""
    X = normal(0, 25, 2) * 0.5 + 2
    pool = jnp.concatenate([normal(1, 20, 2) - 2, normal(2, 10, 2) * 0.5 + 2])
    found = jax.jit(lambda pool, X, W: gio_select(pool, X, W, num_select=15))(pool, X, normal(3, 6, 2))
    i, kls = np.asarray(found.indices), np.asarray(found.kls)
    count = int((i >= 0).sum())
    assert 3 <= count < 15 and np.all(i[:count] >= 20) and len(set(i[:count])) == count and np.all(i[count:] == -1)
    assert np.all(np.diff(kls[:count]) < 0) and kls[count] > kls[count - 1]
    more = gio_select(pool, X, normal(3, 6, 2), num_select=30, stop="never")
    assert sorted(more.indices.tolist()) == list(range(30))
    assert_equal(more.kls[-1], gio_kl(X, jnp.concatenate([normal(3, 6, 2), pool])))


def test_later_rounds_may_begin_where_the_last_one_ended(x64: None) -> None:
    """One round is the same; with a scale of its own a step is that times the rate and the gradient."""
    X, pool, W = normal(0, 12, 2) + 2, normal(1, 9, 2) + 2, normal(2, 4, 2)
    more = {"stop": "never", "steps": 2, "k": 3, "learning_rate": 1.0, "scale": 0.5}
    mean, end = (gio_select(pool, X, W, num_select=3, v_init=v, **more).indices.tolist() for v in ("mean", "prev_opt"))
    taken, w, v = [], np.asarray(W), np.asarray(X).mean(0)
    for t in range(3):
        for _ in range(6 if t == 0 else 2):
            v = v - 0.5 * np.asarray(
                jax.grad(lambda v, w=w: gio_kl(X, jnp.concatenate([w, v[None]]), k=3))(jnp.asarray(v))
            )
        far = np.linalg.norm(np.asarray(pool) - v, axis=1)
        far[taken] = np.inf
        taken.append(int(far.argmin()))
        w = np.concatenate([w, np.asarray(pool)[taken[-1:]]])
    assert end == taken and mean[0] == end[0]


def test_without_a_start_it_begins_with_points_on_the_sphere(x64: None) -> None:
    X, pool = normal(0, 25, 3) + 2, normal(1, 10, 3) + 2
    one, same, other = (gio_select(pool, X, num_select=2, stop="never", key=key) for key in (0, 0, 1))
    assert_equal(one, same)
    assert np.abs(np.asarray(one.kls) - other.kls).max() > 1e-6
    with pytest.raises(ValueError, match="key must be given where initial is None"):
        gio_select(pool, X, num_select=2)


def test_rows_with_nan_are_refused_and_never_chosen_where_traced() -> None:
    """The pool without them, by the same numbers, is chosen from; and with a NaN in the target nothing is."""
    pool, x = np.array(normal(0, 7, 2), np.float32), np.array(normal(1, 6, 2), np.float32)
    bad = pool.copy()
    bad[[0, 3], 1] = np.nan
    others = {"k": 2, "steps": 2, "stop": "never"}
    for given, name in (((bad, x, x[:2]), "train"), ((pool, bad, x[:2]), "target"), ((pool, x, bad[:2]), "initial")):
        with pytest.raises(ValueError, match=f"gio_select: {name} must be numbers; leave rows with NaN out; got nan"):
            gio_select(*given, num_select=2, **others)
    run = jax.jit(lambda pool, x: gio_select(pool, x, pool[1:3], num_select=6, **others))
    found = np.asarray(run(bad, x).indices)
    clean = np.flatnonzero(~np.isnan(bad).any(axis=1))
    want = gio_select(pool[clean], x, pool[1:3], num_select=5, **others).indices
    assert found.tolist() == [*clean[np.asarray(want)].tolist(), -1]
    assert (np.asarray(run(pool, bad[:6]).indices) == -1).all()


def test_bad_input() -> None:
    X, pool = jnp.ones((6, 2)), jnp.ones((4, 2))
    with pytest.raises(ValueError, match="num_select must be"):
        gio_select(pool, X, pool, num_select=5)
    with pytest.raises(ValueError, match="k must be less than the number of target examples, 6"):
        gio_kl(X, pool, k=6)
    with pytest.raises(ValueError, match="must be features"):
        gio_kl(X, jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="stop must be"):
        gio_select(pool, X, pool, num_select=1, stop="later")


def test_later_rounds_may_begin_at_a_random_example_of_the_target(x64: None) -> None:
    """Two far clusters and next to no steps: from the mean the middle is taken, from examples their sides."""
    X = jnp.concatenate([normal(0, 6, 2) + 20, normal(1, 6, 2) - 20])
    pool = jnp.concatenate([normal(2, 4, 2), normal(3, 4, 2) + 20, normal(4, 4, 2) - 20])
    more = {"num_select": 4, "stop": "never", "steps": 1, "learning_rate": 1e-9, "scale": 1.0}
    picked = {v: gio_select(pool, X, X[:1], v_init=v, key=0, **more).indices for v in ("mean", "jump")}
    assert sorted(picked["mean"].tolist()) == [0, 1, 2, 3]
    assert picked["jump"][0] < 4 and np.all(np.asarray(picked["jump"][1:]) >= 4)  # the first round begins at the mean
    with pytest.raises(ValueError, match="write key=0"):
        gio_select(pool, X, X[:1], v_init="jump", **more)
