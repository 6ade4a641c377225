"""The decision of an `init` in the state: where names of axes were seen there that no `update` may see."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import serialization

from gradkit.leaves.boxes import is_box
from gradkit.leaves.infer import Decision
from gradkit.leaves.paths import names
from gradkit.leaves.structures import of_structure


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kept:
    """A part of a state, and the decision of its `init`: where names of axes were seen there that no `update` may see,
    and say something else than the names and shapes of the leaves.

    It stands around the first number of the state that belongs to no parameter, such as a counter, so that the state is
    the same tree above its leaves: `optax.tree.map_params` and whoever reads a field find what they look for.
    `with_number` makes one where there is none.

    Attributes:
      state: the number, or the state.
      decision: what the axes of the parameters mean.
    """

    state: Any
    decision: Decision = dataclasses.field(metadata={"static": True})


def _from_state_dict(kept: Kept, saved: Any) -> Kept:
    return dataclasses.replace(kept, state=serialization.from_state_dict(kept.state, saved))


# What is written is the state alone: who reads it has the decision, of the `init` that made the state to read into.
serialization.register_serialization_state(Kept, lambda kept: serialization.to_state_dict(kept.state), _from_state_dict)


def is_kept(node: Any) -> bool:
    """Whether a node of a state is a decision."""
    return isinstance(node, Kept)


class LayoutState(NamedTuple):
    """The state of a link that keeps nothing, and reads what the axes of parameters mean: an unused number, which the
    decision of `init` may stand around."""

    unused: jax.Array


def _number(state: Any, known: Any) -> tuple[list[Any], Any, int | None]:
    """The nodes of a state, its structure above them, and which of them is the first number that belongs to none of the
    parameters of these names."""

    def stops(node: Any) -> bool:
        return is_box(node) or is_kept(node)

    nodes, structure = jax.tree.flatten(state, is_leaf=stops)
    for i, (name, node) in enumerate(zip(names(structure.unflatten(range(len(nodes)))), nodes, strict=True)):
        (*leaves,) = jax.tree.leaves(node)
        pieces = name.split("/")
        of_parameter = any("/".join(pieces[k:]) in known for k in range(len(pieces)))
        if not (is_box(node) or of_parameter) and len(leaves) == 1 and jnp.shape(leaves[0]) == ():
            return nodes, structure, i
    return nodes, structure, None


def with_number(state: Any, decision: Decision) -> Any:
    """The state with a number that belongs to no parameter: where it has none, its first empty node becomes a
    `LayoutState`. So it is in every state of a link, whether a decision is kept or not.

    >>> with_number((optax.EmptyState(), {"norm": jnp.ones(2)}), Decision(()))[0].unused.shape
    ()
    """
    if _number(state, decision.layers_of)[2] is not None:
        return state
    nodes, structure = jax.tree.flatten(state, is_leaf=_is_empty)
    at = next((i for i, node in enumerate(nodes) if _is_empty(node)), None)
    if at is None:
        return state
    return structure.unflatten([*nodes[:at], LayoutState(jnp.zeros((), jnp.int32)), *nodes[at + 1 :]])


def _is_empty(node: Any) -> bool:
    return isinstance(node, optax.EmptyState)


def keep(state: Any, decision: Decision) -> Any:
    """The state with the decision of its `init`."""
    nodes, structure, at = _number(state, decision.layers_of)
    if at is None:
        return Kept(state, decision)
    return structure.unflatten([*nodes[:at], Kept(nodes[at], decision), *nodes[at + 1 :]])


@of_structure
def has_kept(state: Any) -> bool:
    """Whether a decision is kept in the state."""
    return any(map(is_kept, jax.tree.leaves(state, is_leaf=is_kept)))


def without_kept(state: Any) -> Any:
    """The state without the decisions that are kept in it.

    >>> without_kept(keep({"count": 0}, Decision(())))
    {'count': 0}
    """
    while has_kept(state):
        state = jax.tree.map(lambda node: node.state if is_kept(node) else node, state, is_leaf=is_kept)
    return state
