"""What depends on the structure of a tree alone, found once per structure: every link of a chain asks for it."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def of_structure(function: Callable[[Any], T]) -> Callable[[Any], T]:
    """A function of a tree that looks at no leaf, called once for every structure.

    Args:
      function: tree -> what must not be changed by who gets it.

    Returns:
      The function. The last 64 structures are known; of the trees nothing is kept.

    Example:
      >>> asked = []
      >>> count = of_structure(lambda tree: asked.append(tree) or len(tree))
      >>> count([1, 2]), count([3, 4]), count([5]), len(asked)
      (2, 2, 1, 2)
    """

    @functools.lru_cache(maxsize=64)
    def kept(structure: Any) -> list[T]:
        del structure
        return []

    @functools.wraps(function)
    def known(tree: Any) -> T:
        try:
            found = kept(jax.tree.structure(tree))
        except (TypeError, ValueError):  # a node has static fields that cannot be hashed, or compared
            return function(tree)
        if not found:
            found.append(function(tree))
        return found[0]

    return known
