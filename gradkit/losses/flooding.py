"""Flooding: a training loss that does not fall below a level."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register

PAPER = Paper("Do We Need Zero Training Loss After Achieving Zero Training Error?", "Ishida et al.", 2020, "2002.08709")


def flooding(loss_fn: Callable[..., Any], b: Any, *, has_aux: bool = False) -> Callable[..., Any]:
    """A loss with the lower bound b: gradient descent above it, ascent below, and in the end a random walk along it.

    Equations:

        flooded = |loss - b| + b
        gradient = grad loss                  where loss > b
        gradient = -grad loss                 where loss < b

    Args:
      loss_fn: (*args) -> scalar, or (scalar, aux): the mean over a batch, not the loss of one example.
      b: the level, >= 0: the paper searches 0 to 0.2 for cross entropies. May be traced.
      has_aux: whether `loss_fn` returns (scalar, aux). Default False.

    Returns:
      A function like `loss_fn`, whose value is >= b.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> import jax
      >>> flooded = flooding(lambda x: x**2, 1.0)
      >>> [(float(flooded(x)), float(jax.grad(flooded)(x))) for x in (2.0, 0.5)]
      [(4.0, 4.0), (1.75, -1.0)]

    Reference: Ishida et al. Do We Need Zero Training Loss After Achieving Zero Training Error? 2020, arXiv 2002.08709.
    In a chain that has `value`: `gk.flood`. Its relation to gradient regularization: Karakida et al. 2022, arXiv
    2210.02720.
    """
    checks.function("loss_fn", loss_fn)
    checks.real("b", b, "[0, inf)")
    checks.switch(has_aux=has_aux)

    @functools.wraps(loss_fn)
    def flooded(*args: Any, **kwargs: Any) -> Any:
        found = loss_fn(*args, **kwargs)
        value, aux = found if has_aux else (found, None)
        level = jnp.asarray(b, jnp.result_type(value))
        value = jnp.abs(value - level) + level
        return (value, aux) if has_aux else value

    return flooded


register(flooding, form="program", paper=PAPER)
