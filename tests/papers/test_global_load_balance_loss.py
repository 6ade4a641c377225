"""The load-balancing loss over the whole batch (Qiu et al., 2025)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from gradkit.losses import RouterCounts, global_load_balance_loss
from gradkit.parallel import collective_bytes

T, E, K, D = 32, 4, 2, 4


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(E), T)
    return p, np.argsort(-p, axis=1)[:, :K], rng.random(T) < 0.7


def oracle(p: np.ndarray, selected: np.ndarray, valid: np.ndarray) -> tuple[float, np.ndarray]:
    """The loss and its gradient, of one device."""
    p, selected = p[valid], selected[valid]
    f = np.array([(selected == i).any(axis=1).sum() for i in range(E)]) / len(p)
    g = np.zeros((len(valid), E))
    g[valid] = E * f / len(p)
    return E * float((f * p.mean(axis=0)).sum()), g


def test_the_formula_on_one_device(x64: None) -> None:
    """Value, and a gradient through p alone; a mask in the place of indices; uniform routing has the loss top_k."""
    p, selected, valid = batch()
    loss = lambda p: global_load_balance_loss(p, selected, valid)[0]  # noqa: E731
    value, g = jax.value_and_grad(loss)(p)
    want = oracle(p, selected, valid)
    np.testing.assert_allclose(value, want[0], rtol=1e-13)
    np.testing.assert_allclose(g, want[1], rtol=1e-13)
    mask = (selected[:, :, None] == np.arange(E)).any(axis=1)
    np.testing.assert_allclose(global_load_balance_loss(p, mask, valid)[0], want[0], rtol=1e-13)
    even = np.stack([np.arange(8), np.arange(8) + 1], axis=1) % E
    np.testing.assert_allclose(global_load_balance_loss(np.full((8, E), 1 / E), even)[0], K, rtol=1e-14)


def of_devices(p: Any, selected: Any, valid: Any, global_: bool = True) -> Any:
    one = lambda *x: global_load_balance_loss(*x, axis_name="i" if global_ else None)  # noqa: E731
    shards = [x.reshape(D, -1, *x.shape[1:]) for x in (p, selected, valid)]
    return jax.vmap(one, axis_name="i")(*shards)


def test_the_mean_over_devices_is_the_loss_of_the_whole_batch(x64: None) -> None:
    """With padding that differs between them; the gradient too."""
    p, selected, valid = batch()
    value, g = jax.value_and_grad(lambda p: jnp.mean(of_devices(p, selected, valid)[0]))(p)
    want = oracle(p, selected, valid)
    np.testing.assert_allclose(value, want[0], rtol=1e-13)
    np.testing.assert_allclose(g, want[1], rtol=1e-13)
    counts = of_devices(p, selected, valid)[1]
    assert (np.asarray(counts.tokens) == valid.sum()).all()


def test_devices_that_specialize_are_balanced_together(x64: None) -> None:
    """Each sends all its tokens to an expert of its own: top_k over the batch, N times as much device by device."""
    selected = np.repeat(np.arange(D), 8)[:, None]
    p = np.eye(E)[selected[:, 0]]
    valid = np.ones(T, bool)
    np.testing.assert_allclose(of_devices(p, selected, valid)[0].mean(), 1, rtol=1e-14)
    np.testing.assert_allclose(of_devices(p, selected, valid, global_=False)[0].mean(), E, rtol=1e-14)


def test_counts_of_microbatches_are_divided_by_their_tokens(x64: None) -> None:
    """Of unequal numbers of tokens; the last microbatch has f of all tokens."""
    p, selected, valid = batch()
    valid = valid & (np.arange(T) > 10)
    counts = None
    for part in (slice(0, 16), slice(16, 32)):
        loss, counts = global_load_balance_loss(p[part], selected[part], valid[part], accumulated=counts)
    f = np.array([(selected[valid] == i).any(axis=1).sum() for i in range(E)]) / valid.sum()
    np.testing.assert_allclose(loss, E * (f * p[16:][valid[16:]].mean(axis=0)).sum(), rtol=1e-13)
    assert int(counts.tokens) == valid.sum() and counts.experts.dtype == jnp.int32


@pytest.mark.full_pipeline
def test_one_vector_of_counts_is_all_that_moves() -> None:
    mesh = jax.make_mesh((D,), ("i",), (AxisType.Auto,), devices=jax.devices()[:D])
    one = lambda p, s: global_load_balance_loss(p, s, axis_name="i")[0][None]  # noqa: E731
    fn = jax.grad(lambda p, s: jnp.mean(jax.shard_map(one, mesh=mesh, in_specs=P("i"), out_specs=P("i"))(p, s)))
    shapes = jax.ShapeDtypeStruct((T, E), jnp.float32), jax.ShapeDtypeStruct((T, K), jnp.int32)
    found = collective_bytes(jax.jit(fn, in_shardings=jax.NamedSharding(mesh, P("i"))).lower(*shapes).compile())
    assert [(row.opcode, row.result_bytes) for row in found if row.result_bytes > 4] == [("all-reduce", 4 * (E + 1))]


def test_bad_input() -> None:
    p, selected, valid = batch()
    p = p.astype(np.float32)
    for given, message in (
        ((p, selected[:3]), "selected must be the experts of every token"),
        ((p, selected, valid[:3]), "valid must be a mask"),
        ((p[0], selected), "router_probs must be floating point with 2 axes"),
    ):
        with pytest.raises(ValueError, match=message):
            global_load_balance_loss(*given)
    with pytest.raises(ValueError, match="accumulated must be of 4 experts"):
        global_load_balance_loss(p, selected, accumulated=RouterCounts(jnp.zeros(3, jnp.int32), jnp.int32(0)))
