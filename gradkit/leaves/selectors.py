"""Selectors: which leaves a rule is for, by path, role, rank, shape or dtype, with `&`, `|` and `~`.

A selector is also a function params -> tree of booleans, so it goes wherever optax takes a mask.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.leaves.axes import ROLES
from gradkit.leaves.derived import label_nodes
from gradkit.leaves.paths import masked_names, names
from gradkit.leaves.scopes import Layout, axes_of, deciding
from gradkit.types import DTypeLike, Mask, PyTree


@dataclasses.dataclass(frozen=True)
class Selector:
    """A predicate on (path, shape, dtype) of a leaf, and the text it is printed as.

    Attributes:
      test: the predicate.
      text: what is printed.
      by_name: whether the path alone decides.
      required: whether a mask that selects no leaf is an error; not so where a selector is the default of a method.
    """

    test: Callable[[str, tuple[int, ...], Any], bool]
    text: str
    by_name: bool = False
    required: bool = True

    def __call__(self, tree: Any) -> Any:
        """The tree of booleans: which leaves are selected. Leaves may be arrays or shapes; a box is one leaf."""
        with deciding(tree):
            return label_nodes(lambda name, x: self.test(name, jnp.shape(x), getattr(x, "dtype", None)), tree)

    def __and__(self, other: "Selector") -> "Selector":
        text, by_name = f"({self.text} & {other.text})", self.by_name and other.by_name
        return Selector(lambda p, s, d: self.test(p, s, d) and other.test(p, s, d), text, by_name)

    def __or__(self, other: "Selector") -> "Selector":
        text, by_name = f"({self.text} | {other.text})", self.by_name and other.by_name
        return Selector(lambda p, s, d: self.test(p, s, d) or other.test(p, s, d), text, by_name)

    def __invert__(self) -> "Selector":
        return Selector(lambda p, s, d: not self.test(p, s, d), f"~{self.text}", self.by_name)


def everything() -> Selector:
    """All leaves.

    Returns:
      A selector.

    Example:
      >>> everything()({"a": 1.0})
      {'a': True}
    """
    return Selector(lambda path, shape, dtype: True, "everything", by_name=True)


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
    checks.text(pattern=pattern)
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"by_path: {pattern!r} is not a regular expression: {error}") from error
    return Selector(lambda path, shape, dtype: compiled.fullmatch(path) is not None, f"by_path({pattern!r})", True)


def by_role(*roles: str, layout: Layout | None = None) -> Selector:
    """Leaves of one of some roles.

    Args:
      *roles: "matrix", "conv", "embedding", "head", "vector", "scalar", "expert".
      layout: what decides the role. Default None: the tree.

    Returns:
      A selector.

    Raises:
      ValueError: an unknown role.

    Example:
      >>> by_role("embedding")({"embed": {"embedding": jnp.zeros((9, 4))}, "bias": jnp.zeros(4)})
      {'bias': False, 'embed': {'embedding': True}}
    """
    checks.layout(layout)
    for role in roles:
        checks.choice("role", role, ROLES)
    return Selector(lambda path, shape, dtype: axes_of(layout, path, shape).role in roles, f"by_role{roles}")


def by_rank(at_least: int = 0, at_most: int | None = None, *, layout: Layout | None = None) -> Selector:
    """Leaves with this many axes, not counting those that stack separate tensors.

    A stack of bias vectors has rank 1, as each of them has.

    Args:
      at_least: smallest rank, >= 0.
      at_most: largest rank. Default None: any.
      layout: what says which axes are stacks. Default None: the tree.

    Returns:
      A selector.

    Raises:
      ValueError: ranks that are not integers, or out of order.

    Example:
      >>> by_rank(2)({"ScanBlock_0": {"bias": jnp.zeros((3, 4)), "kernel": jnp.zeros((3, 4, 4))}})
      {'ScanBlock_0': {'bias': False, 'kernel': True}}
    """
    checks.layout(layout)
    checks.integer("at_least", at_least)
    checks.integer("at_most", at_most, at_least, optional=True)

    def test(path: str, shape: tuple[int, ...], dtype: Any) -> bool:
        rank = len(shape) - len(axes_of(layout, path, shape).stack)
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
    if not callable(test):
        checks.sequence(test=test)
    holds = test if callable(test) else lambda shape: shape == tuple(test)
    return Selector(lambda path, shape, dtype: bool(holds(shape)), f"by_shape({test})")


def by_dtype(dtype: DTypeLike) -> Selector:
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


def no_decay(*, embeddings: bool = False, layout: Layout | None = None) -> Selector:
    """The usual mask of weight decay: no decay of biases and scales, nor of any other vector or scalar.

    What counts is what a leaf is, not how many axes it has: the biases of attention heads and stacked scales are
    spared, and so are the decay rates of a state-space model, which have the shape of a matrix.

    Args:
      embeddings: whether embeddings, tables of positions among them, are spared as well. Default False.
      layout: what decides the roles. Default None: the tree.

    Returns:
      A selector of the leaves that do decay, for `weight_decay_mask`.

    Example:
      >>> tree = {"embed": {"embedding": jnp.zeros((9, 4))}, "query": {"bias": jnp.zeros((2, 2))}}
      >>> no_decay()(tree)
      {'embed': {'embedding': True}, 'query': {'bias': False}}
      >>> no_decay(embeddings=True)(tree)
      {'embed': {'embedding': False}, 'query': {'bias': False}}
    """
    checks.switch(embeddings=embeddings)
    checks.layout(layout)
    spared = ("vector", "scalar", *(("embedding",) if embeddings else ()))
    # In a tree of vectors alone nothing was misspelled.
    return dataclasses.replace(~by_role(*spared, layout=layout), text="no_decay()", required=False)


def matrices_by_default(layout: Layout | None) -> Selector:
    """Leaves with inputs and outputs as the default of a mask: where a tree has none, nothing was misspelled.

    Args:
      layout: what says which axes are stacks. Default None: the tree.

    Returns:
      A selector that `check_mask` lets through although it selects no leaf.

    Example:
      >>> mask = matrices_by_default(None)
      >>> check_mask(mask, {"bias": 1.0}, method="lars", argument="weight_decay_mask", instead="weight_decay=0")
    """
    checks.layout(layout)

    def test(path: str, shape: tuple[int, ...], dtype: Any) -> bool:
        axes = axes_of(layout, path, shape)
        return bool(axes.inputs and axes.outputs)

    return Selector(test, "leaves with inputs and outputs", required=False)


# What makes a selector, and is none itself: by the name under which it is called.
FACTORIES: dict[Any, str] = {
    f: f"gk.leaves.{f.__name__}({'' if f in (everything, no_decay) else '...'})"
    for f in (everything, by_path, by_role, by_rank, by_shape, by_dtype, no_decay)
}


def check_mask_form(**given: Any) -> None:
    """Checks where a method is built that arguments, by their names, are masks; which leaves they select is not known
    yet.

    Args:
      **given: masks as `resolve_mask` takes them, by the names of their arguments.

    Raises:
      ValueError: the name of a leaf, a number, a tree with one of them, or a maker of selectors that was not called.

    Example:
      >>> check_mask_form(mask=no_decay)
      Traceback (most recent call last):
      ValueError: mask must be a selector, got the function no_decay, which makes one; write gk.leaves.no_decay()
    """
    for name, mask in given.items():
        if mask is None or isinstance(mask, bool | Selector):
            continue
        if (call := FACTORIES.get(mask) if isinstance(mask, FunctionType) else None) is not None:
            raise ValueError(
                f"{name} must be a selector, got the function {mask.__name__}, which makes one; write {call}"
            )
        if checks.is_function(mask):
            continue
        for entry in jax.tree.leaves(mask):
            if not isinstance(entry, bool):
                by_name = isinstance(entry, str)
                instead = f"gk.leaves.by_path({f'.*{entry}.*'!r}) to select by name" if by_name else "True or False"
                raise ValueError(
                    f"{name} must be a selector, True, False, a function of a tree, or a tree whose every entry is "
                    f"True or False, got {entry!r}{'' if entry is mask else f' in {mask!r}'}; write {instead}"
                )


def resolve_mask(mask: Mask, tree: PyTree, *, argument: str = "mask", method: str = "") -> Any:
    """A tree of Python booleans from whatever a user may pass as a mask.

    Args:
      mask: None (everything), a boolean, a selector, a function tree -> booleans, or a tree of booleans
        of which `tree` may be a refinement. A pytree is never called, also where it can be.
      tree: parameters or updates, arrays or shapes.
      argument: the name of the argument, for messages.
      method: the public name of the method, for messages.

    Returns:
      A tree like `tree` of True and False.

    Raises:
      ValueError: an entry that is not a boolean, or a tree of another structure.

    Example:
      >>> resolve_mask({"a": True, "b": False}, {"a": 1.0, "b": [2.0, 3.0]})
      {'a': True, 'b': [False, False]}
    """
    of = f"{method}: {argument}" if method else argument
    if mask is None or isinstance(mask, bool):
        return jax.tree.map(lambda _: mask is not False, tree)
    if isinstance(mask, Selector):
        return jax.tree.map(lambda flag, part: jax.tree.map(lambda _: flag, part), mask(tree), tree)
    if checks.is_function(mask, tree):
        mask = mask(tree)
    try:
        spread = jax.tree.map(lambda flag, part: jax.tree.map(lambda _: flag, part), mask, tree)
    except ValueError as error:
        raise ValueError(f"{of}: its structure does not match the parameters: {error}") from error
    for flag in jax.tree.leaves(spread):
        if not isinstance(flag, bool):
            raise ValueError(f"{of}: every entry must be True or False, got {flag!r}")
    return spread


def check_mask(mask: Mask, params: PyTree, *, method: str, argument: str, instead: str) -> None:
    """Raises where a mask selects none of the parameters, which a misspelled name would do without a word.

    None and a boolean say what they mean, and a tree without leaves has nothing to select. Where some leaves belong to
    another group (`optax.MaskedNode`, as `groups`, `optax.partition` and `optax.masked` put there), a mask is written
    for all groups, and one of them may hold none of its leaves. So a selector by path must then match a leaf of any
    group, and a tree have a True anywhere; selectors that need more than the path, and functions, are let through.

    Args:
      mask: as `resolve_mask` takes it.
      params: the parameters at `init`.
      method: the public name of the method.
      argument: the name of the argument.
      instead: what to write to select no leaf.

    Raises:
      ValueError: no leaf is selected, or what `resolve_mask` refuses.

    Example:
      >>> check_mask(by_path(".*kernal"), {"kernel": 1.0}, method="f", argument="mask", instead="mask=False")
      Traceback (most recent call last):
      ValueError: f: mask=by_path('.*kernal') selects no leaf; did you mean 'kernel'? To select none write mask=False
    """
    resolved = resolve_mask(mask, params, argument=argument, method=method)
    if mask is None or isinstance(mask, bool) or (isinstance(mask, Selector) and not mask.required):
        return
    known = names(params)
    if not known or any(jax.tree.leaves(resolved)):
        return
    if others := masked_names(params):
        if _selects_elsewhere(mask, params, others):
            return
        known += others
    given = mask.text if isinstance(mask, Selector) else repr(mask)
    offer = near(given, known) or f"; the leaves are {', '.join(map(repr, known[:12]))}"
    offer += "" if offer.endswith("?") else "."
    raise ValueError(f"{method}: {argument}={given} selects no leaf{offer} To select none write {instead}")


def _selects_elsewhere(mask: Any, tree: Any, others: list[str]) -> bool:
    """Whether a mask may select one of the leaves of other groups, of which only the names are known."""
    if isinstance(mask, Selector):
        return not mask.by_name or any(mask.test(name, (), None) for name in others)
    return checks.is_function(mask, tree) or any(flag is True for flag in jax.tree.leaves(mask))


def near(pattern: str, known: list[str]) -> str:
    """The end of a message that offers leaves of which a piece of the name is like a word of a pattern.

    >>> near(r"by_path('.*/kernal')", ["dense/bias", "dense/kernel"])
    "; did you mean 'dense/kernel'?"
    """
    pieces = {piece for name in known for piece in name.split("/")}
    words = [word for word in re.findall(r"\w+", pattern.removeprefix("by_path")) if word not in pieces]
    close = {piece for word in words for piece in difflib.get_close_matches(word, pieces, n=3, cutoff=0.6)}
    found = [name for name in known if close & set(name.split("/"))][:3]
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else checks.nearest(pattern, known)
