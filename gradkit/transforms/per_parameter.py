"""State of matrices and tensors, field by field: under the name of its parameter, or with the owner of a stack.

Methods work on stacks (B, d_1, ..., d_k), and say with `like`, `beside` and `counted` what they keep of them:

    like      (B, d_1, ..., d_k)       without owners: in the parameter's shape and box           mu/mlp/kernel
    beside    (B, ...), of some axes   (stack, ...), a dictionary of pieces                       S/mlp/kernel/0
    counted   (B,) whole numbers       their sum, one number                                      failed

With owners each field is a dictionary: key of a stack -> `Owned`, and nothing of it travels: S/64x176. The same stacks
are made of the parameters' state before the kernel is called, and separated after it.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit.leaves import Layout, from_matrices, to_matrices
from gradkit.leaves.derived import Sources, derived, flatten, unboxed
from gradkit.transforms.core import wide_dtype
from gradkit.transforms.matrices import MatrixSharding, Plan, Slot
from gradkit.transforms.owned import Owned, kept, map_owned, placed, plan_owned
from gradkit.transforms.placement import as_it_lay, everywhere

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


def _bare(own: Any) -> Any:
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


def init_fields(work: Work, params: Any) -> dict[str, Any]:
    """The state of every field, at the start.

    Args:
      work: what is kept of the parameters.
      params: the parameters: arrays or `jax.ShapeDtypeStruct`s, or boxes of them.

    Raises:
      ValueError: with owners, fused weights that are cut along their outputs.
    """
    if not work.alone:
        return _init_owned(work)
    nodes, structure = flatten(params)
    slots: dict[int, list[tuple[int, Slot]]] = {}
    for s, slot in work.slots():
        slots.setdefault(slot.leaf, []).append((s, slot))
    start = {i: [work.made(s, slot.count)._asdict() for s, slot in own] for i, own in slots.items()}

    def one(field: str, i: int, node: Any) -> Any:
        kept: dict[str, Any] = {}
        for (_, slot), made in zip(slots.get(i, []), start.get(i, []), strict=True):
            stack = tuple(work.plan.shapes[i][a] for a in work.batch(i))
            for path, part in parts_of(made[field]):
                x = part.value.reshape(*stack, *part.value.shape[1:])
                put(kept, work.piece(slot, path, part), derived(node, x, work.sources(slot, part.kind)))
        return kept

    def moment(field: str, i: int, node: Any) -> Any:
        (x,) = jax.tree.leaves(node)
        dtype = start[i][0][field].value.dtype if i in start else wide_dtype(x.dtype)
        return jax.tree.structure(node).unflatten([jnp.zeros_like(x, dtype=dtype)])

    out: dict[str, Any] = {}
    for field, value in work.fields().items():
        kinds = {part.kind for _, part in parts_of(value)}
        if kinds == {COUNTED}:
            out[field] = jnp.zeros((), jnp.int32)
        elif kinds == {LIKE}:
            out[field] = structure.unflatten([moment(field, i, node) for i, node in enumerate(nodes)])
        elif value is None:
            out[field] = None
        elif isinstance(params, placeholder()):
            out[field] = jnp.zeros((), jnp.int32)  # a leaf: what is below it are no parameters
        else:
            out[field] = structure.unflatten([one(field, i, node) for i, node in enumerate(nodes)])
    return out


def _init_owned(work: Work) -> dict[str, Any]:
    plan, out = work.plan, {}
    for s, (key, stack) in enumerate(zip(work.keys(), plan.stacks, strict=True)):
        if stack.splits:
            raise ValueError(
                f"{work.method}: weights fused by `splits` {stack.splits} must be whole along their outputs"
            )
        made = _bare(work.made(s, kept(plan, stack)[0]))._asdict()
        for field, value in made.items():
            out.setdefault(field, {})[key] = None if value is None else placed(plan, stack, value)
    empty = {field: {} for field in work.fields()}
    return {f: None if own and all(x is None for x in own.values()) else own for f, own in (empty | out).items()}


def map_fields(
    work: Work,
    kernel: Callable[..., Any] | Sequence[Callable[..., Any]],
    tree: Any,
    fields: Mapping[str, Any],
    numbers: Mapping[str, Any],
    *,
    more: Sequence[Any] = (),
    marks: Sequence[Any] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Applies a function of a batch of tensors, and of what is kept of them, once per stack.

    Args:
      work: of this tree.
      kernel: (B, d_1, ..., d_k), own, numbers, mark, and as much of `more` -> the same shape, own.
      tree: the leaves.
      fields: what `init_fields` made, or this function.
      numbers: what the kernel reads besides, by name: arrays, or Python numbers, which stay what they are.
      more: further trees like `tree`, which enter with it.
      marks: per stack a number for each tensor, such as its phase. Default None: there are none.

    Raises:
      ValueError: the tree lies otherwise than the one that the state was made for.
    """
    marks = [None] * len(work.plan.stacks) if marks is None else marks
    if not work.alone:
        return _map_owned(work, kernel, tree, fields, dict(numbers), more, marks)
    if any(isinstance(x, Owned) for x in jax.tree.leaves(dict(fields), is_leaf=lambda x: isinstance(x, Owned))):
        raise ValueError(_other(work, "with owners", "without"))
    lay, (tree, more) = tree, everywhere((tree, tuple(more)))
    leaves, structure = jax.tree.flatten(tree)
    told = {f: value if value is None else kind_of(value) for f, value in work.fields().items()}
    given = {f: structure.flatten_up_to(fields[f]) for f, kind in told.items() if kind not in (None, COUNTED)}
    seen = [[to_matrices(x, a) for x, a in zip(t, work.plan.axes, strict=True)] for t in _columns(leaves, more)]
    moments = {
        f: [to_matrices(x, a) for x, a in zip(given[f], work.plan.axes, strict=True)]
        for f, kind in told.items()
        if kind == LIKE
    }
    new: dict[str, Any] = {f: [{} for _ in leaves] for f, kind in told.items() if kind not in (None, COUNTED)}
    sums = {f: fields[f] for f, kind in told.items() if kind == COUNTED}
    done: list[dict[int, jax.Array]] = [{} for _ in leaves]

    for s, stack in enumerate(work.plan.stacks):
        one = kernel if callable(kernel) else kernel[s]
        rows = sum(slot.count for slot in stack.slots)
        shape, own = work.of_stack(s, rows), {}
        for f, value in shape._asdict().items():
            if told[f] is None:
                own[f] = None
            elif told[f] == COUNTED:
                own[f] = jnp.zeros(value.value.shape, value.value.dtype)
            elif told[f] == LIKE:
                own[f] = _enter(work, s, moments[f]).reshape(value.value.shape)
            else:
                parts = [
                    _join([get(given[f][slot.leaf], work.piece(slot, path, part)) for slot in stack.slots], part, stack)
                    for path, part in parts_of(value)
                ]
                own[f] = jax.tree.structure(value, is_leaf=is_part).unflatten(parts)
        own = type(shape)(**own)
        x, *rest = (_enter(work, s, views) for views in seen)
        y, own = one(x, own, dict(numbers), marks[s], *rest)
        _leave(work, s, y, done)
        for f, value in own._asdict().items():
            if told[f] == COUNTED:
                sums[f] = sums[f] + jnp.sum(value, dtype=jnp.int32)
            elif told[f] == LIKE:
                _leave(work, s, value, new[f])
            elif told[f] is not None:
                for (path, part), x in zip(parts_of(getattr(shape, f)), jax.tree.leaves(value), strict=True):
                    _apart(work, s, x, new[f], path, part)

    out = dict.fromkeys(told) | sums
    for f, kind in told.items():
        if kind == LIKE:
            kept = [_whole(work, i, new[f][i], x) for i, x in enumerate(given[f])]
            out[f] = structure.unflatten(kept)
        elif f in new:
            out[f] = structure.unflatten(new[f])
    out = settled(out, dict(fields))
    d = [
        as_it_lay(_whole(work, i, done[i], x), y)
        for i, (x, y) in enumerate(zip(leaves, jax.tree.leaves(lay), strict=True))
    ]
    return structure.unflatten(d), out


