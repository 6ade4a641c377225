"""One gradient per task: those of the Jacobian, and what is in memory for them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.aggregation import combine, gramian
from gradkit.gradients import task_gradients
from gradkit.training import make_train_step
from gradkit.training.run import start, step_function
from gradkit.workloads import load

pytestmark = pytest.mark.slow

TASKS = 6
rng = np.random.default_rng(0)
X = rng.standard_normal((8, 3))
# Two programs of the same float64 arithmetic differ by a few roundings (2^-53) per operation.
F64 = 1e-12


def params() -> dict[str, jax.Array]:
    return {"w": jnp.asarray(rng.standard_normal((3, 4))), "b": jnp.full((4,), 0.1)}


def losses(p: Any, x: jax.Array) -> jax.Array:
    """Tasks that disagree: every one wants another of the hidden units, or all of them, to be large or small."""
    h = jnp.tanh(x @ p["w"] + p["b"][None])
    return jnp.stack([*jnp.mean(h, 0), jnp.mean(h**2), -3 * jnp.mean(h[:, 0] * h[:, 1])])


def close(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=F64, atol=F64), got, want)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 6, 9])
def test_any_chunk_size_gives_the_rows_of_the_jacobian(chunk: int, x64: None) -> None:
    """In their order, with the inner products of all pairs; 4 does not divide 6 tasks, and 9 is more than there are."""
    p, weights = params(), jnp.asarray(rng.standard_normal(TASKS))
    jacobian = jax.jacrev(losses)(p, X)

    @jax.jit
    def parts(p: Any) -> Any:
        value, g = task_gradients(losses, chunk=chunk)(p, jnp.asarray(X))
        numbered = g.fold(lambda all, rows, i: all.at[i].set(rows["b"]), jnp.zeros((TASKS, 4)))
        return value, g.losses, g.stacked(), g.gramian(), g.combine(weights), numbered

    want = (losses(p, X), losses(p, X), jacobian, gramian(jacobian), combine(jacobian, weights), jacobian["b"])
    close(parts(p), want)


def test_a_list_of_losses_one_task_and_an_aux(x64: None) -> None:
    p = params()
    want = jax.jacrev(losses)(p, X)
    listed = task_gradients(lambda p, x: (list(losses(p, x)), {"seen": x.sum()}), has_aux=True)
    (value, aux), g = listed(p, jnp.asarray(X))
    close((value, aux["seen"], g.stacked()), (losses(p, X), X.sum(), want))
    value, g = task_gradients(lambda p, x: losses(p, x)[1:2])(p, X)
    close((value, g.stacked()), (losses(p, X)[1:2], jax.tree.map(lambda x: x[1:2], want)))


def memory(source: Any, tx: optax.GradientTransformation, p: Any, x: Any) -> int:
    def step(p: Any, x: Any) -> Any:
        return tx.update(source(p, x), tx.init(p), p)[0]

    return jax.jit(step).lower(p, x).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    "aggregator", [gk.aggregation.upgrad(), gk.aggregation.pcgrad(key=0)], ids=["upgrad", "pcgrad"]
)
def test_the_jacobian_is_never_in_memory(aggregator: optax.GradientTransformation) -> None:
    """Of 16 tasks on one matrix: two gradients, whereas the stacked tree is 16 times the parameters."""
    p, x = jax.ShapeDtypeStruct((256, 128), np.float32), jax.ShapeDtypeStruct((4, 256), np.float32)
    own = 4 * 256 * 128

    def sixteen(p: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.tanh(x @ p).reshape(4, 16, 8), axis=(0, 2))

    lazy = memory(lambda p, x: task_gradients(sixteen)(p, x)[1], aggregator, p, x)
    whole = memory(lambda p, x: jax.jacrev(sixteen)(p, x), aggregator, p, x)
    # Two gradients and the matrix products that they come out of; activations are a thousandth of them.
    assert lazy < 4.5 * own
    assert whole > 16 * own


@pytest.mark.parametrize("check_vma", [False, True])
def test_over_replicas_in_shard_map(check_vma: bool, x64: None) -> None:
    """Inner products are of the gradients of the whole batch, not of its parts."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def parts(p: Any, x: jax.Array) -> Any:
        value, g = task_gradients(losses, chunk=2, axis_name="data")(p, x)
        return value, g.gramian(), g.stacked(), g.combine(jnp.arange(1.0, 7.0))

    sharded = jax.shard_map(parts, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=check_vma)
    p = params()
    jacobian = jax.jacrev(losses)(p, X)
    want = losses(p, X), gramian(jacobian), jacobian, combine(jacobian, jnp.arange(1.0, 7.0))
    close(jax.jit(sharded)(p, jnp.asarray(X)), want)


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(axes: AxisType, x64: None) -> None:
    """Parameters sharded along one axis, the batch along the other."""
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(axes, axes), devices=jax.devices()[:4])
    p, x, tx = (
        {**params(), "w": jnp.asarray(rng.standard_normal((2, 4)))},
        jnp.asarray(X[:, :2]),
        gk.aggregation.upgrad(),
    )
    want = tx.update(jax.jacrev(losses)(p, x), tx.init(p), p)[0]
    where = P("data", None) if axes == AxisType.Explicit else None

    def on_mesh(p: Any, x: jax.Array) -> jax.Array:
        h = jnp.tanh(jnp.einsum("bi,io->bo", x, p["w"], out_sharding=where) + p["b"][None])
        return jnp.stack([*jnp.mean(h, 0), jnp.mean(h**2), -3 * jnp.mean(h[:, 0] * h[:, 1])])

    @jax.jit
    def update(p: Any, x: jax.Array) -> Any:
        g = task_gradients(on_mesh, chunk=2)(p, x)[1]
        return tx.update(g, tx.init(p), p)[0], g.stacked()

    with jax.set_mesh(mesh):
        placed = {
            name: jax.device_put(p[name], NamedSharding(mesh, s)) for name, s in {"w": P("fsdp"), "b": P()}.items()
        }
        got, rows = jax.device_get(update(placed, jax.device_put(x, NamedSharding(mesh, P("data")))))
    close(got, jax.device_get(want))
    close(rows, jax.device_get(jax.jacrev(losses)(p, x)))


