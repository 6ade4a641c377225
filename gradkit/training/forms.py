"""The forms a loss may have, as one.

    plain tree, linen        loss_fn(params, batch)                -> loss
    with a model state       loss_fn(params, model_state, batch)   -> (loss, model_state)
    NNX                      loss_fn(model, batch)                 -> loss; the model's state changes inside

become (loss, (model_state, aux)), the form that gradient sources know.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gradkit.engine.core import widen


def _pair(out: Any, second: str) -> Any:
    if not (isinstance(out, tuple) and len(out) == 2):
        raise ValueError(f"loss_fn must return (loss, {second}), got {type(out).__name__}")
    return out


def _carried(new: Any, old: Any) -> Any:
    """The new model state, if it is of the structure, shapes and dtypes of the old one."""

    def leaf(x: Any, was: Any) -> jax.Array:
        x = jnp.asarray(x)
        if (x.shape, x.dtype) != (was.shape, was.dtype):
            raise ValueError(f"the loss turned a {was.dtype}{was.shape} of the model state into {x.dtype}{x.shape}")
        return jax.lax.convert_element_type(x, was.dtype) if x.weak_type else x

    if jax.tree.structure(new) != jax.tree.structure(old):
        got, want = jax.tree.structure(new), jax.tree.structure(old)
        raise ValueError(f"the loss must return a model state of the structure it was given, {want}, got {got}")
    return jax.tree.map(leaf, new, old)


def joined(stacked: Any) -> Any:
    """One model state from those of the microbatches, which all started from the same: means of statistics, the
    last of counters."""

    def leaf(x: jax.Array) -> jax.Array:
        return widen(x).mean(0).astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else x[-1]

    return jax.tree.map(leaf, stacked)


def _fold(tree: Any, index: Any) -> Any:
    """Random keys of their own for a microbatch."""
    return tree if index is None else jax.tree.map(lambda key: jax.random.fold_in(key, index), tree)


def takes_key(loss_fn: Callable[..., Any]) -> tuple[bool, bool]:
    """Whether a loss has an argument `key`, and whether it cannot do without."""
    key = inspect.signature(loss_fn).parameters.get("key")
    return key is not None, key is not None and key.default is inspect.Parameter.empty


def one_form(loss_fn: Callable[..., Any], has_aux: bool, wrt: Any) -> Callable[..., tuple[Any, tuple[Any, Any]]]:
    """The loss as (graph, params, model_state, batch, key, index) -> (loss, (model_state, aux)).

    Args:
      loss_fn: in any of the forms.
      has_aux: whether it returns an aux as well.
      wrt: the filter of an NNX module's trained variables.

    Returns:
      The function; `graph` is None but for NNX, and `index` but for microbatches, where it tells one from another.
    """
    wants_key, _ = takes_key(loss_fn)

    def of_tree(params: Any, model_state: Any, batch: Any, kwargs: Any) -> tuple[Any, tuple[Any, Any]]:
        if model_state is None:
            out = loss_fn(params, batch, **kwargs)
            loss, aux = _pair(out, "aux") if has_aux else (out, None)
            return loss, (None, aux)
        out = loss_fn(params, model_state, batch, **kwargs)
        loss, rest = _pair(out, "(model_state, aux)" if has_aux else "model_state")
        new, aux = _pair(rest, "aux") if has_aux else (rest, None)
        return loss, (_carried(new, model_state), aux)

    def of_module(graph: Any, params: Any, model_state: Any, batch: Any, index: Any, kwargs: Any) -> Any:
        model = nnx.merge(graph, params, model_state)
        streams = nnx.as_pure(nnx.state(model, nnx.RngKey))
        nnx.update(model, _fold(streams, index))
        out = loss_fn(model, batch, **kwargs)
        nnx.update(model, streams)
        loss, aux = _pair(out, "aux") if has_aux else (out, None)
        after, trained, new = nnx.split(model, wrt, ...)
        if after != graph:
            raise ValueError("the loss must not change the structure of the module; see nnx.pop for what it sows")
        if any(a is not b for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(params), strict=True)):
            raise ValueError("the loss must not change trained variables of the module: the transformation does")
        return loss, (_carried(nnx.as_pure(new), model_state), aux)

    def computed(graph: Any, params: Any, model_state: Any, batch: Any, key: Any, index: Any) -> Any:
        kwargs = {"key": _fold(key, index)} if wants_key and key is not None else {}
        if graph is None:
            return of_tree(params, model_state, batch, kwargs)
        return of_module(graph, params, model_state, batch, index, kwargs)

    return computed
