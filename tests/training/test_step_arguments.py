"""What a training step hands on: extra arguments, microbatches, aux, other sources of gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import gradkit as gk
from tests.training.models import (
    BATCH,
    F32,
    F64,
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


def recorder():
    """Keeps every extra argument, and what the functions among them return beside the parameters."""

    def elsewhere(params):
        return jax.tree.map(lambda p: 0.5 * p + 0.25, params)

    def init(params):
        zero = jnp.zeros((), params["w"].dtype)
        return {"value": zero, "value_fn": zero, "grad": params, "grad_fn": params, "hvp_fn": params, "key": None}

    def update(updates, state, params=None, **extra):
        assert set(extra) >= {"value", "grad", "value_fn", "grad_fn", "hvp_fn"}
        point = elsewhere(params)
        seen = {"value": extra["value"], "grad": extra["grad"], "value_fn": extra["value_fn"](point)}
        seen |= {"grad_fn": extra["grad_fn"](point), "hvp_fn": extra["hvp_fn"](point), "key": None}
        assert "key" not in extra or extra["key"].shape == ()
        return updates, seen

    return transformation(init, update), elsewhere


@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize("source", [None, functools.partial(gk.gradients.sam, rho=0.5)])
def test_extra_arguments_are_right(microbatches: int, source, x64: None) -> None:
    """Of the loss itself, also where the gradient comes from another source."""
    if source is not None and microbatches > 1:
        with pytest.raises(ValueError, match="microbatches must be 1"):
            make_train_step(linear, gk.sgd(0.1), gradient=source, microbatches=4)
        return
    tx, elsewhere = recorder()
    step = make_train_step(linear, tx, gradient=source, microbatches=microbatches, donate=False)
    batch, params = jax.tree.map(lambda x: x.astype(np.float64), BATCH), start(np.float64)
    state, _ = step(step.init(params), batch)
    point, seen = elsewhere(params), state.opt_state
    value, g = (source or jax.value_and_grad)(linear)(params, batch)
    close((seen["value"], seen["grad"]), (value, g), **F64)
    close((seen["value_fn"], seen["grad_fn"]), jax.value_and_grad(linear)(point, batch), **F64)
    flat, back = ravel_pytree(params)
    hessian = jax.hessian(lambda v: linear(back(v), batch))(flat)
    close(seen["hvp_fn"], back(hessian @ ravel_pytree(point)[0]), **F64)


def test_functions_nobody_calls_cost_nothing() -> None:
    """The program is the one of a step that passes nothing on: as many products of matrices."""
    step = make_train_step(linear, gk.sgd(0.1))
    lowered = jax.jit(step.update).lower(step.init(start()), BATCH).as_text()
    by_hand = jax.jit(jax.value_and_grad(linear)).lower(start(), BATCH).as_text()
    assert lowered.count("dot_general") == by_hand.count("dot_general") > 0


def test_line_search_and_random_methods_work() -> None:
    """L-BFGS, whose line search evaluates the loss elsewhere, equals optax's own loop; random methods get new keys."""
    step, tx = make_train_step(linear, optax.lbfgs()), optax.lbfgs()
    params, opt_state = start(), tx.init(start())

    @jax.jit
    def by_hand(params: Any, opt_state: Any) -> Any:
        value, g = jax.value_and_grad(linear)(params, BATCH)
        value_fn = functools.partial(linear, batch=BATCH)
        updates, opt_state = tx.update(g, opt_state, params, value=value, grad=g, value_fn=value_fn)
        return optax.apply_updates(params, updates), opt_state

    # optax's line search adds numbers of several dtypes.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = step.init(start(), key=jax.random.key(0))
        for _ in range(3):
            state, _ = step(state, BATCH)
            params, opt_state = by_hand(params, opt_state)
    # Every step of the search multiplies the rounding of the step before.
    close(state.params, params, rtol=1e-3)

    def draws(params):
        return jnp.zeros(())

    def draw(updates, state, params=None, *, key, **extra):
        return updates, jax.random.uniform(key)

    step = make_train_step(linear, transformation(draws, draw), donate=False)
    state = step.init(start(), key=jax.random.key(0))
    one, _ = step(state, BATCH)
    two, _ = step(one, BATCH)
    assert 0 < float(one.opt_state) != float(two.opt_state) > 0
    with pytest.raises(ValueError, match=r"needs the extra argument key: .*; offered here: value"):
        step(step.init(start()), BATCH)


