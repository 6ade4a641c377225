"""Local updates: what a round does, when it ends, and that nothing travels before."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.parallel import collective_bytes, local_updates, replica_mean, sync_steps, synchronize

W, N = 4, 5


def problem(seed: int = 0) -> tuple[Any, Any, Any]:
    """Losses x^T A x / 2 - b_k^T x with one A for all replicas, and a start."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((N, N))
    return (root @ root.T / N, rng.standard_normal((W, N)), rng.standard_normal(N))


def train(tx: Any, steps: int, *, sync: Any = None, exact: bool = False, seed: int = 0, dtype: Any = float) -> Any:
    """Parameters of all replicas after each step, and the last state."""
    A, b, start = (jnp.asarray(v, dtype) for v in problem(seed))
    x = jnp.tile(start[None], (W, 1))
    state = jax.vmap(tx.init, axis_name="replica")(x)

    def step(x: Any, state: Any, b: Any, sync: Any) -> Any:
        updates, state = tx.update(A @ x - b, state, x, sync=sync)
        x = optax.apply_updates(x, updates)
        return synchronize(tx, x, state) if exact else (x, state)

    programs = {
        s: jax.jit(jax.vmap(lambda x, state, b, s=s: step(x, state, b, s), axis_name="replica"))
        for s in (None, False, True)
    }
    path = []
    for t in range(steps):
        x, state = programs[None if sync is None else bool(sync[t])](x, state, b)
        path.append(np.asarray(x))
    return np.stack(path), state


@pytest.mark.parametrize("H", [1, 2, 3, 8])
def test_the_mean_iterate_does_not_depend_on_the_length_of_a_round(H: int, x64: None) -> None:
    """Of quadratics with one A the mean gradient is that at the mean point: it is gradient descent, whatever H is."""
    A, b, x = problem()
    path, _ = train(local_updates(gk.sgd(0.1), sync_every=H), 24)
    for t in range(24):
        x = x - 0.1 * (A @ x - b.mean(0))
        # 24 steps of some ten roundings of 2^-53 each, on numbers of size 1 that the steps do not enlarge.
        np.testing.assert_allclose(path[t].mean(0), x, rtol=0, atol=24 * 10 * 2**-53 * 4)
        together = np.ptp(path[t], axis=0).max()
        assert together < 1e-14 if (t + 1) % H == 0 else together > 1e-3


def test_between_exchanges_replicas_train_as_if_alone(x64: None) -> None:
    """Up to the first exchange, each is its own run of the inner optimizer; then all are at the mean of those."""
    A, b, x = problem()
    path, _ = train(local_updates(gk.adamw(0.1), sync_every=3), 3)
    alone = []
    for k in range(W):
        tx, y, ys = gk.adamw(0.1), jnp.asarray(x), []
        state = tx.init(y)
        for _ in range(3):
            updates, state = tx.update(A @ y - b[k], state, y)
            ys.append(y := optax.apply_updates(y, updates))
        alone.append(np.stack(ys))
    np.testing.assert_allclose(path[:2], np.stack(alone, 1)[:2], rtol=1e-13)
    np.testing.assert_allclose(path[2], np.tile(np.mean(alone, 0)[2], (W, 1)), rtol=1e-13)


def test_one_step_per_round_is_data_parallel_sgd(x64: None) -> None:
    path, _ = train(local_updates(gk.sgd(0.1), sync_every=1), 5)
    A, b, x = problem()
    tx = gk.sgd(0.1)
    state = tx.init(x)
    for t in range(5):
        updates, state = tx.update(A @ x - b.mean(0), state, x)
        x = optax.apply_updates(x, updates)
        np.testing.assert_allclose(path[t], np.tile(np.asarray(x), (W, 1)), rtol=0, atol=1e-14)


def test_momenta_stay_apart_or_are_averaged(x64: None) -> None:
    """With averaged momenta, heavy ball on one A is linear in (x, m): the mean is heavy ball on the mean loss."""
    inner = gk.sgd(0.1, momentum=0.9)
    _, apart = train(local_updates(inner, sync_every=3), 6)
    _, joined = train(local_updates(inner, sync_every=3, average_state=True), 6)
    own, mean = (next(x for x in jax.tree.leaves(s.inner) if x.shape == (W, N)) for s in (apart, joined))
    assert np.ptp(own, axis=0).min() > 1e-3
    assert np.ptp(mean, axis=0).max() == 0
    np.testing.assert_allclose(mean, jnp.tile(own.mean(0)[None], (W, 1)), rtol=0, atol=1e-13)