def settled(new: Any, old: Any) -> Any:
    """State that is sharded as it was. Left to itself the compiler may shard it otherwise, and the next step would be
    another program: so it sees a choice between the two, of which it cannot know that it is always the new one."""
    never = jax.lax.optimization_barrier(jnp.zeros((), bool))
    return jax.tree.map(lambda x, y: jnp.where(never, y, x), new, old)


def kind_of(value: Any) -> Any:
    """How a field is kept: `LIKE`, `COUNTED`, or in pieces."""
    kinds = {part.kind for _, part in parts_of(value)}
    return next(iter(kinds)) if kinds in ({LIKE}, {COUNTED}) else "pieces"


def _columns(leaves: Sequence[Any], more: Sequence[Any]) -> list[Sequence[Any]]:
    return [leaves, *(jax.tree.leaves(t) for t in more)]


def _enter(work: Work, s: int, views: list[tuple[jax.Array, ...]]) -> jax.Array:
    """The tensors of a stack, of a tree whose leaves are seen as matrices."""
    pieces = []
    for slot in work.plan.stacks[s].slots:
        x = views[slot.leaf][slot.part]
        pieces.append(jnp.swapaxes(x, 1, 2) if slot.turned else x)
    x = jnp.concatenate(pieces) if len(pieces) > 1 else pieces[0]
    dims, places = work.dims[s], work.places[s]
    return x.reshape(-1, *(dims[places.index(i)] for i in range(len(dims)))).transpose(0, *(p + 1 for p in places))


