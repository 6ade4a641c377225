"""MT-DAO: what equals data-parallel training and what cannot, and that every part meets at its own period."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.parallel import collective_bytes, mt_dao, periodic_sync

W, N = 4, 3
G = np.random.default_rng(0).standard_normal((8, W, N))


def train(tx: Any, steps: int, rows: Any = G) -> Any:
    x = jnp.ones((W, N))
    state = jax.vmap(tx.init)(x)

    def step(x: Any, state: Any, g: Any) -> Any:
        u, state = tx.update(g, state, x)
        return optax.apply_updates(x, u), state

    program, path = jax.jit(jax.vmap(step, axis_name="replica")), []
    for t in range(steps):
        x, state = program(x, state, jnp.asarray(rows[t]))
        path.append(np.asarray(x))
    return np.stack(path), state


def momenta(state: Any) -> Any:
    return [np.asarray(u) for u in state.inner[0].momenta]


def test_momenta_are_linear_and_second_moments_are_not(x64: None) -> None:
    """With all periods 1, "sgdm" is training with the mean gradient; of Adam only the momentum is."""
    own = {"b1s": (0.9, 0.99), "weights": (0.5, 0.3), "sync_every": 1}
    mean = np.tile(G.mean(1, keepdims=True), (1, W, 1))
    for base in ("sgdm", "adam"):
        apart, state = train(mt_dao(0.1, base=base, **own), 6)
        together, other = train(mt_dao(0.1, base=base, **own), 6, mean)
        np.testing.assert_allclose(momenta(state), momenta(other), rtol=1e-12)
        if base == "sgdm":
            np.testing.assert_allclose(apart, together, rtol=1e-12)
        else:
            assert np.abs(apart - together).max() > 1e-2


def test_a_weight_of_one_is_adam_without_correction(x64: None) -> None:
    path, _ = train(mt_dao(0.1, b1s=(0.9,), weights=(1.0,), b2=0.99, sync_every=100), 6)
    m, v, x = np.zeros((W, N)), np.zeros((W, N)), np.ones((W, N))
    for t in range(6):
        m, v = 0.9 * m + 0.1 * G[t], 0.99 * v + 0.01 * G[t] ** 2
        x = x - 0.1 * m / (np.sqrt(v) + 1e-8)
        np.testing.assert_allclose(path[t], x, rtol=1e-11)


def test_what_was_averaged_fades_with_the_decay(x64: None) -> None:
    """K steps after the momenta have met, b^K of what they then agreed on is left in each."""
    rows = np.concatenate([G[:2], np.zeros((4, W, N))])
    tx = mt_dao(0.1, b1s=(0.9,), weights=(0.5,), base="sgdm", sync_every=100, momentum_sync_every=(2,))
    met = momenta(train(tx, 2, rows)[1])[0]
    np.testing.assert_allclose(met, np.tile((0.09 * G[0] + 0.1 * G[1]).mean(0), (W, 1)), rtol=1e-12)
    np.testing.assert_allclose(momenta(train(tx, 6, rows)[1])[0], 0.9**4 * met, rtol=1e-12)


def test_every_part_has_its_period(x64: None) -> None:
    own = {"momentum_sync_every": (2, 4), "second_moment_sync_every": 8, "b1s": (0.9, 0.99), "weights": (0.5, 0.3)}
    tx = mt_dao(0.1, sync_every=3, **own)
    for steps in range(1, 9):
        path, state = train(tx, steps)
        parts = [path[-1], *momenta(state), np.asarray(state.inner[0].denominator.v)]
        for part, period in zip(parts, (3, 2, 4, 8), strict=True):
            assert (np.ptp(part, axis=0).max() < 1e-14) == (steps % period == 0)


def test_adopt_divides_by_the_step_before(x64: None) -> None:
    tx = mt_dao(0.1, b1s=(0.9,), weights=(0.8,), b2=0.99, base="adopt", sync_every=100)
    path, _ = train(tx, 5)
    x, u, v = np.ones((W, N)), np.zeros((W, N)), G[0] ** 2
    np.testing.assert_allclose(path[0], x)
    for t in range(1, 5):
        g = G[t] / np.sqrt(v)
        u, v = 0.9 * u + 0.1 * g, 0.99 * v + 0.01 * G[t] ** 2
        x = x - 0.1 * (0.2 * g + 0.8 * u)
        np.testing.assert_allclose(path[t], x, rtol=1e-11)


def test_the_gradient_is_clipped_before_all_else(x64: None) -> None:
    tx = mt_dao(0.1, b1s=(0.9,), weights=(0.0,), base="sgdm", sync_every=100, max_norm=0.5)
    path, _ = train(tx, 1)
    np.testing.assert_allclose(np.linalg.norm(path[0] - 1.0, axis=1), 0.05, rtol=1e-6)


def test_one_replica_is_the_inner_method(x64: None) -> None:
    inner = gk.adamw(0.1)
    tx, x = periodic_sync(inner, sync_every=2, state_sync_every={"mu": 1}), jnp.ones((1, N))
    state, alone, y = jax.vmap(tx.init)(x), inner.init(x[0]), x[0]
    step, one = jax.jit(jax.vmap(tx.update, axis_name="replica")), jax.jit(inner.update)
    for t in range(5):
        g = jnp.asarray(G[t, :1])
        u, state = step(g, state, x)
        v, alone = one(g[0], alone, y)
        x, y = x + u, y + v
        # Where a round ends the update leads to the mean, and rounds once.
        np.testing.assert_allclose(x[0], y, rtol=1e-14)


def test_each_period_is_a_collective_of_its_own() -> None:
    """Parts of one period travel together; nothing does in a step without a meeting."""
    mesh = jax.make_mesh((W,), ("replica",), axis_types=(AxisType.Auto,))

    def sizes(tx: Any, sync: Any) -> list[int]:
        x = jnp.ones((W, N))
        state = jax.vmap(tx.init)(x)

        def block(*args: Any) -> Any:
            x, state, g = jax.tree.map(lambda v: v[0], args)
            return jax.tree.map(lambda v: v[None], tx.update(g, state, x, sync=sync))

        program = jax.jit(jax.shard_map(block, mesh=mesh, in_specs=P("replica"), out_specs=P("replica")))
        return sorted(row.result_bytes for row in collective_bytes(program.lower(x, state, x).compile()))

    tx = mt_dao(0.1, sync_every=2, momentum_sync_every=(4,), second_moment_sync_every=4)
    assert sizes(tx, False) == []
    assert sizes(tx, None) == [12, 24]
    assert sizes(tx, True) == [36]


def test_bad_input() -> None:
    for own, text in (
        ({"weights": (0.6, 0.6), "b1s": (0.9, 0.99)}, "weights must add up to at most 1"),
        ({"b1s": (0.9, 0.99)}, "weights must be as many as b1s"),
        ({"momentum_sync_every": (1, 2)}, "momentum_sync_every must be one period per decay"),
        ({"base": "lion"}, "base must be one of"),
        ({"momentum_sync_every": (0,)}, "momentum_sync_every must be an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=text):
            mt_dao(0.1, **own)
    with pytest.raises(ValueError, match="state_sync_every must name parts of the state"):
        periodic_sync(gk.sgd(0.1, momentum=0.9), sync_every=2, state_sync_every={"nu": 2}).init(jnp.ones(2))
    with pytest.raises(ValueError, match="twice"):
        periodic_sync(gk.sgd(0.1, momentum=0.9), sync_every=2, state_sync_every={"1": 2, "trace": 2}).init(jnp.ones(2))
