"""Sums over all pairs of blocks round a ring (the engine of Zhai et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from gradkit.parallel import ring_reduce
from tests.papers.replay import assert_equal, normal


def block(s: Any, t: Any, own: bool) -> Any:
    z = jnp.sin(s["w"] * s["x"] @ t.T)
    return 3 * jnp.sum(z) if own else jnp.sum(z**2)


@pytest.mark.slow
def test_every_block_visits_every_device_once(x64: None) -> None:
    """Against a double loop over blocks; gradients of what stays, of what travels, of a shared scalar."""
    x, t, w, n = normal(0, 8, 3), normal(1, 8, 3), jnp.asarray(0.4), 4

    def loops(x: Any, t: Any, w: Any) -> Any:
        xs, ts = x.reshape(n, 2, 3), t.reshape(n, 2, 3)
        return sum(block({"x": xs[i], "w": w}, ts[j], i == j) for i in range(n) for j in range(n))

    def ring(x: Any, t: Any, w: Any) -> Any:
        return jax.lax.psum(ring_reduce(block, {"x": x, "w": w}, t, axis_name="a"), "a")

    mesh = jax.make_mesh((n,), ("a",), (AxisType.Auto,), devices=jax.devices()[:n])
    ring = jax.shard_map(ring, mesh=mesh, in_specs=(P("a"), P("a"), P()), out_specs=P())
    want, got = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(x, t, w) for f in (loops, ring))
    assert_equal(got, want)


def test_what_travels_is_floating_point() -> None:
    with pytest.raises(ValueError, match="travelling must be floating point, got int32 at"):
        ring_reduce(block, {"x": np.ones(2, np.float32)}, {"ids": np.ones(2, np.int32)}, axis_name="a")
    with pytest.raises(ValueError, match="axis_name must be an axis here"):
        ring_reduce(block, {}, {}, axis_name="a")
