"""One loop for selections that take what gains most, again and again."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register

PAPER = Paper(
    "Active Learning for Convolutional Neural Networks: A Core-Set Approach", "Sener, Savarese", 2018, "1708.00489"
)


def greedy_select(
    gain_fn: Callable[[Any], jax.Array],
    add_fn: Callable[[Any, jax.Array], Any],
    state: Any,
    k: int,
    *,
    candidates: Any,
) -> tuple[jax.Array, Any]:
    """Takes the candidate with the largest gain, k times, and lets every choice change the gains.

        j = argmax of gain_fn(state) over the candidates that are left,    state <- add_fn(state, j)

    Args:
      gain_fn: state -> (n,), the gain of every example; -inf for one that is not to be taken now.
      add_fn: (state, j) -> state, once example j (int32, traced) is chosen.
      state: arrays that the gains follow from.
      k: how many are chosen, from 1 to n.
      candidates: mask (n,) of the examples that may be chosen.

    Returns:
      (indices (k,) int32 in the order of choice, the last state). The lowest index wins a tie; -1, and no change of the
      state, where nothing is left to be chosen. Can be jitted.

    Raises:
      ValueError: candidates that are no mask (n,); k outside its range; gains of another shape.

    Example:
      >>> x = jnp.array([1.0, 5.0, 4.0])  # the largest, then what is farthest from all chosen
      >>> far = lambda d: d
      >>> near = lambda d, j: jnp.minimum(d, abs(x - x[j]))
      >>> greedy_select(far, near, x, 2, candidates=x > 0)[0].tolist()
      [1, 0]

    Reference: Sener, Savarese. Active Learning for Convolutional Neural Networks: A Core-Set Approach. 2018, arXiv
    1708.00489; Nemhauser, Wolsey, Fisher 1978 for submodular gains.
    """
    checks.arrays(candidates=candidates)
    checks.arrays(state=state)
    checks.integer("k", k, 1)
    checks.function("gain_fn", gain_fn)
    checks.function("add_fn", add_fn)
    free = jnp.asarray(candidates)
    if free.ndim != 1 or free.dtype != bool:
        raise ValueError(
            f"greedy_select: candidates must be a mask (n,), got {free.dtype} of shape {free.shape}; write jnp.ones(n, "
            "bool) for all"
        )
    k = checks.integer("k", k, 1, maximum=len(free))
    found = jax.eval_shape(gain_fn, state).shape
    if found != free.shape:
        raise ValueError(f"greedy_select: gain_fn must give one gain per candidate, {free.shape}, got shape {found}")

    places = jnp.arange(len(free), dtype=jnp.int32)

    def pick(carry: Any, _: None) -> Any:
        state, free = carry
        gains = jnp.where(free, gain_fn(state), -jnp.inf)
        j = jnp.argmax(gains).astype(jnp.int32)
        some = jnp.max(gains) > -jnp.inf  # no look-up: of sharded gains it would gather all of them
        state = jax.tree.map(lambda new, old: jnp.where(some, new, old), add_fn(state, j), state)
        return (state, free & (places != j)), jnp.where(some, j, -1)

    (state, _), chosen = jax.lax.scan(pick, (state, free), None, k)
    return chosen, state


register(greedy_select, form="program", paper=PAPER)
