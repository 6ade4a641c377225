"""A matrix that is the only one of its shape, as an embedding or a head is: no device has all of its state."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.engine import single
from gradkit.parallel import collective_bytes, init_sharded
from tests.by_numpy import by_numpy

pytestmark = pytest.mark.usefixtures("x64")

SHAPES = {"bias": (48,), "embed": (40, 16), "free": (8, 24), "head": (16, 32)}
SPECS = {"bias": P("y"), "embed": P("x", "y"), "free": P(), "head": P(None, ("y", "x"))}
METHODS: dict[str, Callable[..., Any]] = {
    # The long axis of a statistic of one gradient has a singular one, whose basis is left to rounding.
    "soap": functools.partial(gk.scale_by_soap, update_interval=2, max_dim=16),
    "shampoo": functools.partial(gk.scale_by_shampoo, b1=0.9, eps=0.1),
    "blocks": functools.partial(gk.distributed_shampoo, 1.0, eps=0.1, max_dim=8, grafting="adam"),
}


def draw(step: int) -> Any:
    rng = np.random.default_rng(step)
    return {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in SHAPES.items()}


@pytest.mark.parametrize(
    ("kind", "small"), [(AxisType.Auto, 1 << 20), (AxisType.Explicit, 0)], ids=["auto", "explicit"]
)
@pytest.mark.parametrize("name", METHODS)
def test_state_of_single_matrices_is_sharded(
    name: str, kind: AxisType, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of one device, an eighth of the state on each of eight, before and after; gradients and state are
    gathered, together or (as large arrays are) one by one, and nothing goes back."""
    monkeypatch.setattr(single, "SMALL", small)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind,) * 2)
    put = lambda t: jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), draw(t), SPECS)  # noqa: E731
    shard = gk.MatrixSharding(mesh, ("x", "y"), min_dim=0, specs=SPECS if kind == AxisType.Auto else None)
    tx, alone = METHODS[name](shard=shard), METHODS[name]()
    with jax.set_mesh(mesh):
        params = put(0)
        state = start = init_sharded(tx, params)
        update = jax.jit(tx.update)
        for t in range(3):
            got, state = update(put(t), state, params)
        rows = collective_bytes(update.lower(params, state, params).compile())
    plain, update_alone = alone.init(draw(0)), by_numpy(alone.update)
    for t in range(3):
        want, plain = update_alone(draw(t), plain, draw(0))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-9, atol=1e-9)

    for before, x in zip(jax.tree.leaves(start), jax.tree.leaves(state), strict=True):
        assert x.sharding.is_equivalent_to(before.sharding, x.ndim)
        assert x.size <= 4 or x.addressable_data(0).size * 8 == x.size
    assert {row.opcode for row in rows if row.result_bytes > 8} == {"all-gather"}
