"""Diagnostics of curvature on a mesh: sharded parameters give what whole ones do, and vectors sharded like them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit import diagnostics as d

pytestmark = pytest.mark.slow

SHARDED = {"w": P("fsdp"), "head": P(None, "fsdp"), "b": P()}


def start() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    return {"w": draw(8, 3), "head": draw(3, 8), "b": draw(3)}, (draw(2, 6, 8), draw(2, 6, 8))


def model(x: Any, a: jax.Array) -> jax.Array:
    return jnp.tanh(a @ x["w"] + x["b"][None]) @ x["head"]


def of_outputs(z: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(z - y))


def loss(x: Any, batch: Any) -> jax.Array:
    return of_outputs(model(x, batch[0]), batch[1])


def measured(x: Any, batches: Any) -> dict[str, Any]:
    """Everything that takes parameters, in one program."""
    one = jax.tree.map(lambda a: a[0], batches)
    product = lambda v: d.accumulated_hvp(loss, x, v, batches)  # noqa: E731
    v = jax.tree.map(jnp.cos, x)
    pairs = d.top_eigenpairs(product, 0, x, 2, steps=30)
    each = jax.vmap(lambda a, y: jax.grad(loss)(x, (a[None], y[None])))(*one)
    flow = d.central_flow_step("gd", lambda x: loss(x, one), x, None, learning_rate=1.0, max_critical=2)
    density = d.spectral_density(product, 1, x, steps=20, num_points=50)
    signals = d.opposing_signals(jnp.arange(6.0), jnp.cos(jnp.arange(6.0)), top=2, gradients=each)
    return {
        "hvp": d.hvp(loss, x, v, one),
        "accumulated": product(v),
        "split": tuple(d.gauss_newton_split(model, of_outputs, x, v, *one)),
        "values": pairs.values,
        # The sign of a vector has no meaning.
        "projected": d.gradient_subspace_fraction(pairs.vectors, v),
        "overlap": d.subspace_overlap(pairs.vectors, jax.tree.map(lambda a: a[::-1], pairs.vectors)),
        "sharpness": d.sharpness(loss, x, 0, batches, preconditioner=jax.tree.map(lambda a: 1 + a * a, x)).value,
        "trace": d.hessian_trace(product, 2, x, num_probes=3).per_probe,
        "density": density.values[:, -1],
        "coherence": (d.coherence(each), d.coherence(each, leafwise=True)),
        "flow": (flow.params, flow.eigenvalues, flow.time_averaged_loss),
        "signals": (signals.cosine, signals.up_share),
        "vectors": pairs.vectors,
    }


def test_sharded_parameters_give_the_numbers_of_whole_ones() -> None:
    x, batches = start()
    run = jax.jit(measured)
    want = run(x, batches)
    mesh = gk.parallel.make_mesh("fsdp=8")
    put = lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec))  # noqa: E731
    sharded = {name: put(a, SHARDED[name]) for name, a in x.items()}
    got = run(sharded, jax.tree.map(lambda a: put(a, P()), batches))
    for name in ("hvp", "accumulated"):
        assert got[name]["w"].sharding.shard_shape((8, 3)) == (1, 3)
    assert got["vectors"]["w"].sharding.shard_shape((2, 8, 3)) == (2, 1, 3)
    del want["vectors"], got["vectors"]
    # Sums of some hundred terms in another order, and what thirty Lanczos steps make of them.
    largest = max(float(jnp.abs(a).max()) for a in jax.tree.leaves((want["values"], want["hvp"])))
    for (path, a), b in zip(jax.tree.leaves_with_path(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=500 * 2.0**-24 * largest, err_msg=jax.tree_util.keystr(path))
