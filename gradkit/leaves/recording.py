"""What the links of a transformation say of themselves while `describe` runs its `init`.

A transformation is a pair of functions, and wrappers keep no record of what they wrap. They all call its `init`,
though, so a description is collected there: every link of this library announces itself, with the leaves it was given,
to a recorder that is set only while `describe` runs. Nothing is stored on functions or in the state.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import optax

from gradkit.leaves.paths import names
from gradkit.leaves.scopes import decay_here
from gradkit.types import PyTree


class Method(NamedTuple):
    """What an optimizer or link says of itself for `describe`, and to a loop.

    `gradients_of` is of an aggregator: "tasks" or "examples", of which one gradient each comes in.
    """

    name: str
    learning_rate: Any = None
    weight_decay: Any = None
    weight_decay_mask: Any = None
    gradients_of: str = ""


@dataclasses.dataclass
class Link:
    """One `init` that was called.

    Attributes:
      method: what it says of itself.
      complete: whether it is a ready optimizer, whose links are its own business.
      params: the parameters it was given; leaves that belong to others are masked.
      links: those whose `init` was called inside it.
      state: what it returned.
    """

    method: Method
    complete: bool
    params: Any
    links: list["Link"] = dataclasses.field(default_factory=list)
    state: Any = None

    def walk(self) -> Iterator["Link"]:
        """This link and all inside it, outermost first."""
        yield self
        for link in self.links:
            yield from link.walk()

    @property
    def leaves(self) -> frozenset[str]:
        """The names of the leaves it was given."""
        return frozenset(names(self.params))


_LINKS: ContextVar[list[Link] | None] = ContextVar("links", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[list[Link]]:
    """Within, every `init` of this library is recorded; yields the outermost links, in the order of their calls."""
    token = _LINKS.set([])
    try:
        yield _LINKS.get()  # pyright: ignore[reportReturnType]
    finally:
        _LINKS.reset(token)


def announce(method: Method, init: Callable[[Any], Any], params: PyTree, *, complete: bool = False) -> Any:
    """Calls an `init`, and tells the recorder of it, if there is one."""
    outer = _LINKS.get()
    if outer is None:
        return init(params)
    if method.weight_decay is not None and not callable(method.weight_decay):
        method = method._replace(weight_decay=decay_here(method.weight_decay))
    link = Link(method, complete, params)
    outer.append(link)
    token = _LINKS.set(link.links)
    try:
        link.state = init(params)
    finally:
        _LINKS.reset(token)
    return link.state


def links_of(tx: optax.GradientTransformation, params: PyTree) -> list[Link]:
    """The outermost links of this library in a transformation, in any wrapper; nothing is computed.

    >>> import gradkit as gk
    >>> tx = optax.chain(gk.clip_by_global_norm(1.0), optax.masked(gk.lion(0.1), True))
    >>> [link.method.name for link in links_of(tx, {"w": jax.ShapeDtypeStruct((2,), "float32")})]
    ['clip_by_global_norm', 'lion']
    """
    with recorded() as links:
        # A function of its own: of one that was traced before, JAX remembers the result and runs nothing.
        jax.eval_shape(lambda params: tx.init(params), params)
    return links
