"""Extra arguments of `update`: one table of what each means, how a training loop makes it, and a sample of it.

    tx.update(grads, state, params, value=..., grad_fn=..., key=...)

A loop describes its step as a `Minibatch`, and `offered` makes the arguments: the cheap ones always (a function that
nobody calls is never traced), the others where the card of a link needs them. Messages, `gradkit inspect` and the tests
of the contract read the same table, so a new argument is one entry of `EXTRAS`.
"""

import inspect
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit.engine.keys import IN_A_STEP
from gradkit.leaves.paths import map_named
from gradkit.leaves.scopes import resolve_layout


class GradientMoments(NamedTuple):
    """Moments of the gradients of equal parts of a batch; what `grad_moments` of an `update` holds.

    Attributes:
      mean: tree like the parameters, float32 or wider: the gradient of the whole batch.
      mean_of_squares: tree like it, real: the elementwise mean of |g_i|^2.
      mean_sq_norm: scalar: the mean of |g_i|^2 over the whole tree.
      count: int32 scalar: k, the number of parts.
    """

    mean: Any
    mean_of_squares: Any
    mean_sq_norm: jax.Array
    count: jax.Array


class Minibatch(NamedTuple):
    """What a training loop knows of one step when it calls `update`.

    Attributes:
      params: the parameters that the gradient was taken at.
      batch: the minibatch.
      loss: (parameters, any part of the minibatch) -> scalar.
      value: the loss of the minibatch at the parameters.
      grads: the gradient that is handed to `update`; None where `update` gets several.
      value_fn: parameters -> the loss of the minibatch.
      grad_fn: parameters -> its gradient.
      key: a random key of this step; None where the run has none.
      moments: `GradientMoments`, where the gradient was computed in parts.
      predictions: (parameters -> predictions, targets), where the loss is known to be of these.
      examples: whether every leaf of the batch has a leading axis of examples.
      losses: where `update` gets several gradients, the loss of each.
    """

    params: Any
    batch: Any
    loss: Callable[[Any, Any], jax.Array]
    value: jax.Array
    grads: Any
    value_fn: Callable[[Any], jax.Array]
    grad_fn: Callable[[Any], Any]
    key: Any = None
    moments: GradientMoments | None = None
    predictions: tuple[Callable[[Any], jax.Array], Any] | None = None
    examples: bool = True
    losses: Any = None


class Extra(NamedTuple):
    """One extra argument.

    Attributes:
      name: the keyword.
      meaning: what it is, as messages say it.
      sample: gradients -> a value, as of one example with a linear loss that has this gradient everywhere.
      make: step -> the value, None where this step has none; without it a loop cannot make the argument.
      always: whether a loop offers it to every method, because it costs nothing until it is used.
      local: whether it holds or takes derivatives in the coordinates of the parameters: a wrapper that changes
        coordinates cannot hand it on as it is.
    """

    name: str
    meaning: str
    sample: Callable[[Any], Any] | None = None
    make: Callable[[Minibatch], Any] | None = None
    always: bool = False
    local: bool = False


def _wide(tree: Any) -> Any:
    """In float32, or wider where it is."""
    wide = lambda x: x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)  # noqa: E731
    return jax.tree.map(lambda x: wide(jnp.asarray(x)), tree)


def _square(x: jax.Array) -> jax.Array:
    return jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else jnp.square(x)


def _linear(slopes: Any, params: Any) -> jax.Array:
    """A loss whose gradient is everywhere the same."""
    products = jax.tree.map(lambda g, p: jnp.sum(g * p).astype(float), _wide(slopes), _wide(params))
    return sum(jax.tree.leaves(products), jnp.zeros(()))


def _model(grads: Any) -> Callable[[Any], jax.Array]:
    """A model of one example whose prediction, 0, is 1 above its target: half its squared error has this gradient."""

    def model_fn(params: Any) -> jax.Array:
        pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(params), strict=True)
        parts = [jnp.sum(g.astype(jnp.result_type(x)) * (x - jax.lax.stop_gradient(x))).astype(float) for g, x in pairs]
        return sum(parts, jnp.zeros((), float)).reshape(1)

    return model_fn


def _input_moments(grads: Any) -> Any:
    """The second moments of the layers' inputs, the same for all layers of a stack; None where there are no inputs."""
    layout = resolve_layout(None, grads, method="input_moment")

    def moment(name: str, x: jax.Array) -> Any:
        axes = layout(name, x.shape)
        n = math.prod(x.shape[a] for a in axes.inputs)
        return jnp.eye(n) + 0.5 * jnp.ones((n, n)) if axes.inputs and n else None

    return map_named(moment, grads)


