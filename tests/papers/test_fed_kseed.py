"""Federated training from a pool of seeds (Qin et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gradkit.engine.directions import direction
from gradkit.parallel import FedKSeedMessage, FedKSeedState, collective_bytes, fed_kseed, seed_probabilities
from tests.papers.replay import assert_equal, normal

K, CLIENTS, STEPS = 7, 4, 5


def loss(params: dict, batch: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(batch @ params["kernel"] + params["bias"][None] - 1))


def setting() -> tuple[dict, jax.Array]:
    return {"kernel": normal(0, 3, 2), "bias": normal(1, 2)}, normal(2, CLIENTS, STEPS, 6, 3)


def test_the_numbers_give_the_parameters_of_the_run(x64: None) -> None:
    """One client's steps in NumPy; K numbers replay them; the order of the seeds does not matter."""
    fed = fed_kseed(loss, 0.05, key=3, num_seeds=K)
    x0, batches = setting()
    message, x = jax.jit(fed.client)(x0, batches[0], jax.random.key(1))
    want = jax.tree.map(np.asarray, x0)
    directions = [jax.tree.map(np.asarray, direction(jax.random.fold_in(jax.random.key(3), j), x0)) for j in range(K)]
    for t, j in enumerate(np.asarray(message.seeds)):
        at = [jax.tree.map(lambda x, z, s=s: x + s * 5e-4 * z, want, directions[j]) for s in (1, -1)]
        c = float(loss(at[0], batches[0, t]) - loss(at[1], batches[0, t])) / 1e-3
        np.testing.assert_allclose(message.scalars[t], c, rtol=1e-9)
        want = jax.tree.map(lambda x, z, c=c: x - 0.05 * c * z, want, directions[j])
    assert_equal(x, want, rtol=1e-9)
    one = jnp.ones(1)
    for order in (slice(None), slice(None, None, -1)):
        sent = FedKSeedMessage(message.seeds[order][None], message.scalars[order][None])
        state = fed.server(fed.init(), sent, one)
        assert_equal(jax.jit(fed.params)(x0, state), want, rtol=1e-9)
    assert jax.tree.map(jnp.shape, state) == FedKSeedState((K,), (K,), (K,))


def rounds(mapped: Any) -> Any:
    """Two rounds of all clients, each from the server's numbers alone."""
    fed = fed_kseed(loss, 0.05, key=3, num_seeds=K, axis_name="client")

    def one(x0: dict, state: FedKSeedState, batches: jax.Array, weight: jax.Array, key: jax.Array) -> Any:
        own = jax.random.fold_in(key, jax.lax.axis_index("client"))
        message, _ = fed.client(fed.params(x0, state), batches, own, seed_probabilities(state))
        return fed.server(state, message, weight), message

    program, (x0, batches), state = mapped(one), setting(), fed.init()
    messages = []
    for t in range(2):
        states, message = program(x0, state, batches, jnp.array([0.1, 0.2, 0.3, 0.4]), jax.random.key(t))
        for s in states:
            np.testing.assert_array_equal(s, np.broadcast_to(s[:1], s.shape))
        state = jax.tree.map(lambda s: s[0], states)
        messages.append(message)
    return state, messages


def on_mesh(one: Any) -> Any:
    def block(x0: Any, state: Any, batches: Any, weight: Any, key: Any) -> Any:
        return jax.tree.map(lambda o: o[None], one(x0, state, batches[0], weight[0], key))

    mesh = jax.make_mesh((CLIENTS,), ("client",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:CLIENTS])
    specs = (P(), P(), P("client"), P("client"), P())
    return jax.jit(jax.shard_map(block, mesh=mesh, in_specs=specs, out_specs=P("client"), check_vma=False))


