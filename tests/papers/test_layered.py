"""Layered gradient accumulation and modular pipelines (Lamy-Poirier, 2021)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from gradkit.parallel import collective_bytes, layer_major, layered_gradient_accumulation, modular_stage
from tests.papers.replay import assert_equal, normal

pytestmark = pytest.mark.slow

L, K, D = 3, 4, 5


def layer(w: Any, h: jax.Array) -> jax.Array:
    return h + jnp.tanh(h @ w["kernel"] + w["bias"][None])


def stack() -> dict[str, jax.Array]:
    return {"kernel": normal(0, L, D, D), "bias": normal(1, L, D)}


def inputs(examples: int = 4) -> jax.Array:
    return normal(2, K, examples, D)


def head(h: jax.Array, y: Any = 0.0) -> jax.Array:
    return jnp.mean((h - y) ** 2)


def direct(w: Any, x: jax.Array, y: Any = None) -> jax.Array:
    """The mean over microbatches, one after the other through all layers."""
    losses = []
    for m in range(K):
        h = x[m]
        for i in range(L):
            h = layer(jax.tree.map(lambda leaf, i=i: leaf[i], w), h)
        losses.append(head(h, *(() if y is None else (y[m],))))
    return jnp.mean(jnp.stack(losses))


def test_is_the_gradient_of_the_mean_over_microbatches(x64: None) -> None:
    w, x, y = stack(), inputs(), normal(3, K, 4, D)
    grad = jax.jit(jax.value_and_grad(direct))
    fn = jax.jit(lambda w, x, y: layered_gradient_accumulation(layer, w, head, x, targets=y))
    assert_equal(fn(w, x, None), grad(w, x))
    assert_equal(fn(w, x, y), grad(w, x, y))


def test_between_an_embedding_and_a_head_that_are_trained(x64: None) -> None:
    p = {"in": normal(4, D, D), "layers": stack(), "out": normal(5, D)}

    def loss(p: Any, through: Any) -> jax.Array:
        return jnp.mean(jnp.square(through(p["layers"], inputs() @ p["in"]) @ p["out"]))

    def plain(w: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda h, w: (jax.vmap(lambda h: layer(w, h))(h), None), x, w)[0]

    want = jax.jit(jax.value_and_grad(functools.partial(loss, through=plain)))(p)
    assert_equal(
        jax.jit(jax.value_and_grad(functools.partial(loss, through=functools.partial(layer_major, layer))))(p), want
    )


def calls(jaxpr: Any, name: str, times: int = 1) -> int:
    """How often a primitive runs, loops counted as often as they do."""
    total = 0
    for eqn in jaxpr.eqns:
        total += times * (eqn.primitive.name == name)
        inner = times * eqn.params["length"] if eqn.primitive.name == "scan" else times
        for value in eqn.params.values():
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                total += calls(getattr(value, "jaxpr", value), name, inner)
    return total


def on_mesh(sharded: bool, check_vma: bool = True) -> Any:
    """Two replicas, each with half of every microbatch; kernels whole, or cut along their rows and gathered."""
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])

    def gather(w: Any) -> Any:
        return {name: jax.lax.all_gather(x, "data", tiled=True) for name, x in w.items()}

    def scatter(g: Any) -> Any:
        return {name: jax.lax.psum_scatter(x, "data", tiled=True) / 2 for name, x in g.items()}

    def mean(g: Any) -> Any:
        return jax.lax.pmean(g, "data")

    exchange = {"reduce": scatter, "gather": gather} if sharded else {"reduce": mean}

    def fn(w: Any, x: jax.Array) -> Any:
        value, g = layered_gradient_accumulation(layer, w, head, x, **exchange)
        return jax.lax.pmean(value, "data"), g

    lies = P(None, "data") if sharded else P()
    cut = jax.shard_map(fn, mesh=mesh, in_specs=(lies, P(None, "data")), out_specs=(P(), lies), check_vma=check_vma)
    return jax.jit(cut)


def even() -> tuple[dict[str, jax.Array], jax.Array]:
    """Of a width that two devices divide."""
    return {"kernel": normal(0, L, 6, 6), "bias": normal(1, L, 6)}, normal(2, K, 4, 6)


@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
def test_each_layer_is_exchanged_once(sharded: bool, x64: None) -> None:
    """Not once per microbatch; parameters that are cut are gathered once per layer and pass."""
    w, x = even()
    want = jax.jit(jax.value_and_grad(direct))(w, x)
    for check_vma in (True, False):
        assert_equal(on_mesh(sharded, check_vma)(w, x), want)
    program = jax.make_jaxpr(on_mesh(sharded))(w, x).jaxpr
    tensors = 2  # a kernel and a bias
    # The value is averaged too, in one sum more.
    found = {name: calls(program, name) for name in ("psum", "psum_invariant", "all_gather", "reduce_scatter")}
    sums = found.pop("psum") + found.pop("psum_invariant")
    if sharded:
        assert (sums, found) == (1, {"all_gather": 2 * L * tensors, "reduce_scatter": L * tensors})
    else:
        assert (sums - 1, found) == (L * tensors, {"all_gather": 0, "reduce_scatter": 0})
        rows = [row for row in collective_bytes(on_mesh(False).lower(w, x).compile()) if row.result_bytes > 8]
        assert sum(row.result_bytes for row in rows) == 8 * (6 * 6 + 6)  # of one layer, in a loop over layers


def test_what_all_devices_share_gets_the_sum_over_them(x64: None) -> None:
    """As `jax.grad` in `shard_map`: and once per layer here as well. What the layer closes over is a constant."""
    (w, x), mesh = even(), jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])

    @jax.jit
    def summed(w: Any, x: jax.Array, c: jax.Array) -> Any:
        def fn(w: Any, x: jax.Array) -> Any:
            return layered_gradient_accumulation(lambda w, h: c * layer(w, h), w, head, x)[1]

        return jax.shard_map(fn, mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=P())(w, x)

    # Each device's loss is the mean of its half: together twice the mean of all.
    want = jax.jit(jax.grad(lambda w: 2 * direct(w, x)))(w)
    assert_equal(summed(w, x, jnp.asarray(1.0)), want)
    program = jax.make_jaxpr(summed)(w, x, jnp.asarray(1.0)).jaxpr
    assert calls(program, "psum") + calls(program, "psum_invariant") == 2 * L


def test_sums_are_float32_for_bfloat16() -> None:
    """A sum of 512 microbatches' ones in bfloat16 would stop at 256."""
    w, x = jnp.zeros((1,), jnp.bfloat16), jnp.ones((512, 1), jnp.bfloat16)
    value, g = layered_gradient_accumulation(lambda w, h: h + w, w, lambda h: 512 * jnp.sum(h), x)
    assert value.dtype == jnp.float32 and float(value) == 512
    assert g.dtype == jnp.bfloat16 and float(g[0]) == 512


