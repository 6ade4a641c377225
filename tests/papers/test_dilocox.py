"""DiLoCoX: DiLoCo one round late, what travels is small and is said in the end, and nothing waits for it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.parallel import (
    collective_bytes,
    diloco,
    dilocox,
    error_feedback,
    int8_compressor,
    local_updates,
    low_rank_compressor,
    mean_compressor,
    one_step_delay,
    outer_nesterov,
    streaming_diloco,
    synchronize,
)

W = 4
SHAPES = {"b": (8,), "w": (16, 8)}


def draw(seed: int, shapes: Any = None) -> Any:
    rng = np.random.default_rng(seed)
    return {leaf: rng.standard_normal(shape) for leaf, shape in (shapes or SHAPES).items()}


def train(tx: Any, steps: int, replicas: int = W, dtype: Any = float) -> Any:
    """Replicas pulled to points of their own; all parameters after each step, and the last state."""
    goals = jax.tree.map(lambda *x: jnp.asarray(np.stack(x), dtype), *[draw(10 + k) for k in range(replicas)])
    x = jax.tree.map(lambda x: jnp.asarray(np.tile(x, (replicas, *[1] * x.ndim)), dtype), draw(0))
    state = jax.vmap(tx.init)(x)

    def step(x: Any, state: Any, goal: Any) -> Any:
        u, state = tx.update(jax.tree.map(jnp.subtract, x, goal), state, x)
        return optax.apply_updates(x, u), state

    program, path = jax.jit(jax.vmap(step, axis_name="replica")), []
    for _ in range(steps):
        x, state = program(x, state, goals)
        path.append(x)
    return jax.tree.map(lambda *x: np.stack(x), *path), state


def close(a: Any, b: Any, rtol: float = 1e-11) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-13), a, b)


def test_the_outer_step_is_a_round_old(x64: None) -> None:
    """In NumPy, of the mean of goals alone: losses of one curvature."""
    path, _ = train(dilocox(gk.sgd(0.1), sync_every=3, rank=None), 12)
    goal, theta = np.mean([draw(10 + k)["w"] for k in range(W)], 0), draw(0)["w"]
    m, pending = np.zeros_like(theta), np.zeros_like(theta)
    for r in range(4):
        D = theta - (goal + 0.9**3 * (theta - goal))
        m = 0.9 * m + pending
        theta = theta - 0.7 * (pending + 0.9 * m)
        pending = D
        np.testing.assert_allclose(path["w"][3 * r + 2], np.tile(theta, (W, 1, 1)), rtol=1e-11)


def test_factors_of_all_ranks_are_no_compression(x64: None) -> None:
    """In float32 words of the run, which is float64 here."""
    whole, _ = train(dilocox(gk.sgd(0.1), sync_every=2, rank=None), 8)
    factors = error_feedback(low_rank_compressor(8, min_compression_rate=0.0))
    late = local_updates(gk.sgd(0.1), sync_every=2, outer=one_step_delay(outer_nesterov()), exchange=factors)
    close(train(late, 8)[0], whole, 1e-9)


@pytest.mark.parametrize("exchange", [mean_compressor, int8_compressor])
def test_exchanges_take_the_place_of_the_mean(exchange: Any, x64: None) -> None:
    """The mean exactly; int8 to half a step of 1/127 in each of two roundings, in each of three rounds."""
    bound = 1e-11 if exchange is mean_compressor else 3 * 2 * 0.7 * 1.9 * 4 / 254
    for make, own in ((local_updates, {}), (diloco, {}), (streaming_diloco, {"fragments": 2})):
        tx = make(gk.sgd(0.1), sync_every=2, exchange=exchange(), **own)
        want, _ = train(make(gk.sgd(0.1), sync_every=2, **own), 6)
        got, _ = train(tx, 6)
        for leaf in SHAPES:
            assert np.abs(got[leaf] - want[leaf]).max() < bound
            assert np.ptp(got[leaf][-1], axis=0).max() < 1e-12 or make is streaming_diloco


def test_error_feedback_says_everything_in_the_end(x64: None) -> None:
    """Of factors of rank 1: what theta has moved by, and what is remembered, is all that replicas moved."""
    tx = local_updates(
        gk.sgd(0.1),
        sync_every=1,
        exchange=error_feedback(low_rank_compressor(1, min_compression_rate=0.0)),
    )
    path, state = train(tx, 5)
    start, goals = draw(0)["w"], np.stack([draw(10 + k)["w"] for k in range(W)])
    points = np.concatenate([np.tile(start, (1, W, 1, 1)), path["w"][:-1]])
    moved = 0.1 * (points - goals).sum(0).mean(0)
    np.testing.assert_allclose(start - path["w"][-1][0] + np.mean(state.exchange.error["w"], 0), moved, atol=1e-12)
    assert np.abs(np.asarray(state.exchange.error["w"])).max() > 1e-2


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_rounded_factors_are_said_in_the_end_too(bits: int | None, x64: None) -> None:
    """The mean is the mean of what was sent, whatever the factors were rounded to."""
    compressor = low_rank_compressor(2, bits=bits, min_compression_rate=0.0)
    tx, g = error_feedback(compressor), {leaf: np.stack([draw(k)[leaf] for k in range(W)]) for leaf in SHAPES}
    step, total = jax.jit(jax.vmap(tx.update, axis_name="replica")), jax.tree.map(np.zeros_like, g)
    state = jax.vmap(tx.init)(g)
    for _ in range(4):
        mean, state = step(g, state)
        total = jax.tree.map(np.add, total, mean)
    for leaf in SHAPES:
        want = 4 * g[leaf].mean(0)
        # The scales are float32.
        np.testing.assert_allclose(total[leaf][0] + np.mean(state.error[leaf], 0), want, atol=1e-5)
        np.testing.assert_array_equal(total[leaf], np.broadcast_to(total[leaf][:1], total[leaf].shape))


def rows(tx: Any, sync: Any) -> Any:
    mesh = jax.make_mesh((W,), ("replica",), axis_types=(AxisType.Auto,))
    shapes = {"b": (64,), "w": (256, 128)}
    x = jax.tree.map(lambda v: jnp.asarray(np.tile(v, (W, *[1] * v.ndim)), jnp.float32), draw(0, shapes))
    state = jax.vmap(tx.init)(x)

    def block(*args: Any) -> Any:
        x, state, g = jax.tree.map(lambda v: v[0], args)
        return jax.tree.map(lambda v: v[None], tx.update(g, state, x, sync=sync))

    program = jax.jit(jax.shard_map(block, mesh=mesh, in_specs=P("replica"), out_specs=P("replica")))
    return collective_bytes(program.lower(x, state, x).compile())


def test_what_travels() -> None:
    """Nothing within a round. Int8: a quarter of the mean's bytes in each half. Factors of rank 4 in 4 bits: no float
    but the scales, and some hundredths of the mean's bytes."""
    whole = 4 * (64 + 256 * 128)
    assert sum(row.result_bytes for row in rows(diloco(gk.sgd(0.1), sync_every=2), True)) == whole
    eight = diloco(gk.sgd(0.1), sync_every=2, exchange=error_feedback(int8_compressor()))
    assert rows(eight, False) == ()
    # An all-to-all and an all-gather where an all-reduce has a reduce-scatter and an all-gather of the same length.
    assert sum(row.result_bytes for row in rows(eight, True)) <= 2 * 0.26 * whole
    found = rows(dilocox(gk.sgd(0.1), sync_every=2, rank=4), True)
    assert sum(row.result_bytes for row in found) < 0.03 * whole
    floats = sum(row.result_bytes for row in found if any(d.startswith("f") for d in row.dtypes))
    assert floats < 0.3 * sum(row.result_bytes for row in found)


