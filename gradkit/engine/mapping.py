"""The mapper of every method that works on matrices or tensors: leaves -> stacks -> one call per stack -> leaves.

    leaves --enter--> (B, d_1, ..., d_k), what is kept of them --kernel--> the same --leave--> leaves

The plan says which tensors make a stack, and which devices share it (`plan_stacks`); `exchange` moves the matrices, and
`fields` has what is kept of them: under the names of parameters, or with the owners.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gradkit.engine.exchange import enter, flattened, gather, leaf_of, leave, on_fused, unchanged, views
from gradkit.engine.fields import PerParameter, WithOwners
from gradkit.engine.parts import merged
from gradkit.engine.placement import as_it_lay, check_explicit, everywhere
from gradkit.engine.refreshes import anywhere
from gradkit.engine.single import gathered, shards_of, spec_of
from gradkit.engine.stacks import Plan

# On CPU, above this many bytes of updates and state, stacks are worked on one after another. XLA's scheduler for CPUs
# would begin all of them at once and hold copies of all that they read: more than the caches hold, and above 32 MiB
# more than the C library keeps from one step to the next, so that half of a step went into getting the pages anew.
IN_ORDER = 1 << 24


def map_stacks(
    plan: Plan,
    kernel: Callable[..., Any] | Sequence[Callable[..., Any]],
    tree: Any,
    fields: Mapping[str, Any] | None = None,
    numbers: Mapping[str, Any] | None = None,
    *,
    more: Sequence[Any] = (),
    marks: Sequence[Any] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Applies a function of a batch of tensors, and of what is kept of them, once per stack.

    Args:
      plan: of this tree.
      kernel: (B, d_1, ..., d_k), own, numbers, mark, and as much of `more` -> the same shape, own; or one for every
        stack. It sees complete tensors, in an order of their own, zeros at the end; where nothing is kept, and a side
        is flattened from several axes of which an inner one is sharded, its entries may come in another order, the same
        at every step. It cannot close over what is traced over Explicit axes: that must come in `numbers`.
      tree: the leaves.
      fields: what `init_fields` made, or this function. Default None: nothing is kept, and `own` is None.
      numbers: what the kernel reads besides, by name, the same on all devices: arrays, or Python numbers, which stay
        what they are. Default None: there are none.
      more: further trees like `tree`, which enter with it and do not leave.
      marks: per stack a number for each tensor, such as its phase. Default None: there are none.

    Returns:
      A tree like `tree`, and the fields.

    Raises:
      ValueError: the tree is sharded otherwise than the one that the state was made for.
    """
    kernels = [kernel] * len(plan.stacks) if callable(kernel) else list(kernel)
    numbers, fields = dict(numbers or {}), dict(fields or {})
    marks = [None] * len(plan.stacks) if marks is None else list(marks)
    like, structure = jax.tree.flatten(tree)
    kept = PerParameter(plan, structure, fields) if plan.alone else WithOwners(plan, fields)
    if plan.alone and fields:
        # What is made of leaves that are sharded over Auto axes would be sharded as the compiler likes, down to the
        # loops of a decomposition; so would what is made into them. What is kept is gathered too, and so are results.
        tree, more = everywhere((tree, tuple(more)))
    leaves, others = tuple(jax.tree.leaves(tree)), tuple(tuple(jax.tree.leaves(t)) for t in more)
    ordered = plan.alone and jax.default_backend() == "cpu" and bytes_of((leaves, fields)) > IN_ORDER

    def local(leaves: Any, others: Any, held: Any, numbers: Any) -> tuple[Any, list[dict[str, Any]]]:
        """What one device does."""
        seen = [views(plan, x) for x in (leaves, *others)]

        def made(s: int) -> tuple[Any, dict[str, Any]]:
            stack = plan.stacks[s]
            (arrays, mark), (x, *rest) = held[s], (enter(plan, s, own) for own in seen)
            y, own = kernels[s](x, kept.own(s, arrays), numbers, mark, *rest)
            if plan.alone and fields:
                y, own = everywhere((y, own))
            y = flattened(stack, y)
            if plan.comm_dtype is not None and plan.shared(stack) > 1:
                y = y.astype(plan.comm_dtype)
            return y if stack.cut.spread else leave(plan, s, y, stack.dtype), kept.apart(s, own)

        done: dict[int, Any] = {}
        new: list[dict[str, Any]] = []
        before = None
        for s in range(len(plan.stacks)):
            if before is None or not isinstance(kept, PerParameter):
                done[s], own = made(s)
            else:
                as_it_was = (unchanged(plan.stacks[s], seen[0]), kept.before(s))
                done[s], own = after(before, lambda s=s: made(s), lambda same=as_it_was: same)
            before = jax.tree.leaves(done[s])[0] if ordered else None
            new.append(own)
        spread = {s: y for s, y in done.items() if plan.stacks[s].cut.spread}
        for s, y in gather(plan, spread).items():
            done[s] = leave(plan, s, y, plan.stacks[s].dtype)
        parts = merged(*done.values())
        return tuple(leaf_of(plan, i, parts.get(i), x) for i, x in enumerate(leaves)), new

    held = list(zip(kept.arrays, marks, strict=True))
    out, new = on_devices(plan, local, leaves, others, held, numbers)
    if plan.alone:
        out = [as_it_lay(x, y) for x, y in zip(out, like, strict=True)]
    return structure.unflatten(out), kept.after(new)