def test_counters_and_keys_are_never_averaged() -> None:

    def init(params: Any) -> Any:
        return {"key": jax.random.key(3), "count": jnp.zeros((), jnp.int32), "flag": jnp.array(True), "m": 0 * params}

    def update(g: Any, state: Any, params: Any) -> Any:
        key, _ = jax.random.split(state["key"])
        return g, {**state, "key": key, "count": state["count"] + 1, "m": state["m"] + g}

    tx = local_updates(optax.GradientTransformation(init, update), sync_every=1, average_state=True)
    g = jnp.arange(W * 2.0).reshape(W, 2)
    state = jax.vmap(tx.init)(g)
    _, new = jax.jit(jax.vmap(tx.update, axis_name="replica"))(g, state, g)
    assert jax.tree.map(lambda a: a.dtype, new) == jax.tree.map(lambda a: a.dtype, state)
    assert new.inner["count"].tolist() == [1] * W
    assert new.inner["flag"].tolist() == [True] * W
    key = jax.random.key_data(jax.random.split(jax.random.key(3))[0])
    np.testing.assert_array_equal(jax.random.key_data(new.inner["key"]), np.tile(key, (W, 1)))
    np.testing.assert_array_equal(new.inner["m"], np.tile(g.mean(0), (W, 1)))


def test_after_an_exchange_all_replicas_hold_the_same_bits() -> None:
    """Also where adding cannot get there: a number next to nothing, seen from others near 1."""
    x = np.random.default_rng(1).standard_normal((W, 1000)).astype(np.float32)
    x[:, 0] = [1 + 2**-23, -1, 2.0**-40, -(2.0**-23)]  # the mean is 2^-42
    for outer in (None, gk.parallel.outer_nesterov()):
        tx = local_updates(optax.sgd(0.0), sync_every=2, outer=outer)
        state = jax.vmap(tx.init)(jnp.zeros_like(x))  # all start from one point
        exact, met = jax.jit(jax.vmap(lambda x, s, tx=tx: synchronize(tx, x, s), axis_name="replica"))(x, state)
        for leaf in map(np.asarray, jax.tree.leaves((exact, met))):
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))

        step = jax.vmap(lambda g, s, x, tx=tx: tx.update(g, s, x, sync=True), axis_name="replica")
        updates, _ = jax.jit(step)(jnp.zeros_like(x), state, x)
        exact, added = np.asarray(exact), np.asarray(optax.apply_updates(jnp.asarray(x), updates))
        size = np.maximum(np.abs(x), np.abs(exact))
        # Two roundings to nearest: of a difference, at most twice the larger in size, and of the sum.
        assert np.all(np.abs(added - exact) <= 2 * 2**-24 * size + 2**-24 * np.abs(added))
        near = (np.abs(x) >= np.abs(exact) / 2) & (np.abs(x) <= 2 * np.abs(exact)) & (np.sign(x) == np.sign(exact))
        assert near.mean() > 0.05
        np.testing.assert_array_equal(added[near], exact[near])
        assert np.any(added != exact)


def test_steps_and_exchanges_as_two_programs_are_the_one_with_a_branch(x64: None) -> None:
    H, steps = 3, 10
    for outer in (None, gk.parallel.outer_nesterov()):
        tx = local_updates(gk.sgd(0.1, momentum=0.9), sync_every=H, outer=outer)
        want, end = train(tx, steps)
        got, state = train(tx, steps, sync=sync_steps(H, steps))
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)
        assert state.next_sync.tolist() == end.next_sync.tolist() == [12] * W

        exact, state = train(tx, 1, sync=[False], exact=True)
        np.testing.assert_allclose(exact[0], train(tx, 1, sync=[True])[0][0], rtol=0, atol=1e-14)
        assert np.all(exact[0] == exact[0][:1])
        assert state.next_sync.tolist() == [1 + H] * W


def test_a_traced_decision_is_taken_as_it_comes(x64: None) -> None:
    tx = local_updates(gk.sgd(0.1), sync_every=100)
    x = jnp.asarray(problem()[1])
    state = jax.vmap(tx.init)(x)
    step = jax.jit(jax.vmap(lambda x, s, now: tx.update(x, s, x, sync=now), (0, 0, None), axis_name="replica"))
    apart, s = step(x, state, jnp.array(False))
    together, t = step(x, state, jnp.array(True))
    np.testing.assert_array_equal(apart, -0.1 * x)
    np.testing.assert_allclose(x + together, jnp.tile(0.9 * x.mean(0)[None], (W, 1)), rtol=0, atol=1e-15)
    assert (s.next_sync[0], t.next_sync[0]) == (100, 101)


def ends(tx: Any, steps: int) -> list[int]:
    """The steps after which all replicas were at one point."""
    path, _ = train(tx, steps)
    return [t + 1 for t in range(steps) if np.ptp(path[t], axis=0).max() < 1e-12]