def test_a_train_step_takes_the_source_by_itself(x64: None) -> None:
    """Losses, their sum, and an update from the whole Jacobian; with Adam behind it, and other wrappers inside."""
    p, x = params(), jnp.asarray(X)
    behind = gk.guard(gk.adam(0.1))
    step = make_train_step(losses, optax.chain(gk.aggregation.upgrad(), behind), donate=False)
    state, metrics = step(step.init(p), x)
    tx = gk.aggregation.upgrad()
    g = tx.update(jax.jacrev(losses)(p, x), tx.init(p), p)[0]
    updates, _ = behind.update(g, behind.init(p), p, value=losses(p, x).sum())
    close(state.params, optax.apply_updates(p, updates))
    close((metrics["losses"], metrics["loss"]), (losses(p, x), losses(p, x).sum()))
    own = make_train_step(
        lambda p, s, x: (losses(p, x), {"n": s["n"] + 1}),
        optax.chain(tx, behind),
        gradient=task_gradients,
        donate=False,
    )
    again, _ = own(own.init(p, model_state={"n": jnp.zeros(())}), x)
    close(again.params, state.params)
    assert again.model_state["n"] == 1


def test_every_loop_takes_the_source_by_itself() -> None:
    """A step of the workload of two tasks is that of its Jacobian."""
    problem, tx = load("multitask"), optax.chain(gk.aggregation.pcgrad(order=[[1], [0]]), gk.sgd(0.1))
    first = start(problem.init(jax.random.key(0)), tx, jnp.uint32(0))
    after, value = jax.jit(step_function(problem, tx))(first)
    batch = problem.batch(jax.random.fold_in(first.key, 0))
    assert problem.losses is not None
    jacobian = jax.jit(jax.jacrev(problem.losses))(first.params, batch)
    updates, _ = tx.update(jacobian, tx.init(first.params), first.params)
    want = optax.apply_updates(first.params, updates)
    for a, b in zip(*map(jax.tree.leaves, (after.params, want)), strict=True):
        # A batch of 256 in another order of float32 sums; steps are below 1.
        np.testing.assert_allclose(a, b, rtol=0, atol=256 * 2**-24)
    np.testing.assert_allclose(value, problem.loss(first.params, batch), rtol=1e-6)
    with pytest.raises(ValueError, match=r"the workload digits_mlp has one loss.*multitask"):
        step_function(load("digits_mlp"), tx)


def test_a_chain_without_an_aggregator_says_what_is_missing() -> None:
    p = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}
    x = jnp.asarray(X, jnp.float32)
    within = gk.precision(optax.chain(gk.aggregation.upgrad(), gk.sgd(0.1)), state="bfloat16")
    for tx in (gk.adam(0.1), optax.adam(0.1), optax.sgd(0.1), gk.guard(gk.aggregation.upgrad()), within):
        step = make_train_step(losses, tx, gradient=task_gradients)
        with pytest.raises(
            ValueError, match=r"the first link of the chain must be an aggregator.*gk\.aggregation\.upgrad"
        ):
            step(step.init(p), x)


def test_bad_input() -> None:
    p, x = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}, jnp.asarray(X, jnp.float32)
    with pytest.raises(ValueError, match="chunk must be an integer >= 1"):
        task_gradients(losses, chunk=0)
    for bad, found in (
        (lambda p, x: x, r"shape \(8, 3\)"),
        (lambda p, x: (1.0, 2.0), "a tuple; .*has_aux=True"),
        (lambda p, x: 1.0, "a scalar"),
        (lambda p, x: [], "a list"),
    ):
        with pytest.raises(ValueError, match=rf"task_gradients: loss_fn must return a vector.*got .*{found}"):
            task_gradients(bad)(p, x)
    step = make_train_step(lambda p, x: losses(p, x)[0], optax.chain(gk.aggregation.upgrad(), gk.sgd(0.1)))
    with pytest.raises(ValueError, match=r"got a scalar; write jnp\.stack.*, or leave the aggregator out"):
        step(step.init(p), x)
    with pytest.raises(ValueError, match=r"microbatches must be 1 where the gradients of tasks are aggregated, got 2"):
        step = make_train_step(losses, optax.chain(gk.aggregation.upgrad(), gk.sgd(0.1)), microbatches=2)
        step(step.init(p), x)
