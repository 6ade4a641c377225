"""What the leaves of a tree must be: such as a method has a meaning for, and those of another tree.

A link of a chain is given what the link before it has returned. So the trees that a transformation gives to the links
inside it are known while its update runs (`Known`): a link that is given these very trees has nothing to check and
nothing to convert, and what it returns is compared to them once.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gradkit.leaves import names

# What stands for an array in a tree, and is none.
NUMBERS = (np.ndarray, np.generic, int, float, complex)


class Types(NamedTuple):
    """What is compared of a tree: its structure, the shapes and dtypes of its leaves, and whether all are arrays."""

    structure: Any
    shapes: list[tuple[int, ...]]
    dtypes: list[Any]
    arrays: bool


def types_of(tree: Any) -> Types:
    """What is compared of a tree. Gradients that an aggregator should have taken say so when they are asked.

    >>> types_of([jnp.ones(2), 1.0])
    Types(structure=PyTreeDef([*, *]), shapes=[(2,), ()], dtypes=[dtype('float32'), dtype('float32')], arrays=False)
    """
    leaves, structure = jax.tree.flatten(tree)
    if all(issubclass(kind, jax.Array | Tracer) for kind in set(map(type, leaves))):
        return Types(structure, [x.shape for x in leaves], [x.dtype for x in leaves], True)
    return Types(structure, [*map(jnp.shape, leaves)], [*map(dtype_of, leaves)], False)


def has_numbers(tree: Any) -> bool:
    """Whether a leaf of the tree stands for an array, and is none."""
    return any(issubclass(kind, NUMBERS) for kind in set(map(type, jax.tree.leaves(tree))))


def check_leaves(method: str, params: Any, *, complex_leaves: bool, dtypes: list[Any] | None = None) -> None:
    """Raises where a leaf has a dtype the method has no meaning for. `dtypes`: of the leaves, where they are known."""
    found = types_of(params).dtypes if dtypes is None else dtypes
    if all(_has_meaning(dtype, complex_leaves) for dtype in set(found)):
        return
    for name, x in zip(names(params), jax.tree.leaves(params), strict=True):
        dtype = dtype_of(x)
        if not _has_meaning(dtype, True):
            what = f"is a {type(x).__name__}" if dtype is None else f"has dtype {dtype}"
            raise ValueError(f"{method}: the leaf {name!r} {what}; only floating point leaves can be trained")
        if not _has_meaning(dtype, complex_leaves):
            raise ValueError(f"{method}: the leaf {name!r} is complex, and {method} has no complex form")


def dtype_of(x: Any) -> Any:
    """The dtype of a leaf, or of the array it stands for; None of what is no number."""
    return jnp.result_type(x) if isinstance(x, NUMBERS) else getattr(x, "dtype", None)


@functools.lru_cache(maxsize=256)
def _has_meaning(dtype: Any, complex_leaves: bool) -> bool:
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.inexact if complex_leaves else jnp.floating))


def check_match(method: str, updates: Any, params: Any) -> None:
    """Raises where a gradient tree has other leaves or shapes than the parameters, or a complex leaf for a real one."""
    _check_types(method, updates, params, types_of(updates), types_of(params))


def _check_types(method: str, updates: Any, params: Any, here: Types, there: Types) -> None:
    if here.structure == there.structure and here.shapes == there.shapes:
        kinds = set(zip(here.dtypes, there.dtypes, strict=True))
        if all(_real_where_needed(*kind) for kind in kinds):
            return
    got = dict(zip(names(updates), jax.tree.leaves(updates), strict=True))
    want = dict(zip(names(params), jax.tree.leaves(params), strict=True))
    if got.keys() != want.keys():
        missing, surplus = sorted(want.keys() - got.keys()), sorted(got.keys() - want.keys())
        raise ValueError(f"{method}: gradients do not match the parameters: missing {missing}, unknown {surplus}")
    for name, x in got.items():
        if jnp.shape(x) != jnp.shape(want[name]):
            shapes = f"{jnp.shape(x)}, the parameter {jnp.shape(want[name])}"
            raise ValueError(f"{method}: the gradient of {name!r} has shape {shapes}")
        dtype, expected = dtype_of(x), dtype_of(want[name])
        if not _real_where_needed(dtype, expected):
            raise ValueError(
                f"{method}: the gradient of {name!r} has dtype {dtype}, the parameter {expected}; the gradient of a "
                f"real parameter must be real: give its real part"
            )


@functools.lru_cache(maxsize=256)
def _real_where_needed(gradient: Any, parameter: Any) -> bool:
    """Whether a gradient of this dtype can be that of a parameter."""
    return not (_has_meaning(parameter, False) and _has_meaning(gradient, True) and not _has_meaning(gradient, False))


@dataclasses.dataclass
class Known:
    """Updates and parameters that fit each other.

    Attributes:
      updates: the updates; where links are given them, those that the next link will be given.
      params: the parameters, or None.
      types: what is compared of the updates.
      param_dtypes: the dtypes of the parameters.
    """

    updates: Any
    params: Any
    types: Types
    param_dtypes: list[Any]


_KNOWN: ContextVar[Known | None] = ContextVar("known", default=None)


def known(updates: Any, params: Any) -> Known | None:
    """What is known of the trees that a link is given: of the very trees that the transformation around it gave to the
    first of its links, or that a link before it returned. Else None."""
    found = _KNOWN.get()
    return found if found is not None and updates is found.updates and params is found.params else None


def matched(method: str, updates: Any, params: Any) -> Known:
    """The same of any trees of arrays. Raises as `check_match` does, where there are parameters."""
    here = types_of(updates)
    there = here if params is None else types_of(params)
    if params is not None:
        _check_types(method, updates, params, here, there)
    return Known(updates, params, here, there.dtypes)


@contextlib.contextmanager
def giving(trees: Known) -> Iterator[None]:
    """Within, links are given these trees: arrays of strong dtypes, as wide as is computed in, in no boxes."""
    token = _KNOWN.set(trees)
    try:
        yield
    finally:
        _KNOWN.reset(token)


def give(updates: Any, types: Types) -> None:
    """The next link will be given these updates, which need no check where they are of the types of those before."""
    found = _KNOWN.get()
    if found is not None and types.arrays and types == found.types:
        found.updates = updates