def test_when_a_round_ends(x64: None) -> None:
    def quadratic_rule(rate: Any) -> Any:
        return lambda count: jnp.maximum(jnp.floor((0.02 / rate(count)) ** 2 + 1e-9), 1).astype(jnp.int32)

    rules = {
        "integer": (3, [3, 6, 9, 12, 15]),
        "booleans": ([t in (0, 1, 7) for t in range(10)], [1, 2, 8]),
        "constant rate": (quadratic_rule(lambda count: 0.01), [4, 8, 12, 16]),
        "rate halved": (quadratic_rule(lambda count: jnp.where(count < 6, 0.02, 0.01)), [1, 2, 3, 4, 5, 6, 10, 14]),
        # The round of steps 5 to 8 keeps its length; the next is 4 times as long.
        "halved within a round": (quadratic_rule(lambda count: jnp.where(count < 6, 0.01, 0.005)), [4, 8]),
        "callable of ints": (lambda count: 5, [5, 10, 15]),
        "never below one": (lambda count: 0 * count - 3, list(range(1, 17))),
    }
    for name, (sync_every, want) in rules.items():
        assert ends(local_updates(gk.sgd(0.01), sync_every=sync_every), 16) == want, name
        assert (np.flatnonzero(sync_steps(sync_every, 16)) + 1).tolist() == want, name
        longer = sync_steps(sync_every, 30)
        assert longer[:16].tolist() == sync_steps(sync_every, 16).tolist()
    halved = rules["halved within a round"][0]
    assert (np.flatnonzero(sync_steps(halved, 30)) + 1).tolist() == [4, 8, 24]


def test_a_run_that_stops_within_a_round_ends_with_the_mean(x64: None) -> None:
    tx = local_updates(gk.sgd(0.1), sync_every=4)
    path, state = train(tx, 6)
    assert np.ptp(path[-1], axis=0).max() > 1e-3
    mean = jax.vmap(replica_mean, axis_name="replica")(path[-1])
    end, _ = jax.vmap(lambda x, s: synchronize(tx, x, s), axis_name="replica")(jnp.asarray(path[-1]), state)
    np.testing.assert_array_equal(mean, end)
    np.testing.assert_allclose(mean, np.tile(path[-1].mean(0), (W, 1)), rtol=0, atol=1e-15)


def test_what_travels() -> None:
    """A step within a round compiles to no collective; one that ends it, to one float32 all-reduce of the parameters;
    with a branch, the same one stands in the branch."""
    mesh = jax.make_mesh((8,), ("replica",), axis_types=(AxisType.Auto,))
    x = jax.device_put(jnp.ones((8, 64), jnp.bfloat16), jax.NamedSharding(mesh, P("replica")))
    for outer, average in ((None, False), (gk.parallel.outer_nesterov(), False), (None, True)):
        tx = local_updates(gk.adam(0.1), sync_every=2, outer=outer, average_state=average)
        state = gk.parallel.init_replicas(tx, x)

        def compiled(sync: Any, tx: Any = tx, state: Any = state) -> Any:
            def step(x: Any, state: Any) -> Any:
                x, state = jax.tree.map(lambda v: v[0], (x, state))
                return jax.tree.map(lambda v: v[None], tx.update(x, state, x, sync=sync))

            program = jax.shard_map(step, mesh=mesh, in_specs=P("replica"), out_specs=P("replica"))
            return jax.jit(program).lower(x, state).compile()

        assert collective_bytes(compiled(False)) == ()
        words = 64 * 3 + 1 if average else 64  # the moments, and the rate that Adam's chain publishes
        for sync in (True, None):
            rows = collective_bytes(compiled(sync))
            assert {row.opcode for row in rows} == {"all-reduce"}
            assert {dtype for row in rows for dtype in row.dtypes} == {"f32"}
            assert sum(row.result_bytes for row in rows) == 4 * words
        assert " conditional(" in compiled(None).as_text()


def test_bad_input() -> None:
    for bad in (0, -1, 2.5, float("nan"), True, "often", None, [1, 2], np.ones((2, 2), bool)):
        with pytest.raises(ValueError, match="sync_every must be an integer >= 1, a callable or an array of booleans"):
            local_updates(gk.sgd(0.1), sync_every=bad)
        with pytest.raises(ValueError, match="sync_every must be"):
            sync_steps(bad, 3)
    with pytest.raises(ValueError, match="sync_every must return an integer"):
        local_updates(gk.sgd(0.1), sync_every=lambda count: 4.0).init(jnp.ones(2))
    tx = local_updates(gk.sgd(0.1), sync_every=1)
    x = jnp.ones(3)
    with pytest.raises(ValueError, match="local_updates needs params"):
        tx.update(x, tx.init(x))
    with pytest.raises(ValueError, match="there is no axis 'replica' here"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match="there is no axis 'replica' here"):
        synchronize(tx, x, tx.init(x))
    with pytest.raises(ValueError, match="'n' has dtype int32"):
        tx.init({"n": jnp.ones(3, jnp.int32)})
    with pytest.raises(ValueError, match="do not match the parameters"):
        tx.update({"a": x}, tx.init(x), x)
    with pytest.raises(ValueError, match="local_updates or a strategy returned"):
        synchronize(optax.chain(tx), x, tx.init(x))
