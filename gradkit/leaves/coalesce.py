"""Models of several sizes from one: neighbours merged to train a smaller model, and copied to go back."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.leaves.paths import names
from gradkit.types import PyTree, Scalar

PAPER = Paper(
    "A Multi-Level Framework for Accelerating Training Transformer Models", "Zou, Zhang, Deng", 2024, "2404.07999"
)
KINDS = ("params", "first_moment", "second_moment")


class Merge(NamedTuple):
    """What becomes of one axis of a leaf.

    Attributes:
      groups: which blocks become one, as ((0, 1), (2, 3)): every block in one group.
      block: entries of a block that stay apart: the size of a head, times 4 for the hidden units of an MLP. 1 for the
        axis of stacked layers.
      input_side: whether the axis is one that is summed over, such as the inputs of a kernel: then merged entries are
        added, and copies divided by the size of the group. Else, of outputs, biases, gains and layers: the mean, and
        copies.
      factor: what a merged leaf is multiplied by, and a copied one divided by. 1; the official code has 2 for the
        embedding table.
    """

    groups: tuple[tuple[int, ...], ...]
    block: int = 1
    input_side: bool = False
    factor: float = 1.0


Plan = Mapping[str, Mapping[int, Merge]]


def _checked(method: str, name: str, axis: int, merge: Merge, size: int | None, shape: Any) -> None:
    blocks = sorted(i for group in merge.groups for i in group)
    if blocks != list(range(len(blocks))) or not all(merge.groups):
        raise ValueError(
            f"{method}: groups of axis {axis} of {name!r} must have every block from 0 on in one group, got "
            f"{merge.groups}; write ((0, 1), (2, 3))"
        )
    checks.integer("block", merge.block, 1)
    if size is None or size != merge.block * (len(blocks) if method == "coalesce" else len(merge.groups)):
        count = len(blocks) if method == "coalesce" else len(merge.groups)
        raise ValueError(
            f"{method}: axis {axis} of {name!r}, of shape {shape}, must have {count} blocks of {merge.block};"
            " write the size of a head as block, and as many blocks as there are heads"
        )


def _merged(x: jax.Array, axis: int, merge: Merge, weight: Callable[[int], float]) -> jax.Array:
    """The sum over each group, times the weight of its size."""
    x = jnp.moveaxis(x, axis, 0)
    blocks = x.reshape(-1, merge.block, *x.shape[1:])
    sizes = {len(group) for group in merge.groups}
    if len(sizes) == 1:  # a reshape and a sum, also where the axis is sharded
        order = [i for group in merge.groups for i in group]
        blocks = blocks if order == list(range(len(order))) else blocks[jnp.asarray(order)]
        (size,) = sizes
        total = jnp.sum(blocks.reshape(-1, size, *blocks.shape[1:]), axis=1) * weight(size)
    else:
        total = jnp.stack([jnp.sum(blocks[jnp.asarray(g)], axis=0) * weight(len(g)) for g in merge.groups])
    return jnp.moveaxis(total.reshape(-1, *x.shape[1:]), 0, axis)


def _copied(x: jax.Array, axis: int, merge: Merge, weight: Callable[[int], float]) -> jax.Array:
    """Each block once per member of its group, times the weight of its size."""
    x = jnp.moveaxis(x, axis, 0)
    blocks = x.reshape(-1, merge.block, *x.shape[1:])
    home = {i: (g, len(group)) for g, group in enumerate(merge.groups) for i in group}
    share = jnp.asarray([weight(home[i][1]) for i in range(len(home))], x.dtype)
    blocks = blocks[jnp.asarray([home[i][0] for i in range(len(home))])] * share.reshape(-1, *[1] * x.ndim)
    return jnp.moveaxis(blocks.reshape(-1, *x.shape[1:]), 0, axis)


# Of a parameter map and its inverse: (weight of outputs, weight of inputs) by the size of a group, power of the factor.
# A gradient is mapped by the transpose of the map in the other direction, its square by the squares of the entries.
_DOWN: dict[str, Any] = {
    "params": (lambda g: 1 / g, lambda g: 1.0, 1),
    "first_moment": (lambda g: 1.0, lambda g: 1 / g, -1),
    "second_moment": (lambda g: 1.0, lambda g: 1 / g**2, -2),
}
_UP: dict[str, Any] = {
    "params": (lambda g: 1.0, lambda g: 1 / g, -1),
    "first_moment": (lambda g: 1 / g, lambda g: 1.0, 1),
    "second_moment": (lambda g: 1 / g**2, lambda g: 1.0, 2),
}


def _map(method: str, tree: Any, plan: Plan, kind: str) -> Any:
    checks.choice("kind", kind, KINDS)
    leaves, structure = jax.tree.flatten(tree)
    paths = names(tree)
    unknown = sorted(set(plan) - set(paths))
    if unknown:
        raise ValueError(
            f"{method}: plan has {unknown}, and the tree {sorted(paths)}; write names of `gk.leaves.names`"
        )
    twice = [
        [name for name, x in zip(paths, leaves, strict=True) if id(x) == own and name in plan]
        for own, count in Counter(map(id, leaves)).items()
        if count > 1
    ]
    if any(len(shared) > 1 for shared in twice):
        raise ValueError(
            f"{method}: {max(twice, key=len)} are one array, and would be mapped twice; tie them afterwards"
        )
    down = method == "coalesce"
    outputs, inputs, power = (_DOWN if down else _UP)[kind]
    mapped = []
    for name, x in zip(paths, leaves, strict=True):
        x = jnp.asarray(x)
        for axis, merge in plan.get(name, {}).items():
            merge = Merge(*merge)
            size = x.shape[axis] if -x.ndim <= axis < x.ndim else None
            _checked(method, name, axis, merge, size, x.shape)
            x = (_merged if down else _copied)(x, axis, merge, inputs if merge.input_side else outputs)
            x = x if merge.factor == 1 else x * merge.factor**power
        mapped.append(x)
    return structure.unflatten(mapped)


def coalesce(tree: PyTree, plan: Plan, *, kind: str = "params") -> Any:
    """A smaller model whose units are groups of those of a larger one.

        along every axis of the plan
        outputs, biases, gains, layers            the mean over the group
        inputs                                    the sum over the group
        first moments (as gradients)              outputs: the sum; inputs: the mean
        second moments                            outputs: the sum; inputs: the sum / g^2, g the size of the group

    Args:
      tree: parameters, or a tree of moments like them; leaves that the plan does not name stay as they are.
      plan: name of a leaf (`gk.leaves.names`) -> axis -> `Merge`.
      kind: what the tree holds: "params", "first_moment" or "second_moment". Default "params".

    Returns:
      A tree of the same structure with smaller leaves. Moments are mapped by the transpose of the way back, as
      gradients are, so that a count of the steps goes on.

    Raises:
      ValueError: groups that are no partition; an axis of another size, such as another number of heads; a name that
        the tree has not; one array under two names of the plan.

    Example:
      >>> pairs = Merge(((0, 1),))
      >>> tree = {"kernel": jnp.array([[1.0, 2.0], [3.0, 6.0]])}  # (in, out)
      >>> coalesce(tree, {"kernel": {0: pairs._replace(input_side=True), 1: pairs}})["kernel"].tolist()
      [[6.0]]

    Reference: Zou, Zhang, Deng. A Multi-Level Framework for Accelerating Training Transformer Models. 2024, arXiv
    2404.07999. Its code restarts the optimizer; the map of moments is ours. The code doubles the embedding table, which
    is right for pairs alone: `Merge.factor` says it.
    """
    return _map("coalesce", tree, plan, kind)


def decoalesce(tree: PyTree, plan: Plan, *, kind: str = "params") -> Any:
    """The larger model that computes what the smaller one does: its units are copied into their groups.

        outputs, biases, gains, layers      copies
        inputs                              copies / g, g the size of the group
        moments                             by the transpose of `coalesce`, second ones by the squares of its entries

    coalesce(decoalesce(x)) = x. Widening keeps the function of layers, of layer normalizations and of heads, whose size
    stays. Adding layers never does. A token table that is tied to the head needs a factor, and the function is kept
    only behind a normalization; of an untied one, the table is an output and the head an input.

    Args:
      tree: parameters or moments of the small model.
      plan: of `coalesce`, from large to small.
      kind: "params", "first_moment" or "second_moment". Default "params".

    Returns:
      A tree of the same structure with the larger leaves. Copies are equal: training needs `interpolate_params`, or
      noise, to tell them apart.

    Raises:
      ValueError: as `coalesce`.

    Example:
      >>> pairs = Merge(((0, 1),))
      >>> decoalesce({"kernel": jnp.array([[6.0]])}, {"kernel": {0: pairs._replace(input_side=True), 1: pairs}})
      {'kernel': Array([[3., 3.],
             [3., 3.]], dtype=float32)}

    Reference: Zou, Zhang, Deng. A Multi-Level Framework for Accelerating Training Transformer Models. 2024, arXiv
    2404.07999.
    """
    return _map("decoalesce", tree, plan, kind)


def interpolate_params(big: Any, back: Any, alpha: Scalar = 0.25) -> Any:
    """Parameters between those of the large model and those that come back from the small one.

        (1 - alpha) big + alpha back

    Args:
      big: the parameters that the large model had; they break the symmetry of copies.
      back: a tree like it, of `decoalesce`.
      alpha: in [0, 1]; may be traced. Default 0.25 (official code; its example for GPT has 0.5).

    Returns:
      A tree like `big`, in its dtypes.

    Raises:
      ValueError: trees that do not match; alpha outside its range.

    Example:
      >>> interpolate_params(jnp.array([0.0, 4.0]), jnp.array([4.0, 4.0])).tolist()
      [1.0, 4.0]

    Reference: Zou, Zhang, Deng. A Multi-Level Framework for Accelerating Training Transformer Models. 2024, arXiv
    2404.07999.
    """
    checks.arrays(big=big)
    checks.real("alpha", alpha, "[0, 1]")
    if jax.tree.structure(big) != jax.tree.structure(back):
        raise ValueError("interpolate_params: back must have the structure of big; write decoalesce(small, plan)")

    def between(name: str, x: Any, y: Any) -> jax.Array:
        x, y = jnp.asarray(x), jnp.asarray(y)
        if x.shape != y.shape:
            raise ValueError(f"interpolate_params: back must be like big, {x.shape} at {name!r}, got {y.shape}")
        share = jnp.asarray(alpha).astype(x.dtype)
        return (1 - share) * x + share * y.astype(x.dtype)

    return jax.tree.map(between, jax.tree.unflatten(jax.tree.structure(big), names(big)), big, back)


def v_cycle(
    train: Callable[[Any, int, int], Any],
    params: PyTree,
    plans: Sequence[Plan],
    *,
    down: Sequence[int],
    bottom: int,
    up: Sequence[int],
    alpha: Any = 0.25,
) -> Any:
    """Trains models from large to small and back to large.

        every level on the way down:    train for down[l] steps, keep the parameters, coalesce
        the smallest:                   train for `bottom` steps
        every level on the way up:      decoalesce, (1 - alpha) kept + alpha back, train for up[l] steps

    Args:
      train: (params, level, steps) -> params, level 0 the largest. It begins with a new optimizer, or maps the moments
        with `kind` of `coalesce`.
      params: of the largest model.
      plans: of `coalesce`, one between every two levels.
      down: steps of every level but the smallest, on the way down: few, a warm-up.
      bottom: steps of the smallest; the paper takes about half of all.
      up: steps of every level but the smallest, on the way up, from level 0 on, as `down`.
      alpha: of `interpolate_params`. Default 0.25 (official code).

    Returns:
      Parameters of the largest model. The paper's learning rates for GPT: 1e-4, then 4e-4 of the small one, then 1e-4.

    Raises:
      ValueError: as many steps as levels are not given; what `coalesce` and `interpolate_params` raise.

    Example:
      >>> plan = {"w": {0: Merge(((0, 1),))}}
      >>> train = lambda p, level, steps: {"w": p["w"] + steps}
      >>> v_cycle(train, {"w": jnp.array([0.0, 2.0])}, [plan], down=[1], bottom=8, up=[0], alpha=0.5)["w"].tolist()
      [5.5, 6.5]

    Reference: Zou, Zhang, Deng. A Multi-Level Framework for Accelerating Training Transformer Models. 2024, arXiv
    2404.07999.
    """
    checks.function("train", train)
    checks.real("alpha", alpha, "[0, 1]")
    checks.integer("bottom", bottom)
    for name, steps in (("down", down), ("up", up)):
        if len(steps) != len(plans):
            raise ValueError(f"{name} must have one number of steps per plan, {len(plans)}, got {len(steps)}")
        for count in steps:
            checks.integer(name, count)
    kept = []
    for level, (plan, steps) in enumerate(zip(plans, down, strict=True)):
        kept.append(train(params, level, steps))
        params = coalesce(kept[-1], plan)
    params = train(params, len(plans), bottom)
    for level in reversed(range(len(plans))):
        back = decoalesce(params, plans[level])
        params = train(interpolate_params(kept[level], back, alpha), level, up[level])
    return params


PLAN = {"kernel": {0: Merge(((0, 1), (2, 3)), 2, True), 1: Merge(((0, 1),), 2)}}
FILES = ("second_shelf/coalesce",)
BIG, SMALL = ({"kernel": jax.ShapeDtypeStruct(shape, "float32")} for shape in ((8, 4), (4, 2)))
register(coalesce, form="function", paper=PAPER, golden=FILES, example={"tree": BIG, "plan": PLAN})
register(decoalesce, form="function", paper=PAPER, golden=FILES, example={"tree": SMALL, "plan": PLAN})
register(interpolate_params, form="function", paper=PAPER, example={"big": BIG, "back": BIG})
register(v_cycle, form="program", paper=PAPER)
