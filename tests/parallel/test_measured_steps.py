"""Step sizes that are measured, on eight devices: the loss is that of the global batch, and all take the same step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.parallel import init_sharded, make_mesh

pytestmark = pytest.mark.slow

METHODS = {
    "momo": lambda: gk.momo(1.0, adapt_lower_bound=True),
    "momo_adam": lambda: gk.momo_adam(0.05, weight_decay=0.1),
    "dog": lambda: gk.polynomial_decay_average(gk.dog(init_step=("heuristic", 1e-2))),
    "ldog": lambda: gk.polynomial_decay_average(gk.ldog(init_step=("heuristic", 1e-2))),
    "u_dog": lambda: gk.u_dog(init_step=("heuristic", 1e-2)),
    "a_dog": lambda: gk.a_dog(init_step=("heuristic", 1e-2)),
    "schedule_free": lambda: gk.schedule_free_adamw(0.05, warmup_steps=2),
    # At this rate some steps fail: the loss at the end of a trial step is that of the global batch, too.
    "smb": lambda: gk.smb(8.0),
    "smbi": lambda: gk.smbi(8.0),
}
STEPS = 4


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


START = {"bias": numbers(0, 16), "kernel": numbers(1, 8, 16) / 4}
SPECS = {"bias": P("fsdp"), "kernel": P("fsdp", None)}
# Every device has examples of a size of its own: a loss of one shard is not that of the batch.
BATCHES = [numbers(2 + t, 16, 8) * np.linspace(0.2, 3.0, 16, dtype=np.float32)[:, None] for t in range(STEPS)]


def loss(params: Any, batch: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(batch @ params["kernel"] + params["bias"][None] - 1))


def stepper(tx: Any) -> Any:
    def step(params: Any, state: Any, batch: jax.Array) -> Any:
        value, g = jax.value_and_grad(loss)(params, batch)
        grad_fn = lambda x: jax.grad(loss)(x, batch)  # noqa: E731
        value_fn = lambda x: loss(x, batch)  # noqa: E731
        updates, state = tx.update(g, state, params, value=value, value_fn=value_fn, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


@pytest.mark.parametrize("name", METHODS)
def test_eight_devices_take_the_steps_of_one(name: str) -> None:
    """Data and parameters sharded over both axes of the mesh; the copies that a state keeps are sharded as the
    parameters are."""
    tx, mesh = optax.with_extra_args_support(METHODS[name]()), make_mesh("data=4,fsdp=2")
    step = stepper(tx)
    want, state = START, tx.init(jax.tree.map(jnp.asarray, START))
    for batch in BATCHES:
        want, state = step(want, state, batch)
    want = want, gk.eval_params(state, want)

    there = {k: jax.device_put(x, NamedSharding(mesh, SPECS[k])) for k, x in START.items()}
    own = init_sharded(tx, there)
    for batch in BATCHES:
        there, own = step(there, own, jax.device_put(batch, NamedSharding(mesh, P(("data", "fsdp")))))
    for x in jax.tree.leaves(own):
        if x.shape == (8, 16):
            assert x.sharding.is_equivalent_to(NamedSharding(mesh, SPECS["kernel"]), 2)
    # Sums of 256 squares in another order, and what four steps make of them.
    for a, b in zip(jax.tree.leaves((there, gk.eval_params(own, there))), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=256 * STEPS * 2**-23 * float(np.abs(b).max()))


@pytest.mark.parametrize("name", ["momo", "dog", "schedule_free"])
def test_replicas_that_average_their_loss_and_gradients_take_the_same_step(name: str) -> None:
    """Inside `shard_map` over the data, `value` is the mean over the axis, as the gradient is."""
    tx, mesh = optax.with_extra_args_support(METHODS[name]()), make_mesh("data=8")
    here, state = jax.tree.map(jnp.asarray, START), tx.init(jax.tree.map(jnp.asarray, START))
    want, (batch, *_) = stepper(tx)(here, state, BATCHES[0])[0], BATCHES

    def step(params: Any, state: Any, batch: jax.Array) -> Any:
        value, g = jax.lax.pmean(jax.value_and_grad(loss)(jax.lax.pcast(params, "data", to="varying"), batch), "data")
        updates, _ = tx.update(g, state, params, value=value)
        return optax.apply_updates(params, updates)

    mapped = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P())
    got = jax.jit(mapped)(here, state, batch)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=256 * 2**-23 * float(np.abs(b).max()))
