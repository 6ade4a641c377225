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
ERRORS = (TypeError, ValueError, IndexError)


class StateMismatchError(ValueError):
    """A state was made for parameters of other shapes."""


def shapes(tree: Any) -> list[tuple[int, ...]]:
    """The shapes of all leaves."""
    return [getattr(x, "shape", ()) for x in jax.tree.leaves(tree)]


def mismatch(method: str, updates: Any, state: Any) -> StateMismatchError | None:
    """What is said of the first leaf that has an accumulator of its rank and another shape; None where all fit.

    >>> import jax.numpy as jnp
    >>> print(mismatch("adam", {"w": jnp.ones((2, 3))}, {"mu": {"w": jnp.ones((2, 1))}}))
    adam: the gradient of 'w' has shape (2, 3), and its state was made for a parameter of shape (2, 1): call init again
    """
    given = dict(zip(names(updates), shapes(updates), strict=True))
    for path, shape in zip(names(state), shapes(state), strict=True):
        # The longest name that the path ends with: 'a/kernel' and not 'kernel'.
        ends = (path[start:] for start in (0, *(i + 1 for i, c in enumerate(path) if c == "/")))
        name = next((end for end in ends if end in given), "" if "" in given else None)
        if name is not None and len(shape) == len(given[name]) and shape != given[name]:
            return StateMismatchError(
                f"{method}: the gradient of {name!r} has shape {given[name]}, and its state was made for a parameter of "
                f"shape {shape}: call init again"
            )
    return None


def told(method: str, updates: Any, state: Any, step: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """What a step returns; where it fails, or its state gets other shapes, because the gradients do not fit the state,
    it is said so.

    Args:
      method: the public name.
      updates: the gradients.
      state: the state before the step.
      step: () -> (updates, state).
    """
    try:
        new, after = step()
    except StateMismatchError:
        raise
    except ERRORS as error:
        found = mismatch(method, updates, state)
        if found is None:
            raise
        raise found from error
    if shapes(after) != shapes(state) and (found := mismatch(method, updates, state)) is not None:
        raise found
    return new, after
