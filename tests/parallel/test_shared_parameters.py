"""Gradients that `shard_map` has summed over the replicas by itself are refused: they would be exchanged once more."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit import parallel

W = 4
METHODS: dict[str, Callable[[], Any]] = {
    "mean_compressor": parallel.mean_compressor,
    "error_feedback": lambda: parallel.error_feedback(parallel.top_k_compressor(1.0)),
    "int8_compressor": parallel.int8_compressor,
    "powersgd": lambda: parallel.powersgd(2),
    "deep_gradient_compression": parallel.deep_gradient_compression,
    "local_updates": lambda: parallel.local_updates(gk.sgd(1.0), sync_every=1),
    "streaming_diloco": lambda: parallel.streaming_diloco(gk.sgd(1.0), sync_every=4, fragments=1),
    "dproxsgt": lambda: parallel.dproxsgt(0.1),
}


def gradient_at(tx: Any, own: Callable[[Any], Any], check_vma: bool = True) -> Any:
    """The updates of one step on a mesh of replicas that share their parameters; the mean gradient is 1.5."""
    mesh = jax.make_mesh((W,), ("replica",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:W])
    params = {"w": jnp.zeros((4, 4))}

    def step(params: Any, batch: jax.Array) -> Any:
        mine = own(params)
        g = jax.grad(lambda p: jnp.sum(p["w"]) * batch[0])(mine)
        updates, _ = tx.update(g, tx.init(mine), mine)
        return jax.tree.map(lambda u: u[None], updates)

    run = jax.shard_map(step, mesh=mesh, in_specs=(P(), P("replica")), out_specs=P("replica"), check_vma=check_vma)
    return jax.jit(run)(params, jnp.arange(float(W)))["w"]


@pytest.mark.parametrize("name", METHODS)
def test_sums_over_the_replicas_are_refused(name: str) -> None:
    message = "the gradient of 'w' is the same on all replicas of 'replica'"
    with pytest.raises(ValueError, match=re.escape(message)):
        gradient_at(METHODS[name](), lambda params: params)


@pytest.mark.parametrize("check_vma", [True, False])
def test_what_the_message_says_gives_the_mean(check_vma: bool) -> None:
    """Where JAX does not look at what varies, a gradient is the replica's own."""
    own = (lambda p: jax.lax.pcast(p, "replica", to="varying")) if check_vma else lambda p: p
    got = gradient_at(parallel.mean_compressor(), own, check_vma)
    np.testing.assert_array_equal(got, np.full((W, 4, 4), 1.5, np.float32))
