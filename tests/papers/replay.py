"""Small loops that the paper checks share."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.by_numpy import by_numpy


def normal(seed: int, *shape: int) -> jax.Array:
    """Standard normal numbers, in float64 where that is on."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.result_type(float))


def updates(tx: optax.GradientTransformation, x: Any, gradients: Sequence[Any]) -> list[Any]:
    """The updates for a sequence of gradients, applied one after another."""
    state, update, out = tx.init(x), by_numpy(optax.with_extra_args_support(tx).update), []
    for g in gradients:
        u, state = update(g, state, x)
        x = optax.apply_updates(x, u)
        out.append(u)
    return out


def descend(tx: optax.GradientTransformation, x: Any, gradient: Callable[[Any], Any], steps: int) -> list[Any]:
    """The iterates of a run on a gradient field, the start included."""
    state, update, out = tx.init(x), by_numpy(optax.with_extra_args_support(tx).update), [x]
    for _ in range(steps):
        u, state = update(gradient(x), state, x)
        x = optax.apply_updates(x, u)
        out.append(x)
    return out


def assert_equal(a: Any, b: Any, rtol: float = 1e-12, atol: float = 1e-14) -> None:
    """Equality up to the roundings of float64 (a few units of 2^-53 per operation)."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=atol)
