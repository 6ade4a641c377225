"""Per-example clipping with noise (Abadi et al., 2016)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.aggregation import differentially_private_aggregate
from gradkit.gradients import example_gradients
from gradkit.training import make_train_step

pytestmark = pytest.mark.slow

B = 8
rng = np.random.default_rng(0)
X = rng.standard_normal((B, 3)) * np.geomspace(0.1, 10, B)[:, None]
PARAMS = {"b": np.zeros(2), "w": rng.standard_normal((3, 2))}


def loss(p: Any, x: jax.Array) -> jax.Array:
    return jnp.mean(jnp.sum(jnp.square(x @ p["w"] + p["b"][None] - 1), axis=1))


def examples() -> dict[str, np.ndarray]:
    """The gradients of the examples, by hand."""
    r = 2 * (X @ PARAMS["w"] + PARAMS["b"] - 1)
    return {"b": r, "w": X[:, :, None] * r[:, None, :]}


def clipped_mean(C: float) -> dict[str, np.ndarray]:
    """Algorithm 1 without its noise."""
    g = examples()
    norms = np.sqrt(sum((x.reshape(B, -1) ** 2).sum(1) for x in g.values()))
    assert (norms < C).any() and (norms > C).any()
    return {name: np.tensordot(1 / np.maximum(1, norms / C), x, 1) / B for name, x in g.items()}


def jnps(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


@functools.cache
def step_of(chunk: int, noise: float) -> Any:
    tx = optax.chain(differentially_private_aggregate(3.0, noise, key=1), gk.sgd(1.0))
    source = functools.partial(example_gradients, chunk=chunk)
    return make_train_step(loss, tx, gradient=source, donate=False)


@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_clipping_is_that_of_the_paper_whatever_the_chunks(chunk: int, x64: None) -> None:
    """The norm of an example is over the whole tree, and examples below it are left as they are."""
    step = step_of(chunk, 0.0)
    state, metrics = step(step.init(jnps(PARAMS)), jnp.asarray(X))
    for name, g in clipped_mean(3.0).items():
        np.testing.assert_allclose(state.params[name], PARAMS[name] - g, rtol=1e-12)  # a few roundings of 2^-53
    np.testing.assert_allclose(metrics["loss"], loss(jnps(PARAMS), jnp.asarray(X)), rtol=1e-12)


def test_it_is_optax_s_for_the_same_key(x64: None) -> None:
    """Clipping and noise, over several steps, of a stacked tree and of examples as they are asked for."""
    ours, theirs = (
        make(3.0, 1.3, key=7)
        for make in (differentially_private_aggregate, optax.contrib.differentially_private_aggregate)
    )
    p, g = jnps(PARAMS), jnps(examples())
    state, want_state, lazy_state = ours.init(p), theirs.init(p), ours.init(p)
    lazily = jax.jit(lambda s: ours.update(example_gradients(loss, chunk=2)(p, jnp.asarray(X))[1], s, p))
    for _ in range(3):
        want, want_state = theirs.update(g, want_state)
        got, state = ours.update(g, state, p)
        again, lazy_state = lazily(lazy_state)
        for tree in (got, again):
            for a, b in zip(*map(jax.tree.leaves, (tree, want)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_noise_has_the_deviation_of_the_paper_once_per_batch() -> None:
    """sigma C / B, and no mean: over 20,000 coordinates and another draw at every step and leaf."""
    n, C, sigma = 10_000, 0.5, 1.5
    p = {"a": jnp.zeros(n), "b": jnp.zeros(n)}
    tx = differentially_private_aggregate(C, sigma)
    zero = jax.tree.map(lambda x: jnp.zeros((B, *x.shape)), p)
    update = jax.jit(lambda key: tx.update(zero, tx.init(p), p, key=key)[0])
    first, second = update(jax.random.key(0)), update(jax.random.key(1))
    z = np.concatenate([first["a"], first["b"]]) * B / (sigma * C)
    # Of n draws the mean is known to 1 / sqrt(n), the deviation to 1 / sqrt(2 n); five of those.
    assert abs(z.mean()) < 5 / np.sqrt(2 * n) and abs(z.std() - 1) < 5 / np.sqrt(4 * n)
    for other in (second["a"], first["b"]):
        assert abs(np.corrcoef(first["a"], other)[0, 1]) < 5 / np.sqrt(n)


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_it_is_the_same_step(axes: AxisType, x64: None) -> None:
    """The batch sharded over a data axis: clipped once, one noise for all devices, the same as on one."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axes,), devices=jax.devices()[:4])
    step = step_of(4, 1.0)
    want, _ = step(step.init(jnps(PARAMS)), jnp.asarray(X))
    with jax.set_mesh(mesh):
        state = step.init(jax.device_put(jnps(PARAMS), NamedSharding(mesh, P())))
        got, _ = step(state, jax.device_put(jnp.asarray(X), NamedSharding(mesh, P("data"))))
    for name in PARAMS:
        np.testing.assert_allclose(got.params[name], want.params[name], rtol=1e-12)


