"""Jacobians for tests of aggregators, and the aggregator run on them as on a tree of two leaves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.by_numpy import by_numpy

N = 9


def draw(seed: int, m: int = 4, n: int = N, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, n)) + shift


def conflicting(seed: int, m: int = 4, n: int = N) -> np.ndarray:
    """Gradients of which the first outweighs all others, that pull the other way."""
    J = draw(seed, m, n)
    J[0] -= 1.5 * J.sum(0)
    assert (J @ J.mean(0)).min() < 0
    return J


def tree_of(J: Any) -> dict[str, jax.Array]:
    """A Jacobian as two leaves, so that inner products run over the tree."""
    J = jnp.asarray(J)
    return {"a": J[:, :3], "b": J[:, 3:, None]}


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def runner(tx: optax.GradientTransformation, m: int = 4, n: int = N) -> Callable[..., tuple[np.ndarray, Any]]:
    """(Jacobian, state or None, **extra) -> (result, state), traced once."""
    traced = by_numpy(optax.with_extra_args_support(tx).update)
    params = jax.tree.map(lambda g: jnp.zeros(g.shape[1:], g.dtype), tree_of(np.zeros((m, n))))

    def run(J: np.ndarray, state: Any = None, **extra: Any) -> tuple[np.ndarray, Any]:
        state = tx.init(params) if state is None else state
        out, state = traced(tree_of(J), state, params, **extra)
        return flat(out), state

    return run


def aggregate(tx: optax.GradientTransformation, J: np.ndarray, **extra: Any) -> np.ndarray:
    """The result for one Jacobian, from a fresh state."""
    return runner(tx, *J.shape)(J, **extra)[0]
