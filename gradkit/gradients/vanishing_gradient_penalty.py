"""A penalty on recurrences whose error signals vanish or explode on their way back in time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype


def _norm(x: jax.Array) -> jax.Array:
    """The norm along the last axis; where it is 0, its derivative is 0 too."""
    square = jnp.sum(jnp.square(x), axis=-1)
    there = square > 0
    return jnp.where(there, jnp.sqrt(jnp.where(there, square, jnp.ones_like(square))), jnp.zeros_like(square))


def vanishing_gradient_penalty(hidden_cotangents: Any, recurrent_vjp: Callable[[Any], Any]) -> jax.Array:
    """A penalty on changes of the norm of error signals as they flow back through a recurrence.

    Equations, for x_{k+1} = f(x_k), with error signals e_{k+1} = dE / dx_{k+1} as constants:

        Omega = sum_k (|e_{k+1} . dx_{k+1}/dx_k| / |e_{k+1}| - 1)^2

    The loss is E + weight Omega. In dx_{k+1}/dx_k only the weights are differentiated, not the states. Error signals
    are the gradient of the loss with respect to a zero that is added to every state; for a tanh recurrence
    x_{k+1} = tanh(a_k), a_k = x_k W + inputs:

        e, (a, x) = ...                                                   with `jax.grad(..., has_aux=True)`
        slope = jax.lax.stop_gradient(1 - jnp.tanh(a) ** 2)
        omega = vanishing_gradient_penalty(e, lambda e: (e * slope) @ W.T)

    Args:
      hidden_cotangents: e, floating point, shape (steps, ..., width): the error signal of every state that a step
        returns, for one sequence or for a batch of them. No gradient flows into it.
      recurrent_vjp: e -> e . dx_{k+1}/dx_k for all steps at once, of the same shape. It closes over the weights, and
        over states behind `jax.lax.stop_gradient`.

    Returns:
      Omega, a scalar in float32 or wider: the sum over steps, the mean over sequences. A step whose error signal is 0
      adds 0. No state. Elementwise but for its sums.

    Raises:
      ValueError: `hidden_cotangents` not floating point or without axes of steps and width, `recurrent_vjp` not
        callable, or one that gives another shape.

    Example:
      >>> e, W = jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 0.5], [-0.5, 0.0]])
      >>> float(vanishing_gradient_penalty(e, lambda e: e @ W.T))  # half of the length is left: (1/2 - 1)^2
      0.25

    Reference: Pascanu, Mikolov, Bengio. On the difficulty of training Recurrent Neural Networks. 2013, arXiv 1211.5063,
    equations 9 and 10. This library takes the mean over sequences; the paper has one sequence.
    """
    checks.arrays(hidden_cotangents=hidden_cotangents)
    checks.function("recurrent_vjp", recurrent_vjp)
    e = jnp.asarray(hidden_cotangents)
    if not jnp.issubdtype(e.dtype, jnp.floating) or e.ndim < 2:
        shape = f"{e.dtype} of shape {e.shape}"
        raise ValueError(f"hidden_cotangents must be floating point of shape (steps, ..., width), got {shape}")
    e = jax.lax.stop_gradient(e)
    back = jnp.asarray(recurrent_vjp(e))
    if back.shape != e.shape:
        raise ValueError(f"recurrent_vjp must return the shape {e.shape}, got {back.shape}")
    wide = wide_dtype(e.dtype)
    length, kept = _norm(e.astype(wide)), _norm(back.astype(wide))
    there = length > 0
    ratio = kept / jnp.where(there, length, jnp.ones_like(length))
    terms = jnp.where(there, jnp.square(ratio - 1), jnp.zeros_like(ratio))
    return jnp.sum(terms) / max(terms[0].size if terms.shape[0] else 1, 1)


register(
    vanishing_gradient_penalty,
    form="layer",
    paper=Paper(
        "On the difficulty of training Recurrent Neural Networks", "Pascanu, Mikolov, Bengio", 2013, "1211.5063"
    ),
    example={"recurrent_vjp": lambda e: e / 2},
)