@pytest.mark.parametrize("check_vma", [False, True])
def test_in_shard_map_noise_is_added_once(check_vma: bool, x64: None) -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    p, x = jnps(PARAMS), jnp.asarray(X)
    alone, over = (differentially_private_aggregate(3.0, 1.0, axis_name=axis) for axis in (None, "data"))
    key = jax.random.key(3)

    def update(p: Any, x: jax.Array) -> Any:
        value, g = example_gradients(loss, chunk=2, axis_name="data")(p, x)
        return value, over.update(g, over.init(p), p, key=key)[0]

    sharded = jax.shard_map(update, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=check_vma)
    value, got = jax.jit(sharded)(p, x)
    want = alone.update(jnps(examples()), alone.init(p), p, key=key)[0]
    np.testing.assert_allclose(value, loss(p, x), rtol=1e-12)
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_one_example_moves_the_sum_by_no_more_than_the_norm(x64: None) -> None:
    """What privacy rests on, also where an example is a hundred orders of magnitude above all others."""
    tx = differentially_private_aggregate(0.7, 0.0, key=0)
    p, g = jnps(PARAMS), examples()
    for size in (1.0, 1e100):
        loud = {name: np.concatenate([size * x[:1], x[1:]]) for name, x in g.items()}
        without = {name: np.concatenate([0 * x[:1], x[1:]]) for name, x in g.items()}
        a, b = (tx.update(jnps(tree), tx.init(p), p)[0] for tree in (loud, without))
        moved = np.sqrt(sum(np.sum(np.square(np.asarray(a[name] - b[name]))) for name in p)) * B
        assert moved <= 0.7 * (1 + 1e-12)


def test_bfloat16_is_summed_in_float32() -> None:
    """512 clipped ones: in bfloat16 the sum would stop at 256."""
    tx = differentially_private_aggregate(1.0, 0.0, key=0)
    p = jnp.zeros(1, jnp.bfloat16)
    out, _ = tx.update(jnp.ones((512, 1), jnp.bfloat16), tx.init(p), p)
    assert out.dtype == jnp.bfloat16 and float(out[0]) == 1


def test_bad_input() -> None:
    for bad in (0.0, -1.0):
        with pytest.raises(ValueError, match="l2_norm_clip must be"):
            differentially_private_aggregate(bad, 1.0)
    with pytest.raises(ValueError, match="noise_multiplier must be"):
        differentially_private_aggregate(1.0, -0.1)
    with pytest.raises(ValueError, match="key must be"):
        differentially_private_aggregate(1.0, 1.0, key=0.5)
    with pytest.raises(ValueError, match="complex"):
        differentially_private_aggregate(1.0, 1.0, key=0).init(jnp.zeros(2, jnp.complex64))
