"""DiLoCo: what it reduces to, what its outer step is, and that it trains on a mesh as on one device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.parallel import collective_bytes, diloco, init_replicas, local_updates, replicate, sync_steps, synchronize
from tests.papers.test_local_updates import W, problem, train

H = 3


def test_with_no_momentum_and_rate_one_it_is_local_sgd(x64: None) -> None:
    for inner in (gk.sgd(0.1), gk.adamw(0.1)):
        got, _ = train(diloco(inner, sync_every=H, outer_learning_rate=1.0, outer_momentum=0.0), 9)
        want, _ = train(local_updates(inner, sync_every=H), 9)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)


def test_one_step_of_sgd_per_round_is_sgd_on_the_mean_gradient(x64: None) -> None:
    """With the outer momentum, at a rate of gamma times eta."""
    for nesterov in (True, False):
        path, _ = train(diloco(gk.sgd(0.1), sync_every=1, outer_nesterov=nesterov), 8)
        A, b, x = problem()
        tx = optax.sgd(0.7 * 0.1, momentum=0.9, nesterov=nesterov)
        state = tx.init(x)
        for t in range(8):
            updates, state = tx.update(A @ x - b.mean(0), state, x)
            x = optax.apply_updates(x, updates)
            np.testing.assert_allclose(path[t], np.tile(np.asarray(x), (W, 1)), rtol=0, atol=1e-13)


def test_the_outer_step_of_the_paper(x64: None) -> None:
    """Three rounds of 3 steps against the equations, in NumPy: sign, momentum, and a start that all share."""
    A, b, theta = problem()
    path, state = train(diloco(gk.sgd(0.1), sync_every=H), 9)
    m = np.zeros_like(theta)
    for r in range(3):
        x = np.tile(theta, (W, 1))
        for t in range(H):
            x = x - 0.1 * (x @ A - b)
            if t < H - 1:
                np.testing.assert_allclose(path[H * r + t], x, rtol=0, atol=1e-13)
        D = (theta - x).mean(0)
        m = 0.9 * m + D
        theta = theta - 0.7 * (D + 0.9 * m)
        np.testing.assert_allclose(path[H * r + 2], np.tile(theta, (W, 1)), rtol=0, atol=1e-13)
    np.testing.assert_allclose(state.start, np.tile(theta, (W, 1)), rtol=0, atol=1e-13)
    np.testing.assert_allclose(jax.tree.leaves(state.outer)[0], np.tile(m, (W, 1)), rtol=0, atol=1e-13)


def test_the_inner_state_goes_on() -> None:
    """Neither averaged nor reset: it is that of the gradients each replica saw, and so is its counter."""
    _, state = train(diloco(gk.adam(0.01), sync_every=2), 6, dtype=jnp.float32)
    adam = state.inner[0]
    assert adam.count.tolist() == [6] * W
    assert np.ptp(adam.mu, axis=0).min() > 0


def test_the_outer_point_is_float32_of_bfloat16_parameters() -> None:
    """Rounds that move less than bfloat16 resolves still add up."""
    tx = diloco(gk.sgd(1.0), sync_every=1, outer_learning_rate=2.0**-10, outer_momentum=0.0)
    x = jnp.ones((2, 3), jnp.bfloat16)
    state = jax.vmap(tx.init)(x)
    step = jax.jit(jax.vmap(tx.update, axis_name="replica"))
    for _ in range(8):
        updates, state = step(jnp.ones_like(x), state, x)
        x = optax.apply_updates(x, updates)
        assert updates.dtype == x.dtype == jnp.bfloat16
    # Locals move by one, so theta by 2^-10 and more: eight times that is two spacings of bfloat16 below 1.
    np.testing.assert_array_equal(x, state.start.astype(jnp.bfloat16))
    assert state.start.dtype == jnp.float32
    np.testing.assert_allclose(state.start, 1 - 8 * 2.0**-10, atol=8 * 2.0**-10 * 2**-7)


def test_the_outer_state_may_be_one_array_for_all() -> None:
    """Its type says that it is the same on all replicas, so it may be replicated, and enter and leave as that."""
    mesh = jax.make_mesh((W,), ("replica",), axis_types=(AxisType.Auto,))
    tx = diloco(gk.adam(0.1), sync_every=2)
    rows = jnp.arange(W * 3.0).reshape(W, 3)
    params = replicate(jnp.ones(3), W)
    apart, shared = init_replicas(tx, params), tx.init(jnp.ones(3))
    shared = shared._replace(inner=replicate(shared.inner, W))
    specs = jax.tree.map(lambda _: P(), shared)._replace(inner=jax.tree.map(lambda _: P("replica"), shared.inner))

    def step(x: Any, state: Any, g: Any) -> Any:
        x, inner, g = jax.tree.map(lambda v: v[0], (x, state.inner, g))
        updates, state = tx.update(g, state._replace(inner=inner), x)
        x, inner = jax.tree.map(lambda v: v[None], (x + updates, state.inner))
        return x, state._replace(inner=inner)

    one = P("replica")
    program = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(one, specs, one), out_specs=(one, specs)))
    all_ = jax.jit(jax.vmap(tx.update, axis_name="replica"))
    x, y = params, params
    for _ in range(4):
        x, shared = program(x, shared, rows)
        updates, apart = all_(rows, apart, y)
        y = optax.apply_updates(y, updates)
    # A few roundings of 2^-24 per step, on numbers below 2.
    assert np.abs(np.asarray(x - y)).max() < 1e-6
    assert np.abs(np.asarray(shared.start - apart.start[0])).max() < 1e-6


def loss(params: Any, batch: Any) -> jax.Array:
    x, y = batch
    return jnp.mean(jnp.square(jnp.tanh(x @ params["in"]) @ params["out"] - y))


@pytest.mark.slow
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "sharded along data"])
def test_training_on_a_mesh_of_replicas_and_data(cut: bool) -> None:
    """Four replicas of two devices each: the run of one device to rounding; replicas meet only at a round's end."""
    rng = np.random.default_rng(0)
    start = {"in": rng.standard_normal((3, 8)) / 2, "out": rng.standard_normal((8, 2)) / 2}
    start = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), start)
    inputs = jnp.asarray(rng.standard_normal((8, W, 16, 3)), jnp.float32)
    batches = (inputs, jnp.sin(inputs[..., :2]))
    tx = diloco(gk.adamw(0.02), sync_every=H)

    def step(params: Any, state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(grads, state, params, sync=False)
        return optax.apply_updates(params, updates), state, value

    def meet(params: Any, state: Any) -> Any:
        return synchronize(tx, params, state)

    def run(params: Any, state: Any, place: Any, out: Any) -> Any:
        local = jax.jit(jax.vmap(step, axis_name="replica"), out_shardings=out and (*out, None))
        exchange = jax.jit(jax.vmap(meet, axis_name="replica"), out_shardings=out)
        first = jax.tree.map(lambda v: place(v[0]), batches)
        programs = (local.lower(params, state, first).compile(), exchange.lower(params, state).compile())
        values = []
        for t, sync in enumerate(sync_steps(H, 8)):
            params, state, value = local(params, state, jax.tree.map(lambda v, t=t: place(v[t]), batches))
            if sync:
                params, state = exchange(params, state)
            values.append(np.asarray(value))
        return params, state, np.stack(values), programs

    params = replicate(start, W)
    want = run(params, init_replicas(tx, params), lambda v: v, None)

    mesh = jax.make_mesh((W, 2), ("replica", "data"), axis_types=(AxisType.Auto,) * 2)
    specs = {"in": P(None, "data"), "out": P("data")} if cut else {"in": P(), "out": P()}
    params = replicate(jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), start, specs), W)
    state = init_replicas(tx, params)
    for name in specs:
        for x in (params, state.start, state.inner[0].mu):
            assert x[name].sharding.is_equivalent_to(NamedSharding(mesh, P("replica", *specs[name])), 3)
    lies = jax.tree.map(lambda x: x.sharding, (params, state))
    got = run(params, state, lambda v: jax.device_put(v, NamedSharding(mesh, P("replica", "data"))), lies)
    assert jax.tree.map(lambda x: x.sharding, got[:2]) == lies

    # Sums over a batch are taken in another order: some roundings of 2^-24 per step, which Adam's first steps, whose
    # size does not depend on the gradient's, amplify where a gradient is small.
    for a, b in zip(jax.tree.leaves(got[:3]), jax.tree.leaves(want[:3]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
    assert got[2][-1].mean() < 0.7 * got[2][0].mean()

    inside, between = map(collective_bytes, got[3])
    assert {row.group_size for row in inside} == {2}  # the two devices of a replica
    assert {row.group_size for row in between} == {W}
    assert {row.opcode for row in between} == {"all-reduce"}
    assert sum(row.result_bytes for row in between) == 4 * (24 + 16) // (2 if cut else 1)


def test_bad_input() -> None:
    for name, bad in (("outer_learning_rate", -1.0), ("outer_momentum", 1.5), ("sync_every", 0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            diloco(gk.sgd(0.1), **{name: bad})
    with pytest.raises(ValueError, match="momentum must be"):
        gk.parallel.outer_nesterov(0.7, float("nan"))
