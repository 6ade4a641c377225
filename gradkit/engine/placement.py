"""How matrices are placed on a mesh: the axes that shard their batch, rows and columns, and who works on them."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from gradkit.leaves import Axes, names

Order = tuple[tuple[int, int], ...]


class Cut(NamedTuple):
    """The mesh axes along which the batch, the rows and the columns are sharded, and those along which matrices are
    shared out. For rows and columns also the order in which an all-to-all leaves their entries (`order_of`)."""

    batch: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    spread: tuple[str, ...] = ()
    row_order: Order = ()
    column_order: Order = ()

    def transposed(self) -> "Cut":
        """The layout of the transposed matrix."""
        rows, columns = (self.rows, self.row_order), (self.columns, self.column_order)
        return Cut(self.batch, columns[0], rows[0], self.spread, columns[1], rows[1])


def order_of(lengths: Sequence[int], shards: Sequence[int]) -> Order:
    """The order of the entries of a side of a matrix, as an all-to-all joins it from its shards.

    Args:
      lengths: of the axes of the leaf that the side is flattened from.
      shards: the number of shards along each of them.

    Returns:
      For each axis the number of shards and the length of one: the joined side has the axes of the shards first, in the
      major positions, and behind them those of the entries. Empty where that is the order of the flattened leaf.

    >>> order_of((4, 6), (2, 1)), order_of((4, 6), (1, 2)), order_of((1, 6), (1, 2))
    ((), ((1, 4), (2, 3)), ())
    """
    pairs = [(ways, length // ways) for length, ways in zip(lengths, shards, strict=True)]
    inner = any(ways > 1 and any(own > 1 for _, own in pairs[:i]) for i, (ways, _) in enumerate(pairs))
    return tuple(pairs) if inner else ()


def in_order_of_leaf(x: jax.Array, axis: int, order: Order, *, back: bool = False) -> jax.Array:
    """A stack whose entries along one axis, joined from shards, are put into the order of the flattened leaf.

    Args:
      x: the stack.
      axis: the axis.
      order: as `order_of` returns it.
      back: whether to go from the order of the leaf to that of the shards.
    """
    if not order:
        return x
    count, start = len(order), [ways for ways, _ in order] + [own for _, own in order]
    places = [i + count * half for i in range(count) for half in (0, 1)]
    if back:
        start, places = [start[i] for i in places], sorted(range(2 * count), key=places.__getitem__)
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    moved = [*range(axis), *(axis + i for i in places), *(axis + 2 * count + i for i in range(len(after)))]
    return x.reshape(*before, *start, *after).transpose(moved).reshape(x.shape)


def everywhere(tree: Any) -> Any:
    """Arrays replicated on every device, where their mesh is known: over Explicit axes, or over Auto ones under
    `jax.set_mesh`. Left to itself the compiler would shard what is made of them as it likes."""

    def one(x: jax.Array) -> jax.Array:
        lies = _explicit(x)
        return x if lies is None else jax.sharding.reshard(x, NamedSharding(lies.mesh, PartitionSpec()))

    return everywhere_of_auto(jax.tree.map(one, tree))


def everywhere_of_auto(tree: Any) -> Any:
    """`everywhere`, but over Auto axes alone. Over Explicit axes every operation says how its result is sharded."""
    ambient = jax.sharding.get_abstract_mesh()
    if ambient.empty or any(kind != AxisType.Auto for kind in ambient.axis_types):
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)


def as_it_lay(x: jax.Array, like: jax.Array) -> jax.Array:
    """An array cut over Explicit axes as another one is."""
    lies = _explicit(like)
    return x if lies is None else jax.sharding.reshard(x, lies)


def _explicit(x: jax.Array) -> NamedSharding | None:
    """The sharding of an array over Explicit axes, with devices where it is not traced."""
    lies: Any = jax.typeof(x).sharding
    if AxisType.Explicit not in lies.mesh.axis_types:
        return None
    return lies if isinstance(x, Tracer) else x.sharding  # pyright: ignore[reportReturnType]


def specs_of(
    method: str, known: list[str], leaves: Sequence[Any], shard: Any
) -> tuple[Mesh | AbstractMesh | None, list[PartitionSpec]]:
    """The mesh (None where there is none to enter) and the spec of every leaf."""
    whole = [PartitionSpec()] * len(leaves)
    if shard is not None and shard.specs is not None:
        return shard.mesh, _given(method, known, shard.specs)
    if shard is not None and shard.mesh is None:
        return None, whole
    mesh = None if shard is None else shard.mesh
    specs = []
    for name, x in zip(known, leaves, strict=True):
        own: Any = x.sharding if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x).sharding
        explicit = isinstance(own, NamedSharding) and AxisType.Explicit in own.mesh.axis_types
        if not explicit:
            own = None if isinstance(x, Tracer) else getattr(x, "sharding", None)
        if shard is not None and isinstance(x, Tracer) and not explicit and AxisType.Auto in shard.mesh.axis_types:
            raise ValueError(
                f"{method}: {name!r} is traced over Auto axes, where its sharding is not known: give "
                f"MatrixSharding(..., specs=) the PartitionSpecs of the parameters"
            )
        if not isinstance(own, NamedSharding) or (shard is None and not explicit):
            specs.append(PartitionSpec())
            continue
        if shard is None and any(own.spec):
            mesh = own.mesh if isinstance(x, Tracer) else x.sharding.mesh
        specs.append(own.spec)
    return mesh, whole if mesh is None else specs


def _given(method: str, known: list[str], specs: Any) -> list[PartitionSpec]:
    if isinstance(specs, PartitionSpec | NamedSharding):
        given = dict.fromkeys(known, specs)
    else:
        given = dict(zip(names(specs), jax.tree.leaves(specs), strict=True))
    if missing := [name for name in known if name not in given]:
        raise ValueError(f"{method}: specs= has no entry for {', '.join(missing[:6])}")
    chosen: list[Any] = [given[name] for name in known]
    for name, spec in zip(known, chosen, strict=True):
        if not isinstance(spec, PartitionSpec | NamedSharding):
            raise ValueError(f"{method}: specs= must hold PartitionSpecs or NamedShardings; {name!r} has {spec!r}")
    return [spec.spec if isinstance(spec, NamedSharding) else spec for spec in chosen]


def check_explicit(
    method: str, known: Sequence[str], leaves: Sequence[Any], specs: Sequence[Any], mesh: Mesh | AbstractMesh
) -> None:
    """Raises where arrays are not sharded over the Explicit axes of a mesh as they are said to be."""
    explicit = {a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit}
    for name, x, spec in zip(known, leaves, specs, strict=True):
        own: Any = jax.typeof(x).sharding
        given, found = ([[a for a in e if a in explicit] for e in entries(p, x.ndim)] for p in (spec, own.spec))
        if given != found or (any(found) and dict(own.mesh.shape) != dict(mesh.shape)):
            where = f" of the mesh {dict(own.mesh.shape)}" if any(found) else ""
            raise ValueError(
                f"{method}: {name!r} is sharded over Explicit axes as {own.spec}{where}, but shard= has {spec} of the "
                f"mesh {dict(mesh.shape)}; where {sorted(explicit)} are Explicit both must agree: write jax.device_put("
                f"x, NamedSharding(mesh, {spec})) for the parameters and the gradients, or MatrixSharding without "
                f"specs=, which then reads them off the arrays"
            )


def entries(spec: Any, rank: int) -> list[tuple[str, ...]]:
    """The mesh axes of every axis of a leaf.

    >>> entries(PartitionSpec("x", ("y", "z")), 3)
    [('x',), ('y', 'z'), ()]
    """
    found = [*spec, *[None] * (rank - len(spec))]
    return [() if e is None else e if isinstance(e, tuple) else (e,) for e in found]


def cut_of(name: str, over: list[tuple[str, ...]], axes: Axes, shape: tuple[int, ...], sizes: dict[str, int]) -> Cut:
    """How the matrices of a leaf are cut."""
    for length, entry in zip(shape, over, strict=True):
        if length % math.prod(sizes[a] for a in entry):
            raise ValueError(f"the mesh axes {entry} do not divide the length {length} of {name!r}")
    batch = [a for a in range(len(shape)) if a not in axes.inputs and a not in axes.outputs]
    rows, columns, rest = (
        tuple(a for axis in group for a in over[axis]) for group in (axes.inputs, axes.outputs, batch)
    )
    if axes.splits and any(over[axis] for axis in axes.outputs[1:]):
        raise ValueError(
            f"{name!r} holds weights fused along its outputs {axes.outputs}; of these only the first may be sharded, "
            f"got {over}"
        )
    orders = [
        order_of([shape[axis] for axis in group], [math.prod(sizes[a] for a in over[axis]) for axis in group])
        for group in (axes.inputs, axes.outputs)
    ]
    return Cut(rest, rows, columns, row_order=orders[0], column_order=orders[1])


def spread_over(cut: Cut, wanted: tuple[str, ...], *, small: bool, sizes: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes along which whole matrices are shared out, besides those that cut them."""
    taken = {*cut.batch, *cut.rows, *cut.columns}
    return () if small else tuple(a for a in wanted if a not in taken and sizes[a] > 1)


