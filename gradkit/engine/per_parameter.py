"""State of matrices and tensors, field by field: under the name of its parameter, or with the owner of a stack.

Methods work on stacks (B, d_1, ..., d_k), and say with `like`, `beside` and `counted` what they keep of them:

    like      (B, d_1, ..., d_k)       without owners: in the parameter's shape and box           mu/mlp/kernel
    beside    (B, ...), of some axes   (stack, ...), a dictionary of pieces                       S/mlp/kernel/0
    counted   (B,) whole numbers       their sum, one number                                      failed

With owners each field is a dictionary: key of a stack -> `Owned`, and nothing of it travels: S/64x176. The same stacks
are made of the parameters' state before the kernel is called, and separated after it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.engine.core import wide_dtype
from gradkit.engine.joining import after, in_order, joined, leaf_of, leaves_of, separated, tensors, views, weights
from gradkit.engine.matrices import Slot
from gradkit.engine.owned import Owned, kept, map_owned, placed
from gradkit.engine.placement import as_it_lay, everywhere
from gradkit.engine.works import (
    COUNTED,
    LIKE,
    Work,
    bare,
    get,
    is_part,
    kind_of,
    merged,
    parts_of,
    placeholder,
    put,
)
from gradkit.leaves.derived import derived, flatten


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
        made = bare(work.made(s, kept(plan, stack)[0]))._asdict()
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
    seen = [views(work, t) for t in (leaves, *(jax.tree.leaves(t) for t in more))]
    moments = {f: views(work, given[f]) for f, kind in told.items() if kind == LIKE}

    counts = [sum(slot.count for slot in stack.slots) for stack in work.plan.stacks]
    shapes = [work.of_stack(s, rows) for s, rows in enumerate(counts)]

    def own_of(s: int) -> Any:
        """What is kept of the tensors of a stack."""
        stack, shape, own = work.plan.stacks[s], shapes[s], {}
        for f, value in shape._asdict().items():
            if told[f] is None:
                own[f] = None
            elif told[f] == COUNTED:
                own[f] = jnp.zeros(value.value.shape, value.value.dtype)
            elif told[f] == LIKE:
                own[f] = tensors(work, s, moments[f]).reshape(value.value.shape)
            else:
                parts = [
                    joined([get(given[f][slot.leaf], work.piece(slot, path, part)) for slot in stack.slots], part)
                    for path, part in parts_of(value)
                ]
                own[f] = jax.tree.structure(value, is_leaf=is_part).unflatten(parts)
        return type(shape)(**own)

    def made(s: int) -> tuple[dict[int, Any], dict[str, Any]]:
        """What the kernel makes of a stack: the weights of its leaves, and the fields."""
        x, *rest = (tensors(work, s, own) for own in seen)
        one = kernel if callable(kernel) else kernel[s]
        y, own = one(x, own_of(s), dict(numbers), marks[s], *rest)
        new: dict[str, Any] = {}
        for f, value in own._asdict().items():
            if told[f] == COUNTED:
                new[f] = jnp.sum(value, dtype=jnp.int32)
            elif told[f] == LIKE:
                new[f] = leaves_of(work, s, value)
            elif told[f] is not None:
                pairs = zip(parts_of(getattr(shapes[s], f)), jax.tree.leaves(value), strict=True)
                new[f] = merged(*(separated(work, s, x, path, part) for (path, part), x in pairs))
        return leaves_of(work, s, y), new

    def unchanged(s: int) -> tuple[dict[int, Any], dict[str, Any]]:
        """The tree and its fields as they are, in the form of `made`."""
        stack, new = work.plan.stacks[s], {}
        for f, value in shapes[s]._asdict().items():
            if told[f] == COUNTED:
                new[f] = jnp.zeros((), jnp.int32)
            elif told[f] == LIKE:
                new[f] = weights(stack, moments[f])
            elif told[f] is not None:
                new[f] = {slot.leaf: {} for slot in stack.slots}
                for slot in stack.slots:
                    for path, part in parts_of(value):
                        keys = work.piece(slot, path, part)
                        put(new[f][slot.leaf], keys, get(given[f][slot.leaf], keys))
        return weights(stack, seen[0]), new

    done: dict[int, Any] = {}
    new: dict[str, Any] = {f: fields[f] if kind == COUNTED else {} for f, kind in told.items() if kind is not None}
    ordered, before = in_order((leaves, given)), None
    for s in range(len(work.plan.stacks)):
        if ordered and before is not None:
            d, own = after(before, lambda s=s: made(s), lambda s=s: unchanged(s))
        else:
            d, own = made(s)
        before = jax.tree.leaves(d)[0]
        done = merged(done, d)
        new = {f: new[f] + x if told[f] == COUNTED else merged(new[f], x) for f, x in own.items()}

    out = dict.fromkeys(told) | new
    for f, kind in told.items():
        if kind == LIKE:
            out[f] = structure.unflatten([leaf_of(work, i, new[f].get(i), x) for i, x in enumerate(given[f])])
        elif kind not in (None, COUNTED):
            out[f] = structure.unflatten([new[f].get(i, {}) for i in range(len(leaves))])
    out = settled(out, dict(fields))
    d = [
        as_it_lay(leaf_of(work, i, done.get(i), x), y)
        for i, (x, y) in enumerate(zip(leaves, jax.tree.leaves(lay), strict=True))
    ]
    return structure.unflatten(d), out


def settled(new: Any, old: Any) -> Any:
    """State that is sharded as it was. Left to itself the compiler may shard it otherwise, and the next step would be
    another program: so it sees a choice between the two, of which it cannot know that it is always the new one."""
    if jax.device_count() == 1 and jax.sharding.get_abstract_mesh().size <= 1:
        return new
    never = jax.lax.optimization_barrier(jnp.zeros((), bool))
    return jax.tree.map(lambda x, y: jnp.where(never, y, as_it_lay(x, y)), new, old)


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