def test_layers_are_dealt_out_in_turn(x64: None) -> None:
    """Every stage has as many layers, to one, and the layer after one of a stage is on the next stage."""
    stages = [modular_stage(i, 4) for i in range(10)]
    assert stages == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    np.testing.assert_array_equal(jax.jit(lambda i: modular_stage(i, 4))(jnp.arange(10)), stages)
    np.testing.assert_array_equal(modular_stage(np.arange(10), 4), stages)


def test_bad_input() -> None:
    w, x = jnp.ones((2, 3)), jnp.ones((4, 3))
    for name, make in (
        ("layer_fn", lambda: layer_major(1, w, x)),
        ("reduce", lambda: layer_major(layer, w, x, reduce=1)),
        ("gather", lambda: layer_major(layer, w, x, gather=1)),
        ("stacked_params", lambda: layer_major(layer, {"a": w, "b": x}, x)),
        ("microbatches", lambda: layer_major(layer, w, jnp.ones(()))),
        ("microbatches", lambda: layer_major(layer, w, x[:0])),
        ("head_loss", lambda: layered_gradient_accumulation(layer, w, 1, x)),
        ("targets", lambda: layered_gradient_accumulation(layer, w, head, x, targets=x[:3])),
        ("head_loss", lambda: layered_gradient_accumulation(lambda w, h: w * h, w, lambda h: h, x)),
        ("stages", lambda: modular_stage(1, 0)),
        ("layer", lambda: modular_stage(-1, 2)),
        ("layer", lambda: modular_stage(jnp.ones(2), 2)),
    ):
        with pytest.raises(ValueError, match=f"{name} must"):
            make()
