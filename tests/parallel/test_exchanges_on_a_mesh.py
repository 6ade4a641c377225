"""Functions of replicas that are no transformations: on a mesh as under `vmap`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from gradkit import parallel

W = 8
X = jnp.asarray(np.random.default_rng(0).standard_normal((W, 4, 3)), jnp.float32)
B = parallel.gradient_code(W, 2)
ARRIVED = np.array([True, False, True, True, True, True, False, True])
TIMES = jnp.asarray(np.random.default_rng(1).uniform(0, 1, W), jnp.float32)


def loss(x: Any, a: Any) -> Any:
    return jnp.sum(a * x**4) / 4


def private(a: jax.Array) -> Any:
    """Two rounds on the examples of this replica."""
    rules = parallel.diff2(loss, restart=2, axis_name="replica")
    x = jnp.ones(3)
    _, state = rules.estimate(x, a, rules.init(x), 0)
    return rules.estimate(x + 0.1, a, state, 1)[0]


FUNCTIONS: dict[str, Any] = {
    "coded_mean": lambda x: parallel.coded_mean(x, B, ARRIVED),
    "backup_mean": lambda x: parallel.backup_mean(x, TIMES, 3, axis_name="replica"),
    "gossip_mix": lambda x: parallel.gossip_mix(x, np.full((W, W), 1 / W)),
    "diff2": private,
    "quantized_replica_mean": parallel.quantized_replica_mean,
    "shuffle_private_mean": lambda x: parallel.shuffle_private_mean(
        x, key=0, bound=2.0, levels=8, noise_trials=3, axis_name="replica"
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_device_equals_a_mesh(name: str) -> None:
    function = FUNCTIONS[name]
    mesh = jax.make_mesh((W,), ("replica",), axis_types=(AxisType.Auto,))
    block = jax.shard_map(
        lambda x: jax.tree.map(lambda v: v[None], function(x[0])),
        mesh=mesh,
        in_specs=P("replica"),
        out_specs=P("replica"),
    )
    want = jax.jit(jax.vmap(function, axis_name="replica"))(X)
    # A few roundings of numbers below 8, in another order; a number of a code may be ten times as large.
    np.testing.assert_allclose(jax.jit(block)(X), want, rtol=0, atol=10 * 8 * 8 * 2**-24)
