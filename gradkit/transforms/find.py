"""What a link keeps, by its name, however deep in chains, groups and wrappers it stands."""

import difflib
from typing import Any

from gradkit.engine.states import Node, walk


def find(state: Any, path: str) -> Any:
    """A part of a state, by the names on the way to it.

    Args:
      state: the state of any transformation, also of optax's own, also inside `gk.training.TrainState`.
      path: names from the outside in, with a slash between: a link (`scale_by_adam`, or `adam` for short), a group, a
        field, a leaf of the parameters. What is not needed to tell it from the others is left out.

    Returns:
      The part: the state of a link, a tree, an array.

    Raises:
      ValueError: nothing has such a path, and the nearest that exist are named; or several parts have, and all of them
        are named.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import gradkit as gk
      >>> x = {"dense": {"kernel": jnp.ones(3)}}
      >>> tx = optax.chain(gk.clip_by_global_norm(1.0), gk.adam(0.1))
      >>> _, state = tx.update(x, tx.init(x), x)
      >>> print(find(state, "adam/mu/dense/kernel").round(3))
      [0.058 0.058 0.058]
      >>> int(find(state, "adam/count"))
      1
    """
    if not isinstance(path, str) or not path.strip("/"):
        raise ValueError(f"find: path must be names with a slash between, such as 'adam/mu', got {path!r}")
    wanted = path.strip("/").split("/")
    nodes = list(walk(state))
    found: list[Node] = []
    for node in nodes:
        if _matches(node, wanted) and not any(node.path[: len(outer.path)] == outer.path for outer in found):
            found.append(node)
    if len(found) == 1:
        return found[0].value
    if found:
        shown = ", ".join(node.text for node in found[:5]) + (", ..." if len(found) > 5 else "")
        raise ValueError(
            f"find: {path!r} fits {len(found)} parts of the state: {shown}; write more of one of the paths"
        )
    texts = dict.fromkeys(node.text for node in nodes if node.path)
    last = [text for text in texts if _short(text.rsplit("/", 1)[-1]) == _short(wanted[-1])]
    near = last or difflib.get_close_matches(path, texts, n=5, cutoff=0.0)
    raise ValueError(
        f"find: nothing in the state has the path {path!r}; nearest: {', '.join(near[:5]) or 'it is empty'}"
    )


def _short(name: str) -> str:
    return name.removeprefix("scale_by_").removeprefix("last_")


def _matches(node: Node, wanted: list[str]) -> bool:
    """Whether the last names are the same, and the others stand before it in this order."""
    pieces = [_short(piece) for name in node.path for piece in name.split("/")]
    names = [_short(name) for name in wanted]
    if not pieces or pieces[-1] != names[-1]:
        return False
    before = iter(pieces[:-1])
    return all(name in before for name in names[:-1])
