"""What aggregators are made with: many gradients come in, one update leaves.

The gradients are a tree with a leading axis of length m on every leaf, or `LazyGradients`, which are computed when and
as far as they are asked for. A maker is chosen by what the method looks at, and that decides what is in memory:

    fixed_weights         weights from neither gradients nor losses     one gradient
    weights_of_gramian    weights from the inner products <g_i, g_j>    two gradients
    weights_of_losses     weights from the losses                       one gradient
    coordinatewise        a function of the m values of a coordinate    m gradients
    aggregator            anything; `fold` reduces them in turn         what the function keeps
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit.aggregation.gramian import check_stacked, combine, gramian
from gradkit.aggregation.preferences import dtype_of
from gradkit.engine.core import boxless, need, wide_dtype
from gradkit.engine.lazy_gradients import LazyGradients, stacked
from gradkit.engine.matching import check_leaves, check_match
from gradkit.leaves import Method
from gradkit.leaves.recording import announce
from gradkit.types import PyTree

Weigh = Callable[..., tuple[jax.Array, Any]]


def nothing(params: PyTree) -> optax.EmptyState:
    """The state of an aggregator that keeps nothing."""
    del params
    return optax.EmptyState()


def aggregator(
    method: str,
    update: Callable[..., tuple[Any, Any]],
    *,
    init: Callable[[Any], Any] = nothing,
    of: str = "tasks",
    complex_leaves: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """An aggregator from the mathematics of its update.

    Args:
      method: the public name, for messages.
      update: (gradients, state, params or None, **extra) -> (one tree, state); the gradients are a stacked tree or
        `LazyGradients`.
      init: parameters, WITHOUT a leading axis -> state.
      of: "tasks" or "examples": what the gradients are of, by which a training loop knows the source.
      complex_leaves: whether the method means something for complex parameters.

    Returns:
      A transformation whose updates come in with a leading axis and leave without it.
    """

    def init_fn(params: Any) -> Any:
        check_leaves(method, params, complex_leaves=complex_leaves)
        return announce(Method(method, gradients_of=of), init, params)

    def update_fn(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if isinstance(updates, LazyGradients):
            if params is not None:
                check_match(method, updates.like, params)
            if not jax.tree.leaves(updates.like):
                return updates.like, state
        elif not jax.tree.leaves(updates) and not jax.tree.leaves(params):
            return updates, state
        else:
            check_stacked(method, updates, params)
            check_leaves(method, updates, complex_leaves=complex_leaves)
        return update(updates, state, params, **extra)

    return boxless(init_fn, update_fn)


def number_of(gradients: PyTree) -> int:
    """m, the number of gradients."""
    return gradients.count if isinstance(gradients, LazyGradients) else jax.tree.leaves(gradients)[0].shape[0]


def after_finite(numbers: Any, new: Any, old: Any) -> Any:
    """The new state where all numbers that it follows from are finite, else the old one: a step that is then skipped
    leaves no trace."""
    fine = jnp.all(jnp.isfinite(numbers))
    return jax.tree.map(lambda new, old: jnp.where(fine, new, old), new, old)


def fixed_weights(
    method: str, weigh: Weigh, *, init: Callable[[Any], Any] = nothing
) -> optax.GradientTransformationExtraArgs:
    """An aggregator whose weights follow from the number of gradients: `weigh` is (m, state, **extra) -> (weights,
    state)."""

    def update(gradients: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        del params
        weights, state = weigh(number_of(gradients), state, **extra)
        return combine(gradients, weights), state

    return aggregator(method, update, init=init)


def weights_of_gramian(
    method: str, weigh: Weigh, *, init: Callable[[Any], Any] = nothing
) -> optax.GradientTransformationExtraArgs:
    """An aggregator whose weights follow from the Gramian: `weigh` is (G, state, **extra) -> (weights, state).

    The state stays as it is where a gradient is not finite.
    """

    def update(gradients: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        del params
        G = gramian(gradients)
        weights, after = weigh(G, state, **extra)
        return combine(gradients, weights), after_finite(G, after, state)

    return aggregator(method, update, init=init)


def weights_of_losses(
    method: str, weigh: Weigh, *, init: Callable[[Any], Any] = nothing
) -> optax.GradientTransformationExtraArgs:
    """An aggregator whose weights follow from the losses: `weigh` is (losses, state, **extra) -> (weights, state).

    The losses are those of `LazyGradients`, or the extra argument `losses`. The state stays as it is where one of them
    is not finite.
    """

    def update(gradients: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        del params
        lazy = isinstance(gradients, LazyGradients)
        losses = gradients.losses if lazy else jnp.asarray(need(method, extra, "losses"))
        weights, after = weigh(losses, state, **{name: x for name, x in extra.items() if name != "losses"})
        return combine(gradients, weights), after_finite(losses, after, state)

    return aggregator(method, update, init=init)


def coordinatewise(
    method: str, rule: Callable[..., Any], *, init: Callable[[Any], Any] = nothing
) -> optax.GradientTransformationExtraArgs:
    """An aggregator that looks at one coordinate at a time: `rule` is (m, ...) -> (...), for every leaf, in float32 or
    wider."""

    def leaf(x: jax.Array) -> jax.Array:
        return rule(x.astype(wide_dtype(x.dtype))).astype(x.dtype)

    def update(gradients: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        return jax.tree.map(leaf, stacked(gradients)), state

    return aggregator(method, update, init=init, complex_leaves=False)


def weights_from(
    method: str, inner: optax.GradientTransformationExtraArgs, gradients: PyTree, state: Any, **extra: Any
) -> tuple[jax.Array, Any]:
    """The weights that another aggregator gives, and its state: it is handed gradients whose combinations are weights.

    Raises:
      ValueError: the other one is no aggregator of weights.
    """
    if isinstance(gradients, LazyGradients):
        asked = gradients
    else:
        m = number_of(gradients)
        losses = jnp.asarray(extra.pop("losses", jnp.zeros((m,), float)))
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), gradients)
        asked = LazyGradients(losses, one, m, lambda _: gradients, lambda weights: weights)
    like = jax.ShapeDtypeStruct((asked.count,), dtype_of(asked.like))
    asked = dataclasses.replace(asked, like=like, weighted=lambda weights: weights)
    weights, state = inner.update(asked, state, None, **extra)  # pyright: ignore[reportArgumentType]
    if not isinstance(weights, jax.Array) or weights.shape != (asked.count,):
        raise ValueError(
            f"{method}: weighting must be an aggregator whose result is a weighted sum of the gradients, with weights "
            "that follow from their inner products or from the losses; write weighting=gk.aggregation.upgrad()"
        )
    return weights, state
