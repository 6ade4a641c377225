"""Gradients that do not have the shapes of the parameters that a state was made for, said in words.

Such a step fails somewhere in the arithmetic of a method, with a message of JAX about shapes and none about leaves; or
it does not fail, where the shapes can be broadcast. A state holds most accumulators under the names of the parameters
and in their shapes, so that what differs can be found once something is wrong; nothing is looked at before.
"""

from collections.abc import Callable
from typing import Any

import jax

from gradkit.leaves import names

# What arithmetic on shapes that do not fit raises.
ERRORS = (TypeError, ValueError, LookupError)
# What JAX says in a ValueError of such a kind; others are about something else, and stay.
WORDS = ("broadcast", "ncompatible", "pytree", "reshape", "dot_general", "concatenat", "must have equal", "gradient of")


class StateMismatchError(ValueError):
    """A state was made for parameters of other shapes."""


def shapes(tree: Any) -> list[tuple[int, ...]]:
    """The shapes of all leaves."""
    return [getattr(x, "shape", ()) for x in jax.tree.leaves(tree)]


def mismatch(method: str, updates: Any, state: Any) -> StateMismatchError | None:
    """What is said of the first leaf that has an accumulator of its rank and another shape; None where all fit.

    >>> import jax.numpy as jnp
    >>> print(mismatch("adam", {"w": jnp.ones((2, 3))}, {"mu": {"w": jnp.ones((2, 4))}}))
    adam: the gradient of 'w' has shape (2, 3), and its state was made for a parameter of shape (2, 4): call init again
    """
    given = dict(zip(names(updates), shapes(updates), strict=True))
    for path, shape in zip(names(state), shapes(state), strict=True):
        # The longest name that the path ends with: 'a/kernel' and not 'kernel'.
        ends = (path[start:] for start in (0, *(i + 1 for i, c in enumerate(path) if c == "/")))
        name = next((end for end in ends if end in given), "" if "" in given else None)
        # Lengths of 1 are those of sums, as a method with one number per tensor keeps them.
        own = None if name is None else given[name]
        if own is not None and len(own) == len(shape) and any(a not in (1, b) for a, b in zip(shape, own, strict=True)):
            return StateMismatchError(
                f"{method}: the gradient of {name!r} has shape {own}, and its state was made for a parameter "
                f"of shape {shape}: call init again"
            )
    return None


def misfit(method: str, like: Any, state: Any, init: Callable[[Any], Any]) -> StateMismatchError | None:
    """The same of a state that holds something else than accumulators, from what `init` would make now."""
    try:
        fresh = jax.eval_shape(init, like)
    except ERRORS:
        return None
    have, want = (dict(zip(names(tree), shapes(tree), strict=True)) for tree in (state, fresh))
    path = next((path for path in (*want, *have) if have.get(path) != want.get(path)), None)
    if path is None:
        return None
    # Of the leaves whose names are in the path, the longest name; else all.
    given = dict(zip(names(like), shapes(like), strict=True))
    own = max((name for name in given if name and name in path), key=len, default=None)
    leaves = ", ".join(f"{name!r} has shape {shape}" for name, shape in given.items() if own in (None, name))
    return StateMismatchError(
        f"{method}: the gradient of {leaves}, for which {path!r} in the state has shape {want.get(path)}; it has shape "
        f"{have.get(path)}, as the state was made for parameters of other shapes: call init again"
    )


def check_fit(method: str, params: Any, state: Any) -> None:
    """Raises where a state holds averages of parameters of other shapes, with which these could be broadcast."""
    if (found := mismatch(method, params, state)) is not None:
        raise found


def told(
    method: str,
    updates: Any,
    state: Any,
    step: Callable[[], tuple[Any, Any]],
    init: Callable[[Any], Any],
    like: Any,
) -> tuple[Any, Any]:
    """What a step returns; where it fails, or its state gets other shapes, because the gradients do not fit the state,
    it is said so.

    Args:
      method: the public name.
      updates: the gradients.
      state: the state before the step.
      step: () -> (updates, state).
      init: makes the state of parameters.
      like: the parameters, or the gradients where there are none.
    """
    try:
        new, after = step()
    except StateMismatchError:
        raise
    except ERRORS as error:
        if isinstance(error, ValueError) and not any(word in str(error) for word in WORDS):
            raise
        found = mismatch(method, updates, state) or misfit(method, like, state, init)
        if found is None:
            raise
        raise found from error
    if shapes(after) != shapes(state) or shapes(new) != shapes(updates):
        found = mismatch(method, updates, state) or misfit(method, like, state, init)
        if found is not None:
            raise found
    return new, after
