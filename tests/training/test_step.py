"""The training step equals loops written by hand, in linen, NNX and plain trees."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradkit as gk
from tests.training.models import (
    BATCH,
    F32,
    Linen,
    Module,
    X,
    close,
    linear,
    linen_loss,
    make_train_step,
    nnx_loss,
    start,
    transformation,
)

pytestmark = pytest.mark.slow


def test_plain_tree_equals_a_loop_by_hand() -> None:
    tx = gk.adamw(0.1, weight_decay=0.1)
    step = make_train_step(linear, tx)
    state = step.init(start())
    params, opt_state = start(), tx.init(start())
    for i in range(3):
        state, metrics = step(state, BATCH)
        value, g = jax.value_and_grad(linear)(params, BATCH)
        updates, opt_state = tx.update(g, opt_state, params)
        params = optax.apply_updates(params, updates)
        close(metrics["loss"], value, **F32)
        assert int(state.step) == i + 1
    close(state.params, params, **F32)
    assert np.isclose(metrics["learning_rate"], 0.1) and set(metrics) == {"loss", "learning_rate"}
    with pytest.raises(ValueError, match="model is for NNX modules"):
        step.model(state)


def test_linen_with_statistics_and_dropout_equals_a_loop_by_hand() -> None:
    variables = dict(Linen().init(jax.random.key(1), X, train=False))
    first, statistics = variables.pop("params"), variables
    tx, key = gk.sgd(0.1), jax.random.key(2)
    step = make_train_step(linen_loss, tx)
    state = step.init(first, model_state=statistics, key=key)
    params, opt_state, model_state = first, tx.init(first), statistics
    for i in range(3):
        state, _ = step(state, BATCH)
        now, _ = jax.random.split(jax.random.fold_in(key, i))
        g, model_state = jax.grad(linen_loss, has_aux=True)(params, model_state, BATCH, now)
        updates, opt_state = tx.update(g, opt_state, params)
        params = optax.apply_updates(params, updates)
    close((state.params, state.model_state), (params, model_state), **F32)
    assert np.any(np.asarray(state.model_state["batch_stats"]["BatchNorm_0"]["mean"]) != 0)


def test_nnx_equals_the_optimizer_of_nnx() -> None:
    """Parameters, statistics, and the counters of random streams; the user's module is left as it was."""
    module, other = Module(nnx.Rngs(0)), Module(nnx.Rngs(0))
    step = make_train_step(nnx_loss, gk.adam(0.1))
    state = step.init(module)
    optimizer = nnx.Optimizer(other, gk.adam(0.1), wrt=nnx.Param)

    @nnx.jit
    def by_hand(model, optimizer):
        loss, g = nnx.value_and_grad(nnx_loss)(model, BATCH)
        optimizer.update(model, g)
        return loss

    for _ in range(3):
        state, metrics = step(state, BATCH)
        close(metrics["loss"], by_hand(other, optimizer), **F32)
    trained = step.model(state)
    assert isinstance(trained, Module)
    floats = nnx.Any(nnx.Param, nnx.BatchStat)
    close(nnx.as_pure(nnx.state(trained, floats)), nnx.as_pure(nnx.state(other, floats)), **F32)
    close(nnx.as_pure(nnx.state(trained, nnx.RngCount)), nnx.as_pure(nnx.state(other, nnx.RngCount)))
    close(nnx.as_pure(nnx.state(module, floats)), nnx.as_pure(nnx.state(Module(nnx.Rngs(0)), floats)))


def test_wrt_trains_only_what_it_says() -> None:
    module = Module(nnx.Rngs(0))
    step = make_train_step(nnx_loss, gk.sgd(0.1), wrt=nnx.All(nnx.Param, nnx.PathContains("outer")))
    state, _ = step(step.init(module), BATCH)
    trained = step.model(state)
    np.testing.assert_array_equal(trained.inner.kernel[...], module.inner.kernel[...])
    assert np.any(np.asarray(trained.outer.kernel[...]) != np.asarray(module.outer.kernel[...]))


def test_compiled_once_and_scanned() -> None:
    traces = []

    def counted(params, batch):
        traces.append(1)
        return linear(params, batch)

    step = make_train_step(counted, gk.adam(0.1))
    # A Python number among the parameters has a weak type, which no result of a step has.
    state = step.init({**start(), "b": 0.5})
    for _ in range(3):
        state, _ = step(state, BATCH)
    assert len(traces) == 1

    batches = jax.tree.map(lambda x: jnp.stack([x] * 3), BATCH)
    scanned, metrics = jax.lax.scan(step, step.init(start()), batches)
    close(scanned.params, state.params, **F32)
    assert metrics["loss"].shape == (3,) and jax.tree.structure(scanned) == jax.tree.structure(state)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_models_with_state_are_compiled_once_and_scanned(kind: str) -> None:
    traces: list[int] = []
    loss: Any = linen_loss
    if kind == "linen":
        variables = dict(Linen().init(jax.random.key(1), X, train=False))
        arguments = {"params": variables.pop("params"), "model_state": variables, "key": jax.random.key(2)}
    else:
        arguments, loss = {"params": Module(nnx.Rngs(0))}, nnx_loss

    @functools.wraps(loss)
    def counted(*args, **kwargs):
        traces.append(1)
        return loss(*args, **kwargs)

    step = make_train_step(counted, gk.sgd(0.1))
    looped = step.init(**arguments)
    for _ in range(3):
        looped, _ = step(looped, BATCH)
    assert len(traces) == 1
    scanned, _ = jax.lax.scan(step, step.init(**arguments), jax.tree.map(lambda x: jnp.stack([x] * 3), BATCH))
    close(scanned.params, looped.params, **F32)