def test_a_mesh_has_the_same_numbers_and_a_log_replays_the_run() -> None:
    """Under vmap, on a mesh, and from the logged pairs alone: the same bits."""

    by_vmap = lambda one: jax.jit(jax.vmap(one, (None, None, 0, 0, None), axis_name="client"))  # noqa: E731
    (state, messages), (meshed, _) = rounds(by_vmap), rounds(on_mesh)
    fed = fed_kseed(loss, 0.05, key=3, num_seeds=K)
    again, server = fed.init(), jax.jit(fed.server)
    for message in messages:
        again = server(again, message, jnp.array([0.1, 0.2, 0.3, 0.4]))
    for a, b, c in zip(state, meshed, again, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert float(jnp.sum(state.counts)) == 2 * CLIENTS * STEPS
    x0, batches = setting()
    end = jax.jit(fed.params)(x0, state)
    assert np.mean([loss(end, b) for b in batches[:, 0]]) < np.mean([loss(x0, b) for b in batches[:, 0]])


def test_a_round_moves_a_pair_per_step_and_a_weight_per_client() -> None:
    """Whatever the size of the model: the kernel here has 1000 times as many entries."""
    fed = fed_kseed(loss, 0.05, key=3, num_seeds=K, axis_name="client")

    def one(x0: dict, state: FedKSeedState, batches: jax.Array, weight: jax.Array, key: jax.Array) -> Any:
        message, _ = fed.client(fed.params(x0, state), batches, key)
        return fed.server(state, message, weight)

    x0, weight = {"kernel": jnp.zeros((3, 2000)), "bias": jnp.zeros(2000)}, jnp.full(CLIENTS, 1 / CLIENTS)
    compiled = on_mesh(one).lower(x0, fed.init(), setting()[1], weight, jax.random.key(0)).compile()
    moved = collective_bytes(compiled)
    assert sum(c.result_bytes for c in moved) == CLIENTS * (STEPS * 8 + 4), moved


def test_probabilities_of_seeds(x64: None) -> None:
    """Means that count an entry 0 more, from 0 to 1, softmax: nothing is more than e times as likely."""
    sums, counts = np.array([0.0, 3.0, 8.0, 5.0]), np.array([0.0, 2.0, 3.0, 4.0])
    h = sums / (counts + 1)
    e = np.exp((h - h.min()) / (h.max() + 1e-10 - h.min()))
    p = seed_probabilities(FedKSeedState(jnp.zeros(4), jnp.asarray(sums), jnp.asarray(counts)))
    assert_equal(p, e / e.sum())
    np.testing.assert_allclose(p.max() / p.min(), np.e, rtol=1e-9)
    equal = seed_probabilities(FedKSeedState(jnp.zeros(4), jnp.zeros(4), jnp.zeros(4)))
    assert_equal(equal, jnp.full(4, 0.25))


def test_a_loss_that_is_not_finite_skips_its_step_and_leaves_no_trace(x64: None) -> None:
    fed = fed_kseed(lambda x, b: jnp.sum(x) * b, 0.1, key=0, num_seeds=3)
    x0 = jnp.ones(2)
    message, x = fed.client(x0, jnp.array([jnp.nan, jnp.inf]), 0)
    np.testing.assert_array_equal(x, x0)
    state = fed.server(fed.init(), jax.tree.map(lambda m: m[None], message))
    assert not any(np.any(np.asarray(s)) for s in state)
    large = fed.server(fed.init(), FedKSeedMessage(jnp.array([[1]]), jnp.array([[-5e6]])))
    assert float(large.sums[1]) == 1000.0 and float(large.accumulated[1]) == -5e6


def test_what_the_pool_cannot_say_is_refused() -> None:
    with pytest.raises(ValueError, match="learning_rate must be a constant, got a schedule"):
        fed_kseed(loss, lambda t: 0.1, key=0)
    with pytest.raises(ValueError, match=r"weight_decay must be 0, got 0\.1: .*add the penalty to loss_fn"):
        fed_kseed(loss, 0.1, key=0, weight_decay=0.1)
    for name, bad in (("num_seeds", 0), ("epsilon", 0.0), ("learning_rate", -1.0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            fed_kseed(loss, **{"learning_rate": 0.1, "key": 0, name: bad})