def _leave(work: Work, s: int, y: jax.Array, into: list[dict[int, jax.Array]]) -> None:
    """Separates a stack into the weights of its leaves."""
    stack, dims, places = work.plan.stacks[s], work.dims[s], work.places[s]
    back = tuple(int(i) for i in np.argsort((0, *(p + 1 for p in places))))
    y, start = y.reshape(-1, *dims).transpose(back).reshape(-1, stack.n, stack.m), 0
    for slot in stack.slots:
        z = jax.lax.slice_in_dim(y, start, start + slot.count)
        into[slot.leaf][slot.part] = jnp.swapaxes(z, 1, 2) if slot.turned else z
        start += slot.count


def _whole(work: Work, leaf: int, parts: dict[int, jax.Array], old: jax.Array) -> jax.Array:
    """A leaf of its weights; the old one where it has no entries."""
    if not parts:
        return old
    return from_matrices([parts[j] for j in sorted(parts)], old.shape, work.plan.axes[leaf])


def _join(pieces: list[jax.Array], part: Part, stack: Any) -> jax.Array:
    """What the leaves keep of the tensors of a stack, (B, ...)."""
    flat = [x.reshape(slot.count, *part.value.shape[1:]) for x, slot in zip(pieces, stack.slots, strict=True)]
    return jnp.concatenate(flat) if len(flat) > 1 else flat[0]


def _apart(work: Work, s: int, x: jax.Array, into: list[dict[str, Any]], path: Any, part: Part) -> None:
    start = 0
    for slot in work.plan.stacks[s].slots:
        stack = tuple(work.plan.shapes[slot.leaf][a] for a in work.batch(slot.leaf))
        piece = jax.lax.slice_in_dim(x, start, start + slot.count).reshape(*stack, *x.shape[1:])
        put(into[slot.leaf], work.piece(slot, path, part), piece)
        start += slot.count


def _map_owned(
    work: Work,
    kernel: Any,
    tree: Any,
    fields: Mapping[str, Any],
    numbers: Any,
    more: Sequence[Any],
    marks: Sequence[Any],
) -> tuple[Any, dict[str, Any]]:
    """`map_fields` where the state is with its owners."""
    plan, keys, used = work.plan, work.keys(), [f for f, value in fields.items() if value is not None]
    if any(not isinstance(fields[f], dict) or set(fields[f]) != set(keys) for f in used):
        raise ValueError(_other(work, f"{sorted(map(str, fields[used[0]] or ()))[:6]}", f"{sorted(keys)[:6]}"))
    shapes = [work.of_stack(s, 1) for s in range(len(plan.stacks))]

    def on(s: int) -> Callable[..., Any]:
        dims, places = work.dims[s], work.places[s]
        forth = (0, *(p + 1 for p in places))
        back = tuple(int(i) for i in np.argsort(forth))
        flat = [dims[places.index(i)] for i in range(len(dims))]
        one = kernel if callable(kernel) else kernel[s]

        def run(x: jax.Array, both: Any, given: Any, *rest: jax.Array) -> tuple[jax.Array, Any]:
            own, mark = both
            come = [v.reshape(-1, *flat).transpose(forth) for v in (x, *rest)]
            y, own = one(come[0], own, given, mark, *come[1:])
            return y.transpose(back).reshape(x.shape), (own, mark)

        return run

    owned = []
    for shape, key, mark in zip(shapes, keys, marks, strict=True):
        first = fields[used[0]][key]
        own = type(shape)(**{f: fields[f][key].arrays if f in used else None for f in shape._fields})
        owned.append(Owned((own, mark), first.owners, first.rows))
    tree, stacks = map_owned(work.method, [on(s) for s in range(len(plan.stacks))], tree, plan, owned, numbers, more)
    out: dict[str, Any] = {f: {} if f in used else None for f in fields}
    for key, own in zip(keys, stacks, strict=True):
        for f in used:
            out[f][key] = dataclasses.replace(own, arrays=getattr(own.arrays[0], f))
    return tree, out


def _other(work: Work, have: str, want: str) -> str:
    return (
        f"{work.method}: its state has stacks {have}, and the updates make {want}: init must see parameters that lie "
        f"as the updates do, or both need one MatrixSharding(..., specs=)"
    )
