"""One gradient per example, chunk by chunk: those of `vmap`, and what is in memory for them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.aggregation.makers import aggregator, weights_of_losses
from gradkit.engine.lazy_gradients import fold
from gradkit.gradients import LazyGradients, example_gradients
from gradkit.training import make_train_step

pytestmark = pytest.mark.slow

B = 12
rng = np.random.default_rng(0)
X, Y = rng.standard_normal((B, 3)), rng.standard_normal(B)
F64 = 1e-12  # a few roundings (2^-53) per operation


def params() -> dict[str, jax.Array]:
    return {"w": jnp.asarray(np.random.default_rng(1).standard_normal(3)), "b": jnp.asarray(0.3)}


def loss(p: Any, batch: Any, scale: Any = 1.0) -> jax.Array:
    x, y = batch
    return scale * jnp.mean(jnp.log(jnp.cosh(x @ p["w"] + p["b"] - y)))


def rows(p: Any) -> dict[str, np.ndarray]:
    """By hand: tanh of the residual, times the input."""
    r = np.tanh(X @ np.asarray(p["w"]) + np.asarray(p["b"]) - Y)
    return {"w": r[:, None] * X, "b": r}


def close(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=F64, atol=F64), got, want)


@pytest.mark.parametrize("chunk", [1, 3, 5, 12, 100])
def test_any_chunk_size_gives_the_gradients_of_single_examples(chunk: int, x64: None) -> None:
    """In the order of the batch, with their losses; 5 does not divide 12 examples, and 100 is more than there are."""
    p, weights = params(), jnp.asarray(rng.standard_normal(B))

    @jax.jit
    def parts(p: Any) -> Any:
        value, g = example_gradients(loss, chunk=chunk)(p, (X, Y), 2.0)
        numbered = g.fold(lambda all, part, i: all.at[i].set(part["w"]), jnp.zeros((B, 3)))
        return value, g.losses, g.stacked(), g.gramian(), g.combine(weights), numbered

    g = jax.tree.map(lambda x: 2 * x, rows(p))
    losses = 2 * np.log(np.cosh(X @ np.asarray(p["w"]) + np.asarray(p["b"]) - Y))
    flat = np.column_stack([g["w"], g["b"]])
    combined = jax.tree.map(lambda x: np.tensordot(np.asarray(weights), x, 1), g)
    close(parts(p), (losses.mean(), losses, g, flat @ flat.T, combined, g["w"]))


def test_aux_has_an_axis_of_examples_in_their_order(x64: None) -> None:
    (value, aux), _ = example_gradients(lambda p, b: (loss(p, b), {"y": b[1][0]}), chunk=4, has_aux=True)(
        params(), (X, Y)
    )
    close((value, aux), (loss(params(), (X, Y)), {"y": Y}))


def test_a_chunk_of_gradients_is_all_that_is_in_memory() -> None:
    """Of 64 examples the largest entry of any gradient: 4 gradients, where `vmap` holds 64."""
    p, x = jax.ShapeDtypeStruct((256, 128), np.float32), jax.ShapeDtypeStruct((64, 256), np.float32)
    own = 4 * 256 * 128

    def one(p: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(jnp.tanh(x @ p)))

    def largest(most: jax.Array, g: jax.Array, numbers: jax.Array) -> jax.Array:
        return jnp.maximum(most, jnp.abs(g).max((1, 2)).max())

    def lazy(p: jax.Array, x: jax.Array) -> jax.Array:
        return example_gradients(one, chunk=4)(p, x)[1].fold(largest, jnp.zeros(()))

    def whole(p: jax.Array, x: jax.Array) -> jax.Array:
        return largest(jnp.zeros(()), jax.vmap(jax.grad(one), in_axes=(None, 0))(p, x[:, None]), jnp.zeros(()))

    used = [jax.jit(f).lower(p, x).compile().memory_analysis().temp_size_in_bytes for f in (lazy, whole)]
    # Four gradients, and the matrix products that they come out of.
    assert used[0] < 9 * own
    assert used[1] > 64 * own


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_the_examples_stay_where_they_are(axes: AxisType, x64: None) -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axes,), devices=jax.devices()[:4])
    p = params()

    @jax.jit
    def parts(p: Any, batch: Any) -> Any:
        g = example_gradients(loss, chunk=4)(p, batch)[1]
        # One part of what is held lies on each device.
        return g.fold(lambda total, part, i: jax.tree.map(lambda t, x: t + (x**3).sum(0), total, part), zeros)

    zeros = jax.tree.map(jnp.zeros_like, p)
    with jax.set_mesh(mesh):
        batch = tuple(jax.device_put(jnp.asarray(x), NamedSharding(mesh, P("data"))) for x in (X, Y))
        placed = jax.device_put(p, NamedSharding(mesh, P()))
        got = jax.device_get(parts(placed, batch))
    close(got, jax.tree.map(lambda g: (g**3).sum(0), rows(p)))


def test_every_example_has_random_numbers_of_its_own(x64: None) -> None:
    """Dropout with the key of the step: examples that are the same have other gradients."""

    def noisy(p: jax.Array, batch: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.mean(p * batch) * jax.random.uniform(key)

    seen = {}

    def update(g: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        seen["lazy"] = isinstance(g, LazyGradients)
        return fold(g, lambda total, part, i: total + part.max(0) - part.min(0), jnp.zeros(())), state

    spread = aggregator("spread", update, of="examples")
    step = make_train_step(noisy, spread, donate=False)
    state, _ = step(step.init(jnp.zeros(()), key=jax.random.key(0)), jnp.ones(4))
    assert seen["lazy"] and 0.05 < float(state.params) < 1


def test_microbatches_are_chunks_and_weights_may_follow_from_losses(x64: None) -> None:
    """The gradient of the hardest example alone, as an aggregator of losses, which a stacked tree comes with too."""

    def hardest(losses: jax.Array, state: Any, **extra: Any) -> tuple[jax.Array, Any]:
        return jax.nn.one_hot(jnp.argmax(losses), len(losses), dtype=losses.dtype), state

    p, tx = params(), weights_of_losses("hardest", hardest)
    found = {}

    def spy(g: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        found.update(chunk=g.chunk, losses=extra["losses"])
        return tx.update(g, state, params, **extra)

    watched = aggregator("watched", spy, of="examples")
    step = make_train_step(loss, watched, microbatches=3, donate=False)
    state, metrics = step(step.init(p), (X, Y))
    assert found["chunk"] == 4 and "losses" not in metrics
    losses = np.log(np.cosh(X @ np.asarray(p["w"]) + np.asarray(p["b"]) - Y))
    g, i = rows(p), int(np.argmax(losses))
    close(state.params, jax.tree.map(lambda x, d: x + d[i], p, g))
    updates, _ = tx.update(jax.tree.map(jnp.asarray, g), tx.init(p), p, losses=jnp.asarray(losses))
    close(updates, jax.tree.map(lambda x: x[i], g))
    with pytest.raises(ValueError, match="hardest needs the extra argument losses"):
        tx.update(g, tx.init(p), p)


def test_bad_input() -> None:
    p = {"w": jnp.ones(3), "b": jnp.zeros(())}
    with pytest.raises(ValueError, match="chunk must be an integer >= 1"):
        example_gradients(loss, chunk=0)
    with pytest.raises(ValueError, match="example_gradients: every leaf of the batch needs the same leading axis"):
        example_gradients(loss)(p, (jnp.ones((4, 3)), jnp.ones(3)))
    with pytest.raises(
        ValueError, match=r"example_gradients: loss_fn must return a scalar.*gk\.gradients.task_gradients"
    ):
        example_gradients(lambda p, b: b[0] @ p["w"])(p, (jnp.ones((4, 3)), jnp.ones(4)))
    step = make_train_step(lambda p, b: jnp.mean(b @ p["w"]), optax.sgd(0.1), gradient=example_gradients)
    with pytest.raises(ValueError, match="4 gradients came where one was expected"):
        step(step.init(p), jnp.ones((4, 3)))
    assert gk.gradients.LazyGradients is LazyGradients
