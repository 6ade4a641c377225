"""The plan of matrix work: which tensors of which leaves make one stack, and which devices share it.

    leaf --view--> matrices (batch, rows, columns) --transpose--> (batch, n, m)
    matrices of one (n, m, dtype, placement, kind) -> one stack (B, n, m) -> the tensors (B, d_1, ..., d_k) of a method

A plan is static: it follows from names, shapes, dtypes, the layout and the shardings alone. `plan_stacks` makes it,
`map_stacks` works by it, and the state of a method is made and kept by it.
"""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from gradkit.engine.core import wide_dtype
from gradkit.engine.parts import Part, keys_of
from gradkit.engine.placement import Cut, entries
from gradkit.leaves import Axes
from gradkit.leaves.derived import Sources


class Slot(NamedTuple):
    """The place of the matrices of one leaf (of one of its fused weights) in a stack: `count` of them, in order."""

    leaf: int
    part: int
    count: int
    transposed: bool


class Stack(NamedTuple):
    """Matrices that are worked on in one call: on one device `padded` of shape (n, m), the last of them zeros.

    `cut` says which mesh axes shard their batch, rows and columns, and which devices share the rest; `splits` are the
    sizes of weights that are fused along a sharded axis, and separated only where the matrices are complete. A method
    sees tensors of the lengths `dims`; `places` are the places of their axes in the flattened order of the matrices.
    `kind` is what the leaves have in common besides. Where something is kept of a stack with a single matrix, all
    devices that share it, along the mesh axes `single`, work on the matrix, and what is kept is sharded along its own
    axes.
    """

    n: int
    m: int
    dtype: Any
    cut: Cut
    splits: tuple[int, ...]
    slots: tuple[Slot, ...]
    padded: int
    dims: tuple[int, ...]
    places: tuple[int, ...]
    kind: Any
    single: tuple[str, ...] = ()

    @property
    def owners(self) -> tuple[str, ...]:
        """Mesh axes along which the stack of all devices together is sharded into matrices; the major one first."""
        if self.single:
            return self.cut.batch
        return (*self.cut.batch, *self.cut.columns, *self.cut.rows, *self.cut.spread)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stacks of a tree, and what is kept of them.

    Attributes:
      method: the public name, for messages.
      stacks: what is worked on in one call each.
      names: of every leaf the name;
      axes: which axes are the rows, the columns and the batch of its matrices;
      shapes: its shape on all devices together;
      specs: its sharding;
      sources: the axes of the leaf that each axis of its tensors is made of.
      mesh: the mesh to enter. None: there is none, or the update is inside of one already.
      sizes: the sizes of the mesh axes.
      inside: whether the update is inside `jax.shard_map` (or `jax.vmap`) over mesh axes.
      sides: whether tensors are matrices, whose axes are called inputs and outputs.
      transpose: whether the kernel may be given transposes.
      comm_dtype: dtype in which results are sent. None: their own.
      shard_given: whether the user has said which devices share the work.
      make: (rows, lengths of the axes of a tensor, dtype, kind of the stack) -> a NamedTuple of fields, each a tree of
        `Part`s or None. None: nothing is kept.
    """

    method: str
    stacks: tuple[Stack, ...]
    names: tuple[str, ...]
    axes: tuple[Axes, ...]
    shapes: tuple[tuple[int, ...], ...]
    specs: tuple[PartitionSpec, ...]
    sources: tuple[tuple[tuple[int, ...], ...], ...]
    mesh: Mesh | AbstractMesh | None
    sizes: dict[str, int]
    inside: bool
    sides: bool
    transpose: bool
    comm_dtype: Any
    shard_given: bool
    make: Callable[..., Any] | None

    @property
    def alone(self) -> bool:
        """Whether every device works on everything: then nothing has an owner."""
        return self.mesh is None and not self.inside

    @functools.cached_property
    def _shapes(self) -> Callable[..., Any]:
        return functools.cache(lambda *of: jax.eval_shape(lambda: self.make(*of)))  # pyrefly: ignore[not-callable]

    def fields(self) -> dict[str, Any]:
        """The fields, and what they would be of one tensor."""
        return {} if self.make is None else self._shapes(1, (1, 1), jnp.dtype(jnp.float32), 1)._asdict()

    def of_stack(self, s: int, rows: int) -> Any:
        """The shapes of what is kept of so many tensors of a stack."""
        stack = self.stacks[s]
        return self._shapes(rows, stack.dims, wide_dtype(stack.dtype), stack.kind)

    def made(self, s: int, rows: int) -> Any:
        """What is kept of so many tensors of a stack, at the start."""
        stack, make = self.stacks[s], self.make
        return None if make is None else make(rows, stack.dims, wide_dtype(stack.dtype), stack.kind)

    def slots(self) -> Iterator[tuple[int, Slot]]:
        """Every slot, and the number of its stack."""
        for s, stack in enumerate(self.stacks):
            for slot in stack.slots:
                yield s, slot

    @functools.cached_property
    def weights(self) -> Counter[int]:
        """How many weights are fused in each leaf."""
        return Counter(leaf for leaf, _ in {(slot.leaf, slot.part) for _, slot in self.slots()})

    def batch(self, leaf: int) -> tuple[int, ...]:
        """The axes of a leaf that enumerate its tensors."""
        own = self.axes[leaf]
        return tuple(a for a in range(len(self.shapes[leaf])) if a not in own.inputs and a not in own.outputs)

    def local_axes(self, leaf: int) -> Axes:
        """The meaning of a leaf's axes on one device; weights fused along a sharded axis stay together for now."""
        axes, spec = self.axes[leaf], entries(self.specs[leaf], len(self.shapes[leaf]))
        return axes._replace(splits=()) if any(spec[a] for a in axes.outputs) else axes

    def local_shape(self, leaf: int) -> tuple[int, ...]:
        """The shape of a leaf on one device."""
        shape = self.shapes[leaf]
        over = entries(self.specs[leaf], len(shape))
        return tuple(k // math.prod(self.sizes[a] for a in axes) for k, axes in zip(shape, over, strict=True))

    def sources_of(self, slot: Slot, kind: Sources) -> Sources:
        """The sources of an array (stack, ...) in the axes of its leaf."""
        own = self.sources[slot.leaf]
        own = own[::-1] if slot.transposed else own
        return (*((a,) for a in self.batch(slot.leaf)), *(tuple(a for t in group for a in own[t]) for group in kind))

    def piece(self, slot: Slot, path: Any, part: Part) -> tuple[str, ...]:
        """The keys under which a part is kept, below the name of its parameter."""
        keys = keys_of(path)
        if not keys:
            first = next((t for group in part.kind for t in group), 0)
            keys = (("inputs", "outputs")[first != slot.transposed] if self.sides else str(first),)
        return (f"part{slot.part}", *keys) if self.weights[slot.leaf] > 1 else keys

    def keys(self) -> list[str]:
        """A readable key of every stack."""
        seen: Counter[str] = Counter()
        out = []
        for stack in self.stacks:
            name = "x".join(map(str, stack.dims))
            out.append(f"{name}#{seen[name]}" if seen[name] else name)
            seen[name] += 1
        return out

    def shared(self, stack: Stack) -> int:
        """How many devices share a stack, each with matrices of its own."""
        if stack.single:
            return 1
        return math.prod(self.sizes[a] for a in (*stack.cut.columns, *stack.cut.rows, *stack.cut.spread))
