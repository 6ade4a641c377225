"""One decision for the whole tree, for every link that asks.

A link in a chain, a mask or a group often sees a part of the parameters: `optax.partition` gives a matrix method the
matrices alone, without the biases and scales that show which axes are stacks. So a transformation opens a scope with
the tree it was given, and whatever runs inside it reads the decision of the outermost tree that has the leaf. A scope
lives as long as the call of `init` or `update`; nothing is kept between calls.
"""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax

from gradkit import checks
from gradkit.leaves.axes import Axes
from gradkit.leaves.infer import Decision, alone, infer_layout, lasting
from gradkit.leaves.keeping import Kept, has_kept, is_kept, keep, with_number
from gradkit.leaves.paths import names
from gradkit.types import PyTree, Scalar

Layout = Callable[[str, tuple[int, ...]], Axes]


class LayoutWarning(UserWarning):
    """What the axes of some leaves mean is a guess."""


@dataclasses.dataclass
class Scope:
    """A tree whose layout is asked for.

    Attributes:
      tree: the tree.
      outer: the scope around this one.
      given: a decision that is not the one of names and shapes.
      starts: whether it is that of an `init`.
      asked: whether anything read the decision.
      doubted: the names of uncertain leaves that were asked for.
      checked: which layouts have been checked against the tree, by their identity.
    """

    tree: Any
    outer: "Scope | None" = None
    given: Decision | None = None
    starts: bool = False
    asked: bool = False
    doubted: set[str] = dataclasses.field(default_factory=set)
    checked: set[int] = dataclasses.field(default_factory=set)

    @functools.cached_property
    def decision(self) -> Decision:
        """The decision for the tree."""
        return lasting(self.tree) if self.given is None else self.given

    def outwards(self) -> list["Scope"]:
        """This scope and those around it, outermost first."""
        return [*(self.outer.outwards() if self.outer is not None else []), self]


_SCOPE: ContextVar[Scope | None] = ContextVar("scope", default=None)


def outermost() -> Scope | None:
    """The scope of the whole tree that a transformation was given, if one is at work."""
    inner = _SCOPE.get()
    return None if inner is None else inner.outwards()[0]


@contextlib.contextmanager
def deciding(tree: PyTree, given: Decision | None = None, *, starts: bool = False) -> Iterator[Scope]:
    """Within, the layout of the leaves of `tree` is decided for all of them together.

    Args:
      tree: parameters or updates, arrays or shapes.
      given: a decision made before. Default None: that of the tree.
      starts: whether it is the tree of an `init`, where warnings are given.
    """
    scope = Scope(tree, _SCOPE.get(), given, starts)
    token = _SCOPE.set(scope)
    try:
        yield scope
    finally:
        _SCOPE.reset(token)


def scoped_init(init: Callable[[Any], Any], params: PyTree, method: str) -> Any:
    """Calls an `init` with its parameters as the tree that layouts are decided for; then warns, once, of the leaves
    that were asked for and that the tree does not settle."""
    named, plain, outer = infer_layout(params), lasting(params), _SCOPE.get()
    same = named.entries == plain.entries or (outer is not None and _covering(outer, named.entries) is not None)
    with deciding(params, None if same else named, starts=True) as scope:
        state = init(params)
    doubts = [doubt for doubt in scope.decision.ambiguous if doubt.path in scope.doubted] if scope.doubted else []
    if doubts:
        shown = "; ".join(f"{d.path} as {_text(d.axes)} ({d.reason})" for d in doubts[:8])
        more = f"; and {len(doubts) - 8} more" if len(doubts) > 8 else ""
        warnings.warn(
            f"{method}: what the axes of {len(doubts)} leaves mean is not certain. Assumed: {shown}{more}. "
            f"Declare it: layout=gk.leaves.layout((gk.leaves.by_path({doubts[0].path!r}), "
            '{"stack": ..., "inputs": ..., "outputs": ...})), or '
            "layout=gk.leaves.infer_layout(params, axis_names=...)",
            LayoutWarning,
            stacklevel=3,
        )
    if not scope.asked:
        return state
    state = with_number(state, named)
    return state if same else keep(state, named)


def scoped_update(update: Callable[[Any], tuple[Any, Any]], tree: PyTree, state: Any) -> tuple[Any, Any]:
    """Calls an `update`, state -> (updates, state), likewise; with the decision of the `init` where it is kept."""
    kept, structure, at = _own_kept(tree, state) if has_kept(state) else ([], None, None)
    if at is None or structure is None:
        with deciding(tree):
            return update(state)
    given: Decision = kept[at].decision
    with deciding(tree, given):
        updates, new = update(structure.unflatten([*kept[:at], kept[at].state, *kept[at + 1 :]]))
    nodes = structure.flatten_up_to(new)
    return updates, structure.unflatten([*nodes[:at], Kept(nodes[at], given), *nodes[at + 1 :]])


def _own_kept(tree: Any, state: Any) -> tuple[list[Any], Any, int | None]:
    """The nodes of a state, its structure above them, and which of them is the decision for this tree. What a link
    inside has kept for leaves of its own names is for that link."""
    nodes, structure = jax.tree.flatten(state, is_leaf=is_kept)
    own = set(names(tree))
    at = next((i for i, x in enumerate(nodes) if is_kept(x) and own <= x.decision.layers_of.keys()), None)
    return nodes, structure, at


