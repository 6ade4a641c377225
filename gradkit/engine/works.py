"""What methods keep of the tensors of a stack: parts, how each is kept, and under which keys.

A method's `make` returns a NamedTuple of fields, each a tree of `like`, `beside` and `counted`, or None.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit.engine.core import wide_dtype
from gradkit.engine.matrices import MatrixSharding, Plan, Slot
from gradkit.engine.owned import plan_owned
from gradkit.leaves import Layout
from gradkit.leaves.derived import Sources, unboxed

LIKE, COUNTED = "like", "counted"


@functools.partial(jax.tree_util.register_dataclass, data_fields=["value"], meta_fields=["kind"])
@dataclasses.dataclass(frozen=True)
class Part:
    """An array that belongs to the tensors of a stack, and how it is kept: `LIKE`, `COUNTED`, or the sources of its
    axes behind the first."""

    value: Any
    kind: Any


def like(x: Any) -> Part:
    """What has as many entries as the tensors, in their order."""
    return Part(x, LIKE)


def beside(x: Any, sources: Sources) -> Part:
    """What belongs to some axes: for every axis of x but the first, which axes of a tensor it may be sharded like."""
    return Part(x, tuple(tuple(s) for s in sources))


def counted(rows: int) -> Part:
    """How often something happened to each tensor, none so far."""
    return Part(jnp.zeros((rows,), jnp.int32), COUNTED)


def is_part(node: Any) -> bool:
    return isinstance(node, Part)


def bare(own: Any) -> Any:
    return jax.tree.map(lambda part: part.value, own, is_leaf=is_part)


class Work:
    """What `make` keeps of every stack of a plan.

    Args:
      method: the public name, for messages.
      plan: the stacks.
      make: (rows, lengths of the axes of a tensor, dtype, kind of the stack) -> a NamedTuple of fields, each a tree of
        `Part`s or None.
      dims: per stack the lengths of the axes of its tensors.
      places: per stack the places of these axes in the flattened order of its matrices.
      axes: per leaf the axes of the leaf that each axis of its tensor is made of.
      kinds: per stack what `make` is told besides.
      inside: whether this is inside `shard_map`.
      sides: whether tensors are matrices, whose axes are called inputs and outputs.
    """

    def __init__(
        self,
        method: str,
        plan: Plan,
        make: Callable[..., Any],
        *,
        dims: Sequence[tuple[int, ...]],
        places: Sequence[tuple[int, ...]],
        axes: Sequence[tuple[tuple[int, ...], ...]],
        kinds: Sequence[Any],
        inside: bool,
        sides: bool = False,
    ) -> None:
        self.method, self.plan, self.make, self.inside, self.sides = method, plan, make, inside, sides
        self.dims, self.places, self.axes, self.kinds = tuple(dims), tuple(places), tuple(axes), tuple(kinds)
        self.alone = plan.mesh is None and not inside
        weights = {(slot.leaf, slot.part) for stack in plan.stacks for slot in stack.slots}
        self.weights = Counter(leaf for leaf, _ in weights)

        @functools.cache
        def shapes(rows: int, dims: tuple[int, ...], dtype: Any, kind: Any) -> Any:
            return jax.eval_shape(lambda: make(rows, dims, dtype, kind))

        self.shapes = shapes

    def fields(self) -> dict[str, Any]:
        """A field each, and what it would be of one tensor."""
        return self.shapes(1, (1, 1), jnp.dtype(jnp.float32), 1)._asdict()

    def of_stack(self, s: int, rows: int) -> Any:
        """The shapes of what is kept of so many tensors of a stack."""
        return self.shapes(rows, self.dims[s], wide_dtype(self.plan.stacks[s].dtype), self.kinds[s])

    def made(self, s: int, rows: int) -> Any:
        """What is kept of so many tensors of a stack, at the start."""
        return self.make(rows, self.dims[s], wide_dtype(self.plan.stacks[s].dtype), self.kinds[s])

    def slots(self) -> Iterator[tuple[int, Slot]]:
        """Every slot, and the number of its stack."""
        for s, stack in enumerate(self.plan.stacks):
            for slot in stack.slots:
                yield s, slot

    def batch(self, leaf: int) -> tuple[int, ...]:
        """The axes of a leaf that enumerate its tensors."""
        own = self.plan.axes[leaf]
        return tuple(a for a in range(len(self.plan.shapes[leaf])) if a not in own.inputs and a not in own.outputs)

    def sources(self, slot: Slot, kind: Sources) -> Sources:
        """The sources of an array (stack, ...) in the axes of its leaf."""
        own = self.axes[slot.leaf]
        own = own[::-1] if slot.turned else own
        return (*((a,) for a in self.batch(slot.leaf)), *(tuple(a for t in group for a in own[t]) for group in kind))

    def piece(self, slot: Slot, path: Any, part: Part) -> tuple[str, ...]:
        """The keys under which a part is kept, below the name of its parameter."""
        keys = keys_of(path)
        if not keys:
            first = next((t for group in part.kind for t in group), 0)
            keys = (("inputs", "outputs")[first != slot.turned] if self.sides else str(first),)
        return (f"part{slot.part}", *keys) if self.weights[slot.leaf] > 1 else keys

    def keys(self) -> list[str]:
        """A readable key of every stack."""
        names = ["x".join(map(str, d)) for d in self.dims]
        seen: Counter[str] = Counter()
        out = []
        for name in names:
            out.append(f"{name}#{seen[name]}" if seen[name] else name)
            seen[name] += 1
        return out


def plan_kept(
    tree: Any,
    make: Callable[..., Any],
    *,
    method: str,
    layout: Layout | None,
    shard: MatrixSharding | None,
    turn: Callable[[int, int], bool],
    kinds: Sequence[Any] | None = None,
) -> Work:
    """Decides which matrices are worked on together, by whom, and what is kept of them: of axis 0 and 1 of (n, m).

    Args:
      tree: leaves that all have inputs and outputs: arrays, `jax.ShapeDtypeStruct`s, or boxes of them.
      make: as `Work` takes it.
      method: the public name, for messages.
      layout: what the axes of a leaf mean.
      shard: over which devices.
      turn: (rows, columns) -> whether a matrix is worked on transposed.
      kinds: per leaf, what the leaves of a stack must have in common besides. Default None: nothing.
    """
    plan = plan_owned(
        unboxed(tree), method=method, layout=layout, shard=shard, turn=turn, kinds=kinds, divide=shard is None
    )
    return Work(
        method,
        plan,
        make,
        dims=[(stack.n, stack.m) for stack in plan.stacks],
        places=[(0, 1)] * len(plan.stacks),
        axes=[(own.inputs, own.outputs) for own in plan.axes],
        kinds=[None if kinds is None else kinds[stack.slots[0].leaf] for stack in plan.stacks],
        inside=shard is not None and shard.mesh is None,
        sides=True,
    )


def parts_of(value: Any) -> list[tuple[Any, Part]]:
    """The parts of a field, with their paths."""
    return jax.tree_util.tree_flatten_with_path(value, is_leaf=is_part)[0]


def keys_of(path: Any) -> tuple[str, ...]:
    """The pieces of a path."""
    return tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def put(tree: dict[str, Any], keys: tuple[str, ...], x: Any) -> None:
    """Puts an array into nested dictionaries."""
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = x


def merged(*trees: Mapping[Any, Any]) -> dict[Any, Any]:
    """Nested dictionaries as one.

    >>> merged({1: {"0": "a"}}, {1: {"1": "b"}, 2: {}})
    {1: {'0': 'a', '1': 'b'}, 2: {}}
    """
    out: dict[Any, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            out[key] = merged(out.get(key, {}), value) if isinstance(value, dict) else value
    return out


def get(tree: Any, keys: tuple[str, ...]) -> Any:
    """What `put` has put there."""
    for key in keys:
        tree = tree[key]
    return tree


@functools.cache
def placeholder() -> type:
    """What `optax.tree_utils.tree_map_params` gives to `init` in place of parameters."""
    found: list[type] = []

    def init(params: Any) -> tuple[()]:
        found.append(type(params))
        return ()

    optax.tree_utils.tree_map_params(init, lambda x: x, ())
    return found[0]


def kind_of(value: Any) -> Any:
    """How a field is kept: `LIKE`, `COUNTED`, or in pieces."""
    kinds = {part.kind for _, part in parts_of(value)}
    return next(iter(kinds)) if kinds in ({LIKE}, {COUNTED}) else "pieces"