@pytest.mark.parametrize(
    ("tx", "gradient", "method"),
    [
        (gk.sgld(0.1), None, "sgld"),
        (gk.psgd_kron(0.1), None, "psgd_kron"),
        (optax.chain(gk.clip_by_global_norm(1.0), gk.oasis(0.1)), None, "oasis"),
        (gk.add_noise(), None, "add_noise"),
        (gk.sgd(0.1), gk.gradients.forward_gradient, "forward_gradient"),
        (gk.sgd(0.1), gk.gradients.zeroth_order_gradient, "zeroth_order_gradient"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_missing_key_is_told_of_with_the_method_and_every_remedy(tx: Any, gradient: Any, method: str) -> None:
    step = make_train_step(lambda p, x: jnp.mean((p - x) ** 2), tx, gradient=gradient)
    of_method = r"call it as fn\(params, batch, key=" if gradient else rf"{method}\(\.\.\., key=0\) or update"
    with pytest.raises(ValueError, match=rf"^{method} needs a random key.*: {of_method}.*step\.init\(params, key=0\)"):
        jax.eval_shape(step.update, step.init(jnp.ones(3)), jnp.ones(3))


def test_errors_of_the_transformation_surface() -> None:
    def update(updates, state, params=None, **extra):
        raise ValueError("some_method needs the extra argument example_grads")

    step = make_train_step(linear, transformation(lambda params: (), update))
    with pytest.raises(ValueError, match="some_method needs the extra argument example_grads"):
        step(step.init(start()), BATCH)


@pytest.mark.parametrize(
    ("gradient", "microbatches"),
    [(None, 1), (None, 2), (functools.partial(gk.gradients.sam, rho=0.1), 1)],
    ids=["plain", "microbatches", "sam"],
)
def test_a_loss_that_is_no_scalar_is_told_what_to_write(gradient: Any, microbatches: int) -> None:
    rest = {"gradient": gradient, "microbatches": microbatches}
    for bad, message in (
        (
            lambda p, x: jnp.stack([p.sum(), x.sum()]),
            r"got shape \(2,\); write jnp\.mean of it; or, .*upgrad\(\) first",
        ),
        (lambda p, x: (p.sum(), {"seen": x}), r"got a tuple; write has_aux=True where it returns \(loss, aux\)"),
        (lambda p, x: [p.sum(), p[0]], r"got a list; write the sum of its losses; or, .*upgrad\(\) first"),
        (lambda p, x: p[:, None], r"got shape \(3, 1\); write jnp\.mean of it(\n|$)"),
    ):
        step = make_train_step(bad, gk.sgd(0.1), **rest)
        with pytest.raises(ValueError, match="loss_fn must return a scalar, " + message):
            step(step.init(jnp.ones(3)), jnp.ones(4))


def test_microbatches_are_the_whole_batch(x64: None) -> None:
    """Also with unequal weights: a mean over the tokens of the batch, not of the means."""
    mask = np.ones((8, 1))
    mask[[0, 4, 5]] = 0
    batch = {**jax.tree.map(lambda x: x.astype(np.float64), BATCH), "mask": mask}

    def masked(params, batch):
        error = jnp.square(batch["x"] @ params["w"] + params["b"].reshape(1, 1) - batch["y"])
        return jnp.sum(error * batch["mask"]) / jnp.sum(batch["mask"])

    ends = []
    for kwargs in ({}, {"microbatches": 4, "weight": lambda batch: batch["mask"].sum()}):
        step = make_train_step(masked, gk.sgd(0.1), **kwargs)
        state = step.init(start(np.float64))
        for _ in range(2):
            state, metrics = step(state, batch)
        ends.append((state.params, metrics["loss"]))
    close(*ends, **F64)
    step = make_train_step(masked, gk.sgd(0.1), microbatches=3)
    with pytest.raises(ValueError, match="a batch of 8 does not divide into 3"):
        step(step.init(start(np.float64)), batch)


def test_microbatches_draw_apart_and_share_one_update_of_statistics() -> None:
    """BatchNorm: the mean of the whole batch enters once. Dropout: no two microbatches have one mask."""

    class Noisy(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)
            self.w = nnx.Param(jnp.ones(()))
            self.rngs = rngs

    def loss(model, batch, key):
        drawn = jnp.stack([jax.random.uniform(key), jax.random.uniform(model.rngs.noise())])
        return model.w[...] * jnp.mean(model.norm(batch)), drawn

    step = make_train_step(loss, gk.sgd(0.0), microbatches=4, has_aux=True)
    start = Noisy(nnx.Rngs(0))
    state = step.init(start, key=jax.random.key(0))
    draws = []
    for _ in range(2):
        state, metrics = step(state, X)
        draws.append(metrics["aux"])
    assert draws[0].shape == (4, 2) and len(np.unique(np.concatenate(draws))) == 16
    model = step.model(state)
    np.testing.assert_allclose(model.norm.mean[...], X.mean(0) * (1 - 0.9**2), rtol=1e-5, atol=1e-7)
    # Every microbatch drew once from the stream, from the same count on.
    assert int(model.rngs.noise.count[...]) == int(start.rngs.noise.count[...]) + 2


def test_aux_of_every_form() -> None:
    plain = make_train_step(lambda p, b: (linear(p, b), {"twice": 2 * linear(p, b)}), gk.sgd(0.1), has_aux=True)
    _, metrics = plain(plain.init(start()), BATCH)
    close(metrics["aux"]["twice"], 2 * metrics["loss"], **F32)
    counting = make_train_step(lambda p, n, b: (linear(p, b), (n + 1, n)), gk.sgd(0.1), has_aux=True)
    state, metrics = counting(counting.init(start(), model_state=jnp.int32(5)), BATCH)
    assert int(state.model_state) == 6 and int(metrics["aux"]) == 5


@pytest.mark.parametrize("kind", ["plain", "linen", "nnx"])
def test_another_source_of_gradients(kind: str) -> None:
    """SAM in every form; its second pass leaves no trace in the statistics."""
    source = functools.partial(gk.gradients.sam, rho=0.1)
    key = jax.random.key(0)
    if kind == "plain":
        loss, given = linear, {"params": start()}
    elif kind == "linen":
        variables = dict(Linen().init(jax.random.key(1), X, train=False))
        loss, given = linen_loss, {"params": variables.pop("params"), "model_state": variables, "key": key}
    else:
        loss, given = nnx_loss, {"params": Module(nnx.Rngs(0))}
    ends = []
    for gradient in (source, None):
        step = make_train_step(loss, gk.sgd(0.1), gradient=gradient)
        state, _ = step(step.init(**given), BATCH)
        ends.append(state)
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a - b)).max(), ends[0].params, ends[1].params)
    assert max(jax.tree.leaves(moved)) > 1e-5
    if kind == "linen":
        close(ends[0].model_state, ends[1].model_state, **F32)
