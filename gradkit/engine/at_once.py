"""Functions of trees that are one program where an update is called eagerly.

Op by op, an update of hundreds of leaves is as many calls of the runtime, and each takes ten times as long as the
arithmetic of a small leaf. Where an update is traced there is nothing to gain, and much to lose: numbers would become
arrays, and the program would be traced twice.
"""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
from jax.core import Tracer

F = TypeVar("F", bound=Callable)


def at_once(function: F, *, static_argnums: tuple[int, ...] = ()) -> F:
    """A function of trees of arrays, compiled as one program where none of them is traced.

    Args:
      function: of trees of arrays and numbers, by position; defined once, as it is compiled once for trees of the same
        shapes.
      static_argnums: which arguments are neither: compiled once for each value.

    Returns:
      The function.

    Example:
      >>> double = at_once(lambda tree: jax.tree.map(lambda x: 2 * x, tree))
      >>> double({"a": jax.numpy.ones(2)})["a"].tolist()
      [2.0, 2.0]
    """
    compiled = jax.jit(function, static_argnums=static_argnums)

    @functools.wraps(function)
    def call(*trees):
        if any(issubclass(kind, Tracer) for kind in set(map(type, jax.tree.leaves(trees)))):
            return function(*trees)
        try:
            return compiled(*trees)
        except ValueError:  # the leaves are on different devices, or over different meshes
            return function(*trees)

    return call  # pyrefly: ignore