@pytest.mark.parametrize("donate", [True, False])
def test_donation(donate: bool) -> None:
    """A state that was donated is gone, what the user gave stays; also where a method's state aliases parameters."""
    params, key = start(), jax.random.key(0)

    def aliasing(params):
        return {"anchor": params, "again": params}

    tx = optax.chain(transformation(aliasing, lambda g, s, p=None, **extra: (g, s)), gk.momentum(0.1))
    step = make_train_step(linear, tx, donate=donate)
    first = step.init(params, key=key)
    second, _ = step(first, BATCH)
    third, _ = step(second, BATCH)
    assert first.params["w"].is_deleted() == second.params["w"].is_deleted() == donate
    close(params, start())
    jax.random.split(key)
    close(third.opt_state[0]["anchor"], start())


def test_low_precision_parameters_keep_their_dtype() -> None:
    def loss(params, batch):
        return linear(jax.tree.map(lambda p: p.astype(jnp.float32), params), batch)

    step = make_train_step(loss, gk.adam(0.1))
    state, _ = step(step.init(start(jnp.bfloat16)), BATCH)
    assert all(p.dtype == jnp.bfloat16 for p in jax.tree.leaves(state.params))


def test_what_is_wrong_is_named() -> None:
    tx = gk.sgd(0.1)
    for kwargs, message in (
        ({"microbatches": 0}, "microbatches must be an integer >= 1"),
        ({"gradient": 3}, "gradient must be callable"),
        ({"weight": len}, "weight must be None"),
    ):
        with pytest.raises(ValueError, match=message):
            make_train_step(linear, tx, **kwargs)
    module = Module(nnx.Rngs(0))
    for step, args, kwargs, message in (
        (make_train_step(linear, tx, wrt=nnx.Param), (start(),), {}, "wrt is for NNX modules"),
        (make_train_step(nnx_loss, tx), (module,), {"model_state": {}}, "model_state is for linen and plain trees"),
        (make_train_step(linen_loss, tx), (start(),), {}, "loss_fn takes a key"),
    ):
        with pytest.raises(ValueError, match=message):
            step.init(*args, **kwargs)

    def sows(model, batch):
        model.extra = nnx.Intermediate(batch["x"])
        return nnx_loss(model, batch)

    def trains(model, batch):
        model.outer.kernel[...] = 2 * model.outer.kernel[...]
        return nnx_loss(model, batch)

    zero = jnp.zeros(2)
    for step, args, kwargs, message in (
        (make_train_step(sows, tx), (module,), {}, "must not change the structure of the module"),
        (make_train_step(trains, tx), (module,), {}, "must not change trained variables"),
        (
            make_train_step(lambda p, s, b: linear(p, b), tx),
            (start(),),
            {"model_state": zero},
            r"return \(loss, model_state",
        ),
        (
            make_train_step(lambda p, s, b: (linear(p, b), s[:1]), tx),
            (start(),),
            {"model_state": zero},
            r"into float32\(1,\)",
        ),
        (
            make_train_step(lambda p, s, b: (linear(p, b), (s,)), tx),
            (start(),),
            {"model_state": zero},
            "of the structure",
        ),
        (make_train_step(linear, tx, has_aux=True), (start(),), {}, r"return \(loss, aux\)"),
    ):
        with pytest.raises(ValueError, match=message):
            step(step.init(*args, **kwargs), BATCH)


def test_evaluation_is_at_the_parameters_that_the_method_means() -> None:
    step = make_train_step(nnx_loss, gk.shifted_parameters(optax.sgd(0.1), lambda u: u), donate=False)
    state, _ = step(step.init(Module(nnx.Rngs(0))), BATCH)
    want = gk.eval_params(state.opt_state, state.params)["outer"]["kernel"]
    np.testing.assert_array_equal(step.model(state, [BATCH]).outer.kernel[...], want)
    assert np.any(np.asarray(want) != np.asarray(state.params["outer"]["kernel"]))
    assert list(inspect.signature(step.init).parameters) == ["params", "model_state", "key"]


def test_moments_of_the_gradient_reach_the_method() -> None:
    """A source of moments is the source of the mean; a method that wants them gets them, with a source or without."""
    batch = jnp.array([[1.0, 3.0], [2.0, 2.0], [5.0, 1.0], [4.0, 2.0]])
    params = {"w": jnp.array([1.0, -1.0])}

    def loss(params: dict, batch: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(batch @ params["w"] - 1))

    source = functools.partial(gk.gradients.gradient_moments, microbatches=2)
    step = make_train_step(loss, gk.vr_adam(0.1), gradient=source, donate=False)
    state, metrics = step(step.init(params), batch)
    value, moments = source(loss)(params, batch)
    tx = gk.vr_adam(0.1)
    want, _ = tx.update(moments.mean, tx.init(params), params, grad_moments=moments)
    np.testing.assert_allclose(state.params["w"], params["w"] + want["w"], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    # Without a source the step measures two halves, which are these parts.
    plain = make_train_step(loss, gk.vr_adam(0.1), donate=False)
    np.testing.assert_allclose(plain(plain.init(params), batch)[0].params["w"], state.params["w"], rtol=1e-6)