_DECAY: ContextVar[Any] = ContextVar("decay", default=1.0)


@contextlib.contextmanager
def decaying(factor: Any) -> Iterator[None]:
    """Within, every weight decay is multiplied by a factor, besides those around it."""
    token = _DECAY.set(_product(_DECAY.get(), factor))
    try:
        yield
    finally:
        _DECAY.reset(token)


def decay_here(weight_decay: Scalar) -> Any:
    """A weight decay, times the factor of the group of parameters that is being worked on.

    >>> with decaying(0.5):
    ...     decay_here(0.1)
    0.05
    """
    return _product(weight_decay, _DECAY.get())


def _product(value: Any, factor: Any) -> Any:
    plain = isinstance(factor, int | float)
    if plain and factor == 1:
        return value
    if isinstance(value, int | float):
        return value * factor if plain else jax.numpy.asarray(factor) * value
    return value * factor if plain else value * jax.numpy.asarray(factor).astype(value.dtype)


def _covering(scope: Scope, entries: Any) -> Scope | None:
    rows = [(path, shape) for path, shape, _ in entries]
    return next((each for each in scope.outwards() if each.decision.covers(rows)), None)


def default_layout(path: str, shape: tuple[int, ...]) -> Axes:
    """The layout of a leaf where none is declared: what `infer_layout` says of the tree that it belongs to.

    Inside `init` and `update` of a transformation the tree is all that the outermost one was given. Elsewhere there is
    no tree, and the leaf's own name and shape must do.

    Args:
      path: the name of the leaf, `a/b/c`.
      shape: its shape.

    Returns:
      The meaning of its axes.

    Example:
      >>> default_layout("Dense_0/kernel", (64, 10))
      Axes(role='matrix', stack=(), inputs=(0,), outputs=(1,), splits=())
      >>> default_layout("ScanBlock_0/Conv_0/kernel", (6, 3, 3, 8, 16))
      Axes(role='conv', stack=(0,), inputs=(1, 2, 3), outputs=(4,), splits=())
    """
    return _look_up(path, tuple(shape), doubt=True)


def _look_up(path: str, shape: tuple[int, ...], *, doubt: bool) -> Axes:
    inner = _SCOPE.get()
    scopes = [] if inner is None else inner.outwards()
    # Inside `shard_map` a device asks for the shape of its shard.
    for exact in (True, False):
        for scope in scopes:
            axes = scope.decision.find(path, shape, exact=exact)
            if axes is not None:
                scope.asked = True
                if doubt and scope.starts and scope.decision.ambiguous:
                    scope.doubted.add(path)
                return axes
    return alone(path, shape)


def axes_of(layout: Layout | None, path: str, shape: tuple[int, ...], *, doubt: bool = True) -> Axes:
    """The meaning of the axes of one leaf.

    Args:
      layout: what the user declared, or None.
      path: the name of the leaf, `a/b/c`.
      shape: its shape.
      doubt: whether an `init` warns where the tree leaves it open; not so where the user declares a part of it.

    Returns:
      The meaning of its axes: what the layout says, or `default_layout`.

    Example:
      >>> axes_of(None, "bias", (8,)).role
      'vector'
    """
    checks.switch(doubt=doubt)
    if layout is None:
        return _look_up(path, tuple(shape), doubt=doubt)
    _check_layout(layout)
    return layout(path, tuple(shape))


def _check_layout(layout: Any, method: str = "") -> None:
    if not callable(layout):
        raise ValueError(
            f"{method and f'{method}: '}layout must be a function (path, shape) -> Axes or None, got {layout!r}; "
            "write layout=gk.leaves.layout(...), gk.leaves.infer_layout(params), or nothing"
        )


def resolve_layout(layout: Layout | None, params: PyTree, *, method: str, matters: bool = False) -> Layout:
    """The layout that a method works with, from what a user declared, or decided for the whole tree.

    Args:
      layout: what the user declared, or None.
      params: parameters or updates, arrays or shapes; the whole tree or a part of it, inside a transformation.
      method: the public name, for messages.
      matters: whether the result depends on the meaning of the axes; then, where the tree leaves it open, a warning
        at the end of the outermost `init` names the leaves.

    Returns:
      A layout.

    Raises:
      ValueError: a layout that is no function.

    Example:
      >>> resolve_layout(None, {"up": {"kernel": jax.numpy.zeros((8, 32))}}, method="f")("up/kernel", (8, 32)).inputs
      (0,)
    """
    checks.switch(matters=matters)
    if layout is not None:
        _check_layout(layout, method)
        return layout
    with deciding(params) as own:
        entries = own.decision.entries
        scope = _covering(own, entries) or own
    scope.asked = True
    if matters and scope.starts:
        scope.doubted |= {path for path, _, _ in entries}
    return scope.decision


def _text(axes: Axes) -> str:
    return f"{axes.role} with stack {axes.stack}, inputs {axes.inputs}, outputs {axes.outputs}"