def needed(cut: Cut, count: int, sizes: dict[str, int]) -> Cut:
    """The same with only as many devices as a stack has work for.

    A stack of `count` matrices over N devices takes ceil(count / N) rounds. Of the mesh axes along which matrices are
    shared out, those are taken that reach the fewest rounds with the fewest devices: more would hold padding, which
    costs as much memory and traffic as matrices. The devices along the other axes do the same work.

    >>> needed(Cut(rows=("fsdp",), spread=("data",)), 64, {"fsdp": 64, "data": 8}).spread
    ()
    """
    own = math.prod(sizes[a] for a in (*cut.columns, *cut.rows))

    def cost(some: tuple[str, ...]) -> tuple[int, int]:
        devices = own * math.prod(sizes[a] for a in some)
        return -(-count // devices), devices

    some = (c for k in range(len(cut.spread) + 1) for c in itertools.combinations(cut.spread, k))
    return cut._replace(spread=min(some, key=cost))


def flops(n: int, m: int) -> int:
    """Operations of five Newton-Schulz steps on an n x m matrix; up to a factor those of any matrix method."""
    n, m = min(n, m), max(n, m)
    return 20 * n * n * m + 10 * n**3


def merged(groups: dict[Any, list[Any]], sizes: dict[str, int]) -> dict[Any, list[Any]]:
    """Joins stacks, padded to a common shape, as long as that saves operations.

    A device that shares a stack of B matrices with N - 1 others makes ceil(B / N) rounds; joined, the last rounds of
    two stacks may be one. The pair that saves most is joined first.
    """
    groups = {key: list(slots) for key, slots in groups.items()}

    def cost(n: int, m: int, cut: Cut, count: int) -> int:
        shared = math.prod(sizes[a] for a in (*cut.columns, *cut.rows, *cut.spread))
        return -(-count // shared) * flops(n, m)

    def union(a: Any, b: Any) -> Any:
        return (max(a[0], b[0]), max(a[1], b[1]), *a[2:])

    def count(key: Any) -> int:
        return sum(slot.count for slot in groups[key])

    while True:
        best, saved = None, 0
        for a, b in itertools.combinations(groups, 2):
            if a[2:] != b[2:] or a[4]:
                continue
            together = union(a, b)
            gain = sum(cost(k[0], k[1], k[3], count(k)) for k in (a, b))
            gain -= cost(together[0], together[1], together[3], count(a) + count(b))
            if gain > saved:
                best, saved = (a, b), gain
        if best is None:
            return groups
        a, b = best
        slots = [*groups.pop(a), *groups.pop(b)]
        groups.setdefault(union(a, b), []).extend(slots)