def _moments_sample(grads: Any) -> GradientMoments:
    """Of two parts that differ by 1 + |g|, more or less for one coordinate or another."""
    squares = jax.tree.map(lambda g: _square(g) + jnp.square(1 + jnp.abs(g)), _wide(grads))
    norm = sum((jnp.sum(x).astype(float) for x in jax.tree.leaves(squares)), jnp.zeros((), float))
    return GradientMoments(grads, squares, norm, jnp.asarray(2, jnp.int32))


def _moments(step: Minibatch) -> GradientMoments | None:
    """A batch without examples has parts that are all the same."""
    if step.moments is not None or step.examples or step.grads is None:
        return step.moments
    squares = jax.tree.map(_square, _wide(step.grads))
    norm = sum((jnp.sum(x).astype(float) for x in jax.tree.leaves(squares)), jnp.zeros((), float))
    return GradientMoments(_wide(step.grads), squares, norm, jnp.asarray(2, jnp.int32))


def _half(first: int) -> Callable[[Minibatch], Any]:
    def gradient(step: Minibatch) -> Any:
        part = jax.tree.map(lambda x: x[first::2], step.batch) if step.examples else step.batch
        return jax.grad(step.loss)(step.params, part)

    return gradient


def _hvp(step: Minibatch) -> Callable[[Any], Any]:
    def hvp_fn(vector: Any) -> Any:
        vector = jax.tree.map(lambda v, p: jnp.asarray(v).astype(p.dtype), vector, step.params)
        return jax.jvp(step.grad_fn, (step.params,), (vector,))[1]

    return hvp_fn


def _searchable(step: Minibatch) -> Callable[..., jax.Array]:
    """`value_fn` as the line searches of optax call it: they hand on what they are offered besides, by name, and refuse
    what a function has no argument for."""

    def value_fn(params: Any, **offered: Any) -> jax.Array:
        del offered
        return step.value_fn(params)

    point = inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    others = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in EXTRAS]
    value_fn.__signature__ = inspect.Signature([point, *others])  # pyright: ignore[reportFunctionMemberAccess]
    return value_fn


def _gradient(step: Minibatch) -> Callable[..., Any]:
    """`grad_fn`; optax.contrib.sam hands it the number of its step as well."""
    return lambda params, *_: step.grad_fn(params)


def _same(grads: Any) -> Any:
    return grads


