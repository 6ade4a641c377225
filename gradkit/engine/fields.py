"""State of matrices and tensors, field by field: under the name of its parameter, or with the owner of a stack.

Methods work on stacks (B, d_1, ..., d_k). Where every device works on everything, stacks of the state are made of the
parameters' state before the kernel is called (`PerParameter.own`), and separated after it; with owners each field is a
dictionary, key of a stack -> `Owned`, and nothing of it is sent (`WithOwners`). Both say the same to `map_stacks`.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from gradkit.engine.addresses import addresses_of
from gradkit.engine.backend import one_device
from gradkit.engine.core import wide_dtype
from gradkit.engine.exchange import enter, flattened, joined, leaf_of, leave, separated, unchanged, views
from gradkit.engine.owned import Owned, kept, placed
from gradkit.engine.parts import COUNTED, LIKE, bare, get, is_part, kind_of, merged, parts_of, placeholder, put
from gradkit.engine.placement import as_it_lay, entries, everywhere
from gradkit.engine.single import spec_of
from gradkit.engine.stacks import Plan, Slot
from gradkit.leaves.derived import Companions, derived, flatten

# How much more than its share of the state a device may have before a warning says why.
TOLERANCE = 1.05


def init_fields(plan: Plan, params: Any) -> dict[str, Any]:
    """The state of every field, at the start.

    Args:
      plan: of these parameters.
      params: the parameters: arrays or `jax.ShapeDtypeStruct`s, or boxes of them.
    """
    if not plan.alone:
        return _init_owned(plan)
    nodes, structure = flatten(params)
    slots: dict[int, list[tuple[int, Slot]]] = {}
    for s, slot in plan.slots():
        slots.setdefault(slot.leaf, []).append((s, slot))
    companions = Companions(nodes, [plan.batch(i) for i in range(len(nodes))])
    start = {i: [plan.made(s, slot.count)._asdict() for s, slot in own] for i, own in slots.items()}

    def one(field: str, i: int, node: Any) -> Any:
        kept: dict[str, Any] = {}
        for (_, slot), made in zip(slots.get(i, []), start.get(i, []), strict=True):
            stack = tuple(plan.shapes[i][a] for a in plan.batch(i))
            for path, part in parts_of(made[field]):
                x = part.value.reshape(*stack, *part.value.shape[1:])
                held = derived(node, x, plan.sources_of(slot, part.kind), companions)
                put(kept, plan.piece(slot, path, part), held)
        return kept

    def moment(field: str, i: int, node: Any) -> Any:
        (x,) = jax.tree.leaves(node)
        dtype = start[i][0][field].value.dtype if i in start else wide_dtype(x.dtype)
        return jax.tree.structure(node).unflatten([jnp.zeros_like(x, dtype=dtype)])

    out: dict[str, Any] = {}
    for field, value in plan.fields().items():
        kind = kind_of(value)
        if kind == COUNTED:
            out[field] = jnp.zeros((), jnp.int32)
        elif kind == LIKE:
            out[field] = structure.unflatten([moment(field, i, node) for i, node in enumerate(nodes)])
        elif kind is None:
            out[field] = None
        elif isinstance(params, placeholder()):
            out[field] = jnp.zeros((), jnp.int32)  # a leaf: what is below it are no parameters
        else:
            out[field] = structure.unflatten([one(field, i, node) for i, node in enumerate(nodes)])
    return out


def _init_owned(plan: Plan) -> dict[str, Any]:
    _warn_of_replicas(plan)
    out: dict[str, Any] = {}
    for s, (key, stack) in enumerate(zip(plan.keys(), plan.stacks, strict=True)):
        for field, value in plan.made(s, kept(plan, stack)[0])._asdict().items():
            own = None if value is None else placed(plan, stack, bare(value), addresses_of(plan, s, value))
            out.setdefault(field, {})[key] = own
    empty: dict[str, Any] = {field: {} for field in plan.fields()}
    return {f: None if own and all(x is None for x in own.values()) else own for f, own in (empty | out).items()}


def _warn_of_replicas(plan: Plan) -> None:
    """Warns where every device would have all of what is kept of some matrices, and so more than its share."""
    if plan.mesh is None or plan.shard_given:
        return
    total, here, replicated = 0, 0.0, []
    for s, stack in enumerate(plan.stacks):
        rows, owners = kept(plan, stack)
        for x in jax.tree.leaves(bare(plan.of_stack(s, rows))):
            spec = spec_of(x.shape, owners, stack.single, plan.sizes)
            total += x.size * x.dtype.itemsize
            here += x.size * x.dtype.itemsize / math.prod(plan.sizes[a] for over in entries(spec, x.ndim) for a in over)
        if not owners and not stack.single:
            replicated += [plan.names[slot.leaf] for slot in stack.slots]
    used = {a for spec in plan.specs for over in entries(spec, len(spec)) for a in over}
    share = 1 / math.prod(plan.sizes[a] for a in used)
    if replicated and here > TOLERANCE * share * total:
        mesh, axes = dict(plan.mesh.shape), tuple(plan.mesh.axis_names)
        more = f" and {len(replicated) - 4} more" if len(replicated) > 4 else ""
        warnings.warn(
            f"{plan.method}: every device of the mesh {mesh} would have {here / total:.0%} of the state, where "
            f"{share:.0%} is its share, and do all of the work on {', '.join(replicated[:4])}{more}, which are "
            f"replicated. Write shard=gk.MatrixSharding(mesh, {axes}) to share them out, or shard these parameters",
            stacklevel=2,
        )


class PerParameter:
    """The state of one step where it stands under the names of parameters.

    Args:
      plan: of the updates.
      structure: of the updates.
      fields: the state before the step.
    """

    def __init__(self, plan: Plan, structure: Any, fields: Mapping[str, Any]) -> None:
        if any(isinstance(x, Owned) for x in jax.tree.leaves(dict(fields), is_leaf=lambda x: isinstance(x, Owned))):
            raise _otherwise(plan, "with owners", "without")
        self.plan, self.structure, self.fields = plan, structure, dict(fields)
        self.kinds = {f: kind_of(value) for f, value in plan.fields().items()}
        split = [f for f, kind in self.kinds.items() if kind not in (None, COUNTED)]
        self.given = everywhere({f: structure.flatten_up_to(fields[f]) for f in split})
        self.moments = {f: views(plan, self.given[f]) for f in split if self.kinds[f] == LIKE}
        self.arrays = [None] * len(plan.stacks)
        self.shapes = [plan.of_stack(s, stack.padded) for s, stack in enumerate(plan.stacks)] if self.kinds else []

    def own(self, s: int, arrays: Any) -> Any:
        """What is kept of the tensors of a stack."""
        del arrays
        if not self.kinds:
            return None
        shape, own = self.shapes[s], {}
        for f, value in shape._asdict().items():
            if self.kinds[f] is None:
                own[f] = None
            elif self.kinds[f] == COUNTED:
                own[f] = jnp.zeros(value.value.shape, value.value.dtype)
            elif self.kinds[f] == LIKE:
                own[f] = enter(self.plan, s, self.moments[f]).reshape(value.value.shape)
            else:
                parts = [joined(self._pieces(s, f, path, part), part.value.shape[1:]) for path, part in parts_of(value)]
                own[f] = jax.tree.structure(value, is_leaf=is_part).unflatten(parts)
        return type(shape)(**own)

    def _pieces(self, s: int, field: str, path: Any, part: Any) -> list[jax.Array]:
        """What the leaves keep of a part of a stack."""
        given = self.given[field]
        return [get(given[slot.leaf], self.plan.piece(slot, path, part)) for slot in self.plan.stacks[s].slots]

    def apart(self, s: int, own: Any) -> dict[str, Any]:
        """What is kept of the tensors of a stack, by field and leaf."""
        new: dict[str, Any] = {}
        for f, value in {} if own is None else own._asdict().items():
            if self.kinds[f] == COUNTED:
                new[f] = jnp.sum(value, dtype=jnp.int32)
            elif self.kinds[f] == LIKE:
                new[f] = leave(self.plan, s, flattened(self.plan.stacks[s], value))
            elif self.kinds[f] is not None:
                pairs = zip(parts_of(getattr(self.shapes[s], f)), jax.tree.leaves(value), strict=True)
                new[f] = self._by_leaf(s, [(path, part, separated(self.plan, s, x)) for (path, part), x in pairs])
        return new

    def before(self, s: int) -> dict[str, Any]:
        """What was kept of the tensors of a stack, in the form of `apart`."""
        new: dict[str, Any] = {}
        for f, value in self.shapes[s]._asdict().items() if self.kinds else ():
            if self.kinds[f] == COUNTED:
                new[f] = jnp.zeros((), jnp.int32)
            elif self.kinds[f] == LIKE:
                new[f] = unchanged(self.plan.stacks[s], self.moments[f])
            elif self.kinds[f] is not None:
                own = [(path, part, self._pieces(s, f, path, part)) for path, part in parts_of(value)]
                new[f] = self._by_leaf(s, own)
        return new

    def _by_leaf(self, s: int, pieces: list[tuple[Any, Any, list[jax.Array]]]) -> dict[int, Any]:
        """Parts of a stack, one array for every slot, as nested dictionaries by leaf."""
        slots = self.plan.stacks[s].slots
        out: dict[int, Any] = {slot.leaf: {} for slot in slots}
        for path, part, arrays in pieces:
            for slot, x in zip(slots, arrays, strict=True):
                put(out[slot.leaf], self.plan.piece(slot, path, part), x)
        return out

    def after(self, new: list[dict[str, Any]]) -> dict[str, Any]:
        """The state after the step, of what `apart` made of every stack."""
        out: dict[str, Any] = {}
        for f, kind in self.kinds.items():
            if kind is None:
                out[f] = None
            elif kind == COUNTED:
                out[f] = sum((own[f] for own in new), self.fields[f])
            else:
                leaves, given = merged(*(own[f] for own in new)), self.given[f]
                if kind == LIKE:
                    own = [leaf_of(self.plan, i, leaves.get(i), x) for i, x in enumerate(given)]
                else:
                    own = [leaves.get(i, {}) for i in range(len(given))]
                out[f] = self.structure.unflatten(own)
        return settled(out, self.fields)


class WithOwners:
    """The state of one step where it stays with the devices that work on a stack.

    Args:
      plan: of the updates.
      fields: the state before the step.
    """

    def __init__(self, plan: Plan, fields: Mapping[str, Any]) -> None:
        self.plan, self.keys, self.fields = plan, plan.keys(), dict(fields)
        self.used = [f for f, value in fields.items() if value is not None]
        used, keys = self.used, self.keys
        if any(not isinstance(fields[f], dict) or set(fields[f]) != set(keys) for f in used):
            raise _otherwise(plan, f"{sorted(map(str, fields[used[0]] or ()))[:6]}", f"{sorted(keys)[:6]}")
        self._check(keys if used else [])
        self.shapes = [plan.of_stack(s, 1) for s in range(len(keys))] if used else []
        self.arrays = [{f: fields[f][key].arrays for f in used} for key in keys]

    def _check(self, keys: list[str]) -> None:
        owned = [(self.fields[self.used[0]][key], [self.fields[f][key].arrays for f in self.used]) for key in keys]
        have = [(len(o.rows) or jax.tree.leaves(arrays)[0].shape[0], o.owners) for o, arrays in owned]
        want = [kept(self.plan, stack) for stack in (self.plan.stacks if keys else ())]
        # Of a matrix there may be several rows, and inside `shard_map` nothing else says how many matrices there are.
        named = all(o.rows for o, _ in owned)
        if [o for _, o in have] != [o for _, o in want] or any(
            a != b if named else a % b for (a, _), (b, _) in zip(have, want, strict=True)
        ):
            raise _otherwise(self.plan, f"(matrices, mesh axes) {have}", f"{want}")

    def own(self, s: int, arrays: Any) -> Any:
        """What is kept of the tensors of a stack, of the arrays of this device."""
        if not self.used:
            return None
        shape = self.shapes[s]
        return type(shape)(**{f: arrays.get(f) for f in shape._fields})

    def apart(self, s: int, own: Any) -> dict[str, Any]:
        """The arrays of this device."""
        del s
        return {f: getattr(own, f) for f in self.used}

    def after(self, new: list[dict[str, Any]]) -> dict[str, Any]:
        """The state after the step."""
        here = jax.sharding.get_abstract_mesh()
        if self.plan.mesh is None and not here.empty and set(here.axis_types) == {AxisType.Auto}:
            # Left to itself the compiler may shard what was replicated, and the next step would be another program.
            new = jax.lax.with_sharding_constraint(new, PartitionSpec())
        out: dict[str, Any] = {f: {} if f in self.used else None for f in self.fields}
        for key, own in zip(self.keys, new, strict=True):
            for f in self.used:
                out[f][key] = dataclasses.replace(self.fields[f][key], arrays=own[f])
        return out


def settled(new: Any, old: Any) -> Any:
    """State that is sharded as it was. Left to itself the compiler may shard it otherwise, and the next step would be
    another program: so it sees a choice between the two, of which it cannot know that it is always the new one."""
    if one_device():
        return new
    never = jax.lax.optimization_barrier(jnp.zeros((), bool))
    return jax.tree.map(lambda x, y: jnp.where(never, y, as_it_lay(x, y)), new, old)


def total(plan: Plan, counts: Any) -> jax.Array:
    """The sum over all tensors of whole numbers that are kept."""
    if plan.alone:
        return counts
    sums = [jnp.sum(own.arrays, dtype=jnp.int32) for own in counts.values()]
    if plan.inside:
        sums = [jax.lax.psum(s, k.owners) if k.owners else s for s, k in zip(sums, plan.stacks, strict=True)]
    return sum(sums, jnp.zeros((), jnp.int32))


def _otherwise(plan: Plan, have: str, want: str) -> ValueError:
    return ValueError(
        f"{plan.method}: its state has stacks {have}, and the updates make {want}: init must see parameters that are "
        f"sharded as the updates are, or both need one MatrixSharding(..., specs=)"
    )