def test_nothing_in_a_step_waits_for_what_it_exchanges() -> None:
    """The parameters after the end of a round do not depend on what the other replicas have just done."""
    tx = dilocox(gk.sgd(0.1), sync_every=1, rank=None)
    x = jnp.ones((2, 3))
    state = jax.vmap(tx.init)(x)

    def ended(g: Any) -> Any:
        return jax.vmap(tx.update, axis_name="replica")(g, state, x)

    jac = jax.jit(jax.jacrev(lambda g: ended(g)[0]))(jnp.ones((2, 3)))
    np.testing.assert_array_equal(jac, 0.0)
    later = jax.jit(jax.jacrev(lambda g: ended(g)[1].outer.pending))(jnp.ones((2, 3)))
    assert np.abs(later[0, :, 1]).max() > 0


def test_one_step_delay(x64: None) -> None:
    g = np.random.default_rng(0).standard_normal((5, 3))
    tx, peer, x = one_step_delay(gk.adam(0.1)), gk.adam(0.1), jnp.zeros(3)
    state, other = tx.init(x), peer.init(x)
    late, now = jax.jit(tx.update), jax.jit(peer.update)
    for t in range(5):
        u, state = late(jnp.asarray(g[t]), state)
        v, other = now(jnp.asarray(g[t - 1]) if t else jnp.zeros(3), other)
        np.testing.assert_array_equal(u, v)


def test_synchronize_compresses_as_well() -> None:
    tx = diloco(gk.sgd(0.1), sync_every=5, exchange=error_feedback(int8_compressor()))
    path, state = train(tx, 3, dtype=np.float32)
    x = jax.tree.map(lambda v: jnp.asarray(v[-1]), path)
    x, after = jax.jit(jax.vmap(lambda x, s: synchronize(tx, x, s), axis_name="replica"))(x, state)
    for v in map(np.asarray, jax.tree.leaves(x)):
        np.testing.assert_array_equal(v, np.broadcast_to(v[:1], v.shape))
    assert np.abs(np.asarray(after.exchange.error["w"])).max() > 0


def test_bad_input() -> None:
    for own, text in (
        ({"rank": 0}, "rank must be an integer >= 1"),
        ({"bits": 3}, "bits must be one of None, 8, 4"),
        ({"sync_every": 0}, "sync_every must be"),
    ):
        with pytest.raises(ValueError, match=text):
            dilocox(gk.sgd(0.1), **own)
    for make in (local_updates, diloco, streaming_diloco):
        with pytest.raises(ValueError, match="exchange must be a compressor"):
            make(gk.sgd(0.1), sync_every=2, exchange=gk.sgd(0.1))
    with pytest.raises(ValueError, match="bits must be None where factors alternate"):
        low_rank_compressor(alternating=True, bits=8)
