"""`make_train_step` on a mesh: the same step, with parameters and batches put on it beforehand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.parallel import batch_sharding, make_mesh, param_shardings
from gradkit.training import make_train_step


def loss(params: Any, batch: Any) -> jax.Array:
    x, y = batch
    h = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    return jnp.mean((h @ params["out"]["kernel"] - y) ** 2)


def problem() -> tuple[Any, Any]:
    draw = np.random.default_rng(0).standard_normal
    params = {
        "hidden": {"kernel": draw((4, 16)), "bias": draw(16)},
        "out": {"kernel": draw((16, 3))},  # 3 is cut by nothing
    }
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, (draw((16, 4)), draw((16, 3)))))


@pytest.mark.parametrize("microbatches", [1, 2])
def test_state_is_born_on_the_mesh_and_stays_there(microbatches: int) -> None:
    """Three steps are one program, nothing moves in between, and the numbers are those of one device."""
    params, batch = problem()
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    traces = []

    def counted(params: Any, batch: Any) -> Any:
        traces.append(1)
        return loss(params, batch)

    step = make_train_step(counted, gk.adamw(0.01), microbatches=microbatches)
    there = jax.device_put(params, param_shardings(params, mesh))
    state = step.init(there)
    lies = jax.tree.map(lambda x: x.sharding, state)
    kernel = NamedSharding(mesh, P("fsdp", "tensor"))
    assert lies.opt_state[0].mu["hidden"]["kernel"] == kernel
    assert lies.step == lies.opt_state[0].count == NamedSharding(mesh, P())
    spread = jax.device_put(batch, batch_sharding(mesh))
    alone = step.init(params)
    made = []
    for _ in range(3):
        state, read = step(state, spread)
        assert jax.tree.map(lambda x: x.sharding, state) == lies
        alone, _ = step(alone, batch)
        made.append(len(traces))
    assert made == made[:1] * 3  # nothing is traced again after the first step on the mesh and the first beside it
    assert float(read["learning_rate"]) == np.float32(0.01)
    for x, y in zip(jax.tree.leaves(state.params), jax.tree.leaves(alone.params), strict=True):
        # Adam's first steps are of the size of the rate whatever the gradient, whose sums of 16 products are off by a
        # few roundings: of a gradient a thousandth of the largest, a few hundred times 2^-24 of 0.03 moved.
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=0, atol=1e-5)


def test_an_nnx_module_on_a_mesh() -> None:
    mesh = make_mesh("data=4,fsdp=2")
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.device_put(params, param_shardings(params, mesh)))
    step = make_train_step(lambda model, batch: jnp.mean(model(batch) ** 2), gk.lion(0.1))
    state = step.init(model)
    state, _ = step(state, jax.device_put(jnp.ones((8, 4)), batch_sharding(mesh)))
    assert state.params["kernel"].sharding == NamedSharding(mesh, P("fsdp"))
    assert step.model(state).kernel[...].sharding == NamedSharding(mesh, P("fsdp"))