def on_devices(
    plan: Plan,
    work: Callable[..., Any],
    leaves: Any,
    others: Any,
    held: list[Any],
    numbers: dict[str, Any],
    outputs: int = 1,
) -> tuple[Any, list[Any]]:
    """Runs what one device does, inside `jax.shard_map` over the mesh of a plan where it has one.

    Args:
      plan: of the leaves.
      work: (leaves, others, held, numbers) -> the leaves of `outputs` trees, one behind another, and what is kept of
        each stack.
      leaves: those of a tree.
      others: those of further trees.
      held: per stack what is kept of it, and its marks.
      numbers: what the work reads besides.
      outputs: how many trees it makes. Default 1.
    """
    if plan.mesh is None:
        return work(leaves, others, held, numbers)
    for own in (leaves, *others):
        check_explicit(plan.method, plan.names, own, plan.specs, plan.mesh)
    given, restored = _traced(numbers)
    places = [
        jax.tree.map(lambda x, s=s: spec_of(x.shape, s.owners, s.single, plan.sizes), own)
        for s, own in zip(plan.stacks, held, strict=True)
    ]
    if AxisType.Explicit in plan.mesh.axis_types:
        # What an init under jit has made without out_shardings may still be replicated.
        mesh = plan.mesh
        held = jax.tree.map(lambda x, p: jax.sharding.reshard(x, NamedSharding(mesh, p)), held, places)

    def on_shards(leaves: Any, others: Any, held: Any, given: Any) -> Any:
        out, new = work(leaves, others, gathered(held, places, plan.sizes), restored(given))
        return out, shards_of(new, [own for own, _ in places], plan.sizes)

    # Results of an all-gather are the same everywhere, which the type checker of shard_map cannot know.
    return jax.shard_map(
        on_shards,
        mesh=plan.mesh,
        in_specs=(plan.specs, (plan.specs,) * len(others), places, PartitionSpec()),
        out_specs=(plan.specs * outputs, [own for own, _ in places]),
        check_vma=False,
    )(leaves, others, held, given)


def apply_to_matrices(plan: Plan, function: Callable[[jax.Array], jax.Array], tree: Any) -> Any:
    """Applies a function of a batch of matrices (B, n, m), of which nothing is kept, once per stack."""

    def on(one: Callable[[jax.Array], jax.Array]) -> Callable[..., Any]:
        return lambda x, own, numbers, mark: (one(x), own)

    kernels = [on(on_fused(function, stack, plan.transpose) if stack.splits else function) for stack in plan.stacks]
    return map_stacks(plan, kernels, tree)[0]


def _traced(numbers: dict[str, Any]) -> tuple[list[jax.Array], Callable[[list[jax.Array]], dict[str, Any]]]:
    """The arrays among some numbers, and the way back to all of them."""
    # Python numbers stay what they are: 1 - b is taken before anything is rounded.
    leaves, structure = jax.tree.flatten(numbers)

    def restored(arrays: list[jax.Array]) -> dict[str, Any]:
        given = iter(arrays)
        return structure.unflatten([next(given) if isinstance(x, jax.Array) else x for x in leaves])

    return [x for x in leaves if isinstance(x, jax.Array)], restored


def bytes_of(tree: Any) -> int:
    """Of all arrays of a tree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def after(before: jax.Array, work: Callable[[], Any], unchanged: Callable[[], Any]) -> Any:
    """A computation that begins when another one is done.

    Args:
      before: an array that the other one has made.
      work: the computation.
      unchanged: the same tree of shapes, which is never computed.

    >>> after(jnp.full(2, jnp.nan), lambda: jnp.ones(1), lambda: jnp.zeros(1)).tolist()
    [1.0]
    """
    # The compiler removes a barrier before it decides on the order, and so it does with what it knows to be true. It
    # does not know that the lowest bit of a number is below 2.
    bits = jax.lax.bitcast_convert_type(before.reshape(-1)[:1].astype(jnp.float32), jnp.int32)[0]
    return jax.lax.cond(anywhere((bits & 1) < 2), work, unchanged)
