"""Selectors: which leaves a rule is for, by path, role, rank, shape or dtype, with `&`, `|` and `~`.

A selector is also a function params -> tree of booleans, so it goes wherever optax takes a mask.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.leaves.layout import ROLES, Layout, default_layout
from gradkit.leaves.paths import map_named


@dataclasses.dataclass(frozen=True)
class Selector:
    """A predicate on (path, shape, dtype) of a leaf, and the text it is printed as."""

    test: Callable[[str, tuple[int, ...], Any], bool]
    text: str

    def __call__(self, tree: Any) -> Any:
        """The tree of booleans: which leaves are selected. Leaves may be arrays or shapes."""
        return map_named(lambda name, x: self.test(name, jnp.shape(x), getattr(x, "dtype", None)), tree)

    def __and__(self, other: "Selector") -> "Selector":
        return Selector(lambda *leaf: self.test(*leaf) and other.test(*leaf), f"({self.text} & {other.text})")

    def __or__(self, other: "Selector") -> "Selector":
        return Selector(lambda *leaf: self.test(*leaf) or other.test(*leaf), f"({self.text} | {other.text})")

    def __invert__(self) -> "Selector":
        return Selector(lambda *leaf: not self.test(*leaf), f"~{self.text}")


def everything() -> Selector:
    """All leaves.

    Returns:
      A selector.

    Example:
      >>> everything()({"a": 1.0})
      {'a': True}
    """
    return Selector(lambda path, shape, dtype: True, "everything")


def by_path(pattern: str) -> Selector:
    """Leaves whose whole name `a/b/c` matches a regular expression.

    Args:
      pattern: what `re.fullmatch` takes.

    Returns:
      A selector.

    Raises:
      ValueError: not a regular expression.

    Example:
      >>> by_path(r".*/bias")({"dense": {"bias": 0.0, "kernel": 0.0}})
      {'dense': {'bias': True, 'kernel': False}}
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"by_path: {pattern!r} is not a regular expression: {error}") from error
    return Selector(lambda path, shape, dtype: compiled.fullmatch(path) is not None, f"by_path({pattern!r})")


def by_role(*roles: str, layout: Layout = default_layout) -> Selector:
    """Leaves of one of some roles.

    Args:
      *roles: "matrix", "conv", "embedding", "head", "vector", "scalar", "expert".
      layout: what decides the role.

    Returns:
      A selector.

    Raises:
      ValueError: an unknown role.

    Example:
      >>> by_role("embedding")({"embed": {"embedding": jnp.zeros((9, 4))}, "bias": jnp.zeros(4)})
      {'bias': False, 'embed': {'embedding': True}}
    """
    for role in roles:
        checks.choice("role", role, ROLES)
    return Selector(lambda path, shape, dtype: layout(path, shape).role in roles, f"by_role{roles}")


def by_rank(at_least: int = 0, at_most: int | None = None, *, layout: Layout = default_layout) -> Selector:
    """Leaves with this many axes, not counting those that stack separate tensors.

    A stack of bias vectors has rank 1, as each of them has.

    Args:
      at_least: smallest rank, >= 0.
      at_most: largest rank. Default None: any.
      layout: what says which axes are stacks.

    Returns:
      A selector.

    Raises:
      ValueError: ranks that are not integers, or out of order.

    Example:
      >>> by_rank(2)({"ScanBlock_0": {"bias": jnp.zeros((3, 4)), "kernel": jnp.zeros((3, 4, 4))}})
      {'ScanBlock_0': {'bias': False, 'kernel': True}}
    """
    checks.integer("at_least", at_least)
    checks.integer("at_most", at_most, at_least, optional=True)

    def test(path: str, shape: tuple[int, ...], dtype: Any) -> bool:
        rank = len(shape) - len(layout(path, shape).stack)
        return at_least <= rank and (at_most is None or rank <= at_most)

    return Selector(test, f"by_rank({at_least}, {at_most})")


def by_shape(test: Callable[[tuple[int, ...]], bool] | tuple[int, ...]) -> Selector:
    """Leaves of exactly one shape, or whose shape satisfies a predicate.

    Args:
      test: a shape, or a function shape -> boolean.

    Returns:
      A selector.

    Example:
      >>> by_shape(lambda shape: 1 in shape)({"a": jnp.zeros((1, 4)), "b": jnp.zeros((2, 4))})
      {'a': True, 'b': False}
    """
    holds = test if callable(test) else lambda shape: shape == tuple(test)
    return Selector(lambda path, shape, dtype: bool(holds(shape)), f"by_shape({test})")


def by_dtype(dtype: Any) -> Selector:
    """Leaves of a dtype, or of a family such as `jnp.floating`.

    Args:
      dtype: what `jnp.issubdtype` takes.

    Returns:
      A selector.

    Example:
      >>> by_dtype(jnp.bfloat16)({"a": jnp.zeros(2), "b": jnp.zeros(2, jnp.bfloat16)})
      {'a': False, 'b': True}
    """

    def test(path: str, shape: tuple[int, ...], leaf: Any) -> bool:
        return leaf is not None and jnp.issubdtype(leaf, dtype)

    return Selector(test, f"by_dtype({dtype})")


def resolve_mask(mask: Any, tree: Any) -> Any:
    """A tree of Python booleans from whatever a user may pass as a mask.

    Args:
      mask: None (everything), a boolean, a selector, a function tree -> booleans, or a tree of booleans
        of which `tree` may be a refinement.
      tree: parameters or updates, arrays or shapes.

    Returns:
      A tree like `tree` of True and False.

    Raises:
      ValueError: an entry that is not a boolean, or a tree of another structure.

    Example:
      >>> resolve_mask({"a": True, "b": False}, {"a": 1.0, "b": [2.0, 3.0]})
      {'a': True, 'b': [False, False]}
    """
    if mask is None or isinstance(mask, bool):
        return jax.tree.map(lambda _: mask is not False, tree)
    if isinstance(mask, Selector):
        return mask(tree)
    if callable(mask) and jax.tree_util.all_leaves([mask]):
        mask = mask(tree)
    try:
        spread = jax.tree.map(lambda flag, part: jax.tree.map(lambda _: flag, part), mask, tree)
    except ValueError as error:
        raise ValueError(f"mask: its structure does not match the parameters: {error}") from error
    for flag in jax.tree.leaves(spread):
        if not isinstance(flag, bool):
            raise ValueError(f"mask: every entry must be True or False, got {flag!r}")
    return spread