_TABLE = (
    Extra("value", "the loss of this minibatch at params, a scalar", lambda g: jnp.asarray(1.5, jnp.float32),
          lambda step: step.value, always=True),
    Extra("grad", "the gradient, under the name that optax's line searches know", _same, lambda step: step.grads,
          always=True, local=True),
    Extra("value_fn", "parameters -> the loss of this minibatch", lambda g: lambda params: _linear(g, params),
          _searchable, always=True),
    Extra("obj_fn", "value_fn, under the name that optax.contrib.sophia knows",
          lambda g: lambda params: _linear(g, params), lambda step: step.value_fn, always=True, local=True),
    Extra("grad_fn", "parameters -> the gradient of this minibatch", lambda g: lambda params: g, _gradient,
          always=True),
    Extra("hvp_fn", "a tree like the parameters -> its product with the Hessian of this minibatch",
          lambda g: lambda vector: jax.tree.map(jnp.zeros_like, vector), _hvp, always=True),
    Extra("key", "a random key of this step", lambda g: jax.random.key(5), lambda step: step.key, always=True),
    Extra("model_fn", "parameters -> the predictions of this minibatch, (examples,) or (examples, outputs)", _model,
          lambda step: None if step.predictions is None else step.predictions[0], always=True, local=True),
    Extra("targets", "what the predictions of this minibatch should be, or the numbers of its classes",
          lambda g: jnp.full((1,), -1.0, jnp.float32),
          lambda step: None if step.predictions is None else step.predictions[1], always=True),
    Extra("losses_after", "the losses of the last minibatch at the parameters after its step, one per task"),
    Extra("losses", "the losses whose gradients are handed to update, one per task or example",
          lambda g: jnp.linspace(1, 2, len(jax.tree.leaves(g)[0])), lambda step: step.losses, always=True),
    Extra("grad_moments", "gk.gradients.GradientMoments over 2 or more parts of the minibatch", _moments_sample,
          _moments, local=True),
    # Halves that agree more on some leaves than on others.
    Extra("grads_a", "the gradient of one half of the minibatch",
          lambda g: jax.tree.map(lambda x: x + jnp.abs(x), g), _half(0), local=True),
    Extra("grads_b", "the gradient of the other half of the minibatch",
          lambda g: jax.tree.map(lambda x: x - jnp.abs(x) * jnp.asarray(0.5, x.dtype), g), _half(1),
          local=True),
    Extra("example_grads", "gradients with a leading axis: one per example, microbatch or task",
          lambda g: jax.tree.map(lambda x: jnp.stack([x, x]), g), local=True),
    Extra("grad_sq", "a tree like the gradients: the mean of their squares over parts of the minibatch",
          lambda g: _moments_sample(g).mean_of_squares, local=True),
    # Positive, and of each entry alone.
    Extra("curvature", "a tree like the parameters: the diagonal of the Hessian (gk.with_curvature makes it of hvp_fn)",
          lambda g: jax.tree.map(lambda x: 0.5 + jnp.square(x), _wide(g)), local=True),
    Extra("previous_grads", "the gradient of this minibatch at the parameters of the step before", _same,
          local=True),
    Extra("predicted_grads", "a guess of the next gradient", _same, local=True),
    Extra("snapshot_grads", "the gradient of this minibatch at the snapshot", _same, local=True),
    Extra("full_grads", "the gradient of all data at the snapshot", _same, local=True),
    Extra("full_grad_fn", "parameters -> the gradient of all data", lambda g: lambda params: g, local=True),
    Extra("cluster_grads", "gradients with a leading axis: one per cluster of examples",
          lambda g: jax.tree.map(lambda x: jnp.stack([x, x, x]), g), local=True),
    Extra("cluster_counts", "how many examples of the minibatch each cluster has",
          lambda g: jnp.array([1, 1, 0], jnp.int32)),
    Extra("factor_grads", "gradients with a leading axis, of whose products the statistics are made",
          lambda g: jax.tree.map(lambda x: jnp.stack([x, x]), g), local=True),
    Extra("input_moment", "a tree like the parameters: the second moment of the inputs of each kernel, None elsewhere",
          _input_moments, local=True),
    Extra("max_attention_logits",
          "name of an attention -> the largest logit of each of its heads, over batch and positions of this minibatch",
          lambda g: {"attention": jnp.full((1,), 150.0, jnp.float32)}),
    Extra("slope", "the mean over this minibatch of |l'(margin)|, of a loss of margins",
          lambda g: jnp.asarray(0.25, jnp.float32)),
    Extra("grad_bound", "a bound of the norm of gradients at params", lambda g: jnp.asarray(10.0, jnp.float32)),
    Extra("index", "the number of the example, 0, 1, ...", lambda g: 0),
    Extra("client", "the number of the client, or shard of the data, whose minibatch this is", lambda g: 1),
    Extra("weight", "how much this minibatch counts, such as its number of tokens", lambda g: 1),
    Extra("probe", "a tree like the gradients: the random direction of this step", local=True),
    Extra("residuals", "targets minus predictions, (examples,) or (examples, outputs)"),
    Extra("residual_fn", "parameters -> the residuals of this minibatch, of which the loss is a convex function",
          lambda g: lambda params: 1 + _model(g)(params), local=True),
    Extra("jvp", "a tree like the parameters -> its product with the derivative of the predictions", local=True),
    Extra("vjp", "numbers like the residuals -> their product with the derivative of the predictions", local=True),
    Extra("loss_hessian", "the second derivative of the loss by the predictions, (examples, outputs, outputs)"),
    Extra("precond_state", "the state of the preconditioner of kfac-jax"),
    Extra("refresh", "whether the gradient handed to update is that of all data now", lambda g: jnp.asarray(False)),
    Extra("reset", "whether the mean starts again"),
    Extra("sync", "whether the replicas synchronise at this step"),
)  # fmt: skip
EXTRAS: dict[str, Extra] = {extra.name: extra for extra in _TABLE}


def offered(step: Minibatch, needs: Collection[str] = ()) -> dict[str, Any]:
    """The extra arguments that a loop hands to `update`.

    Args:
      step: what the loop knows.
      needs: those that are made because a link needs them, besides the cheap ones.

    Returns:
      Name -> value. What a loop cannot make is left out: the link that misses it says so.
    """
    made = {name: extra.make(step) for name, extra in EXTRAS.items() if extra.make and (extra.always or name in needs)}
    return {name: value for name, value in made.items() if value is not None}


def samples(grads: Any, needs: Collection[str]) -> dict[str, Any]:
    """A sample of every argument in `needs`, for these gradients.

    Raises:
      ValueError: an argument that the table does not have, or has no sample of.

    >>> float(samples(jnp.ones(3), ("value",))["value"])
    1.5
    """
    found, grads = {}, jax.tree.map(jnp.asarray, grads)
    for name in needs:
        extra = EXTRAS.get(name)
        if extra is None or extra.sample is None:
            raise ValueError(f"needs must be arguments that gradkit.engine.extras has a sample of, got {name!r}")
        found[name] = extra.sample(grads)
    return found


def missing(method: str, name: str) -> str:
    """The message of a method that was not given an argument.

    >>> missing("mine", "ages")
    'mine needs the extra argument ages: call update(grads, state, params, ages=...)'
    """
    meaning = f", {EXTRAS[name].meaning}" if name in EXTRAS else ""
    meaning += f"; {IN_A_STEP}" if name == "key" else ""
    return f"{method} needs the extra argument {name}: call update(grads, state, params, {name}=...){meaning}"
