"""Just one byte: an exchange of numbers along shared directions (Zelikman et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.parallel import collective_bytes, shared_seed_exchange, shared_seed_gradient

RHO = jnp.array([1.0, -2.5, 0.3, 4.0])
X = {"w": jnp.zeros((40, 30)), "b": jnp.zeros(5)}


def exchanged(wire: str, rho: Any = RHO) -> Any:
    return jax.vmap(lambda r: shared_seed_exchange(r, X, key=7, wire=wire), axis_name="replica")(rho)


def test_all_replicas_have_the_bits_that_the_numbers_stand_for() -> None:
    want = shared_seed_gradient(7, RHO[:, None], X)
    for wire, steps in (("float32", 0.0), ("int8", 4.0 / 254), ("log_byte", 4.0 * 0.065)):
        got = exchanged(wire)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(a, np.broadcast_to(a[:1], a.shape))
            # Every number is off by half a step at most, and no normal number of 5000 is above 6.
            np.testing.assert_allclose(a[0], b, rtol=0, atol=6 * steps + 1e-6)


def test_one_replica_is_plain_spsa() -> None:
    def loss(x: Any) -> Any:
        return jnp.sum(jnp.sin(x["w"] + 1)) + jnp.sum(x["b"])

    (_, scalars), want = gk.parallel.shared_seed_spsa(loss, with_scalars=True)(X, key=7)
    got = exchanged("float32", scalars[0])
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a[0], b, rtol=1e-6)


@pytest.mark.full_pipeline
def test_a_byte_per_replica_travels() -> None:
    mesh = jax.make_mesh((8,), ("replica",), axis_types=(AxisType.Auto,))

    def block(rho: Any) -> Any:
        return jax.tree.map(lambda x: x[None], shared_seed_exchange(rho[0], X, key=0))

    program = jax.jit(jax.shard_map(block, mesh=mesh, in_specs=P("replica"), out_specs=P("replica")))
    rows = collective_bytes(program.lower(jnp.ones(8)).compile())
    assert sorted((row.opcode, row.dtypes, row.result_bytes) for row in rows) == [
        ("all-gather", ("s8",), 8),
        ("all-reduce", ("f32",), 4),
    ]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="rho must be one real number"):
        exchanged("int8", jnp.ones((4, 2)))
    with pytest.raises(ValueError, match="wire must be one of"):
        exchanged("int4")
    with pytest.raises(ValueError, match="there is no axis 'replica' here"):
        shared_seed_exchange(1.0, X, key=0)
