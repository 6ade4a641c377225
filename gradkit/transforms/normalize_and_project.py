"""Updates that end in a set: the parameters after the step are projected, and the update is the difference."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import abs_sq, divide, increment, scalar, transformation, wide_dtype
from gradkit.engine.matching import check_match
from gradkit.engine.norms import BLOCKS, block_axes, entries
from gradkit.engine.sums import block_sums, own_parts
from gradkit.leaves import Layout, check_mask, check_mask_form, matrices_by_default, names, resolve_layout, resolve_mask
from gradkit.types import Mask

PAPER = Paper("Normalization and effective learning rates in reinforcement learning", "Lyle et al.", 2024, "2407.01800")


def project_updates(projection: Callable[[Any], Any]) -> optax.GradientTransformationExtraArgs:
    """Replaces every update by one that ends at the projection of the new parameters.

    Equations:

        u <- projection(w + u) - w

    Put it last, after the learning rate: `optax.chain(gk.sgd(0.1), gk.project_updates(projection))`.

    Args:
      projection: a function of a tree like the parameters that returns such a tree, for example one of
        `optax.projections`. It gets the leaves in float32 or wider.

    Returns:
      A transformation that needs `params`. No state. Collectives: those of the projection.

    Raises:
      ValueError: `projection` not callable; a projection that returns another tree.

    Example:
      >>> import optax
      >>> tx, w = project_updates(optax.projections.projection_non_negative), jnp.array([1.0, 1.0])
      >>> tx.update(jnp.array([0.5, -3.0]), tx.init(w), w)[0].tolist()  # 1 - 3 ends at 0
      [0.5, -1.0]

    Reference: The primitive behind Lyle et al. Normalization and effective learning rates in reinforcement learning.
    2024, arXiv 2407.01800.
    """
    checks.function("projection", projection)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        ends = projection(jax.tree.map(jnp.add, params, updates))
        check_match("project_updates", ends, params)
        return jax.tree.map(lambda y, w: y.astype(w.dtype) - w, ends, params), state

    return transformation(
        "project_updates", lambda params: optax.EmptyState(), update, needs_params=True, complex_leaves=True
    )


class NormalizeAndProjectState(NamedTuple):
    """Number of updates made, and the norm of every block, which is kept (None where it is a number, or not kept)."""

    count: jax.Array
    rho: Any

    exact_fields = ("rho",)  # norms of parameters, which gk.precision(state=...) must not round


def _layers(known: list[str], gains: str | None) -> dict[int, str]:
    """Index of a leaf -> its layer, for gains and offsets of normalisations, which Flax calls scale and bias."""
    split = [name.rpartition("/") for name in known]
    found = {parent for parent, _, last in split if last == "scale" and gains is not None}
    return {i: parent for i, (parent, _, last) in enumerate(split) if parent in found and last in ("scale", "bias")}


def _has_zero_block(x: Any, axes: tuple[int, ...]) -> bool:
    """Whether a block is known to be 0; False for traced leaves and for shapes, whose values are not known."""
    if isinstance(x, Tracer) or not isinstance(x, jax.Array):
        return False
    with jax.ensure_compile_time_eval():
        return bool(jnp.any(jnp.all(x == 0, axis=axes)))


def normalize_and_project(
    *,
    mask: Mask | None = None,
    target: Any = "init",
    update_interval: int = 1,
    block: str = "tensor",
    gains: str | None = None,
    gains_decay: Any = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Keeps the norm of every kernel constant, so that the effective learning rate is the learning rate.

    Equations, with y = w + u, the norm rho of a block at the start, and gains sigma and offsets mu of a normalisation
    over d features:

        u <- rho y / |y| - w                              every block of a kernel
        u <- sqrt(d) y / |(y_sigma, y_mu)| - w            sigma and mu with gains="project"
        u <- u - gains_decay (y - (1, 0))                 sigma and mu with gains="decay"

    Put it last, after the learning rate: `optax.chain(gk.adamw(1e-3), gk.normalize_and_project())`. Where a
    normalisation follows every kernel, this does not change the function of the network, while without it growing
    weights lower the effective learning rate over time.

    Args:
      mask: which leaves are kept at their norm. Default None: those of rank 2 and more, not counting stack axes.
      target: the norm: "init", that of the block at the first update; "unit", 1; or a number > 0. Default "init".
      update_interval: steps between projections, >= 1. Default 1.
      block: "tensor", one norm per layer, or "unit", one per output unit. Default "tensor".
      gains: how gains and offsets of normalisation layers (leaves `scale`, and `bias` next to a `scale`) are treated:
        "project", the two together keep their initial norm, which suits positively homogeneous nonlinearities; "decay",
        they decay to 1 and 0; None, unchanged. Default None.
      gains_decay: with gains="decay", the fraction per projection, in (0, 1]. Default None: 1e-3.
      layout: which axes are stacks and outputs: every layer of a scan has its own norm.

    Returns:
      A transformation that needs `params`. State: one number per block, and a counter. Collectives: one scalar per
      block where leaves are sharded.

    Raises:
      ValueError: an argument outside its range; with target="init" a block that is 0 at `init`, which has no norm to
        keep: exclude it by the mask. Where `init` is traced this cannot be checked, and such a block is not projected.

    Example:
      >>> tx, w = normalize_and_project(), jnp.eye(2)
      >>> u, state = tx.update(jnp.full((2, 2), 10.0), tx.init(w), w)
      >>> bool(abs(jnp.linalg.norm(w + u) - jnp.linalg.norm(w)) < 1e-5)
      True

    Reference: Lyle et al. Normalization and effective learning rates in reinforcement learning. 2024, arXiv
    2407.01800. The paper offers both ways for gains and offsets; the strength of the decay is not given there.
    """
    checks.layout(layout)
    if isinstance(target, str):
        checks.choice("target", target, ("init", "unit"))
    else:
        checks.real("target", target, "(0, inf)")
    update_interval = checks.integer("update_interval", update_interval, 1)
    checks.choice("block", block, BLOCKS)
    checks.choice("gains", gains, ("project", "decay", None))
    checks.real("gains_decay", gains_decay, "(0, 1]", optional=True)
    if gains != "decay" and gains_decay is not None:
        raise ValueError(
            f"normalize_and_project: gains_decay must be None with gains={gains!r}, got {gains_decay!r}; write "
            "gains='decay', or leave gains_decay out"
        )
    strength = 1e-3 if gains_decay is None else gains_decay

    chosen_by = matrices_by_default(layout) if mask is None else mask

    def kernels(tree: Any, layers: dict[int, str]) -> list[int]:
        on = jax.tree.leaves(resolve_mask(chosen_by, tree))
        return [i for i, x in enumerate(jax.tree.leaves(tree)) if on[i] and i not in layers and x.size]

    check_mask_form(mask=mask)

    def init(params: optax.Params) -> NormalizeAndProjectState:
        resolve_layout(layout, params, method="normalize_and_project", matters=True)
        check_mask(chosen_by, params, method="normalize_and_project", argument="mask", instead="mask=False")
        leaves, structure = jax.tree.flatten(params)
        known = names(params)
        rho: list[Any] = [optax.MaskedNode()] * len(leaves)
        for i in kernels(params, _layers(known, gains)) if target == "init" else ():
            x, own = leaves[i], block_axes(known[i], leaves[i].shape, block, layout)
            if _has_zero_block(x, own):
                raise ValueError(
                    f"normalize_and_project: the leaf {known[i]!r} has a block that is 0, which has no norm to keep; "
                    "exclude the leaf by mask, or give target='unit' or a number"
                )
            shape = [1 if a in own else n for a, n in enumerate(x.shape)]
            rho[i] = jnp.zeros(shape, wide_dtype(x.dtype))
        return NormalizeAndProjectState(jnp.zeros((), jnp.int32), structure.unflatten(rho))

    def update(updates: Any, state: NormalizeAndProjectState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        leaves, structure = jax.tree.flatten(updates)
        w, known = jax.tree.leaves(params), names(updates)
        layers = _layers(known, gains)
        chosen, joint = kernels(updates, layers), list(layers) if gains == "project" else []
        y = [a + b for a, b in zip(w, leaves, strict=True)]

        # One all-reduce for all sums: of projected leaves after the step, and of leaves that set a norm before it.
        moved, before = [*chosen, *joint], chosen if target == "init" else []
        order = [*moved, *before]
        axes = [block_axes(known[i], y[i].shape, "tensor" if i in layers else block, layout) for i in order]
        squares = [abs_sq(y[i]) for i in moved] + [abs_sq(w[i]) for i in before]
        sums = block_sums([known[i] for i in order], squares, axes)
        # A kept norm is sharded like its block, so the sums are taken in that sharding.
        sums = own_parts([known[i] for i in order], [y[i] for i in order], sums)
        after, start = dict(zip(moved, sums, strict=False)), sums[len(moved) :]
        rho: list[Any] = [optax.MaskedNode()] * len(leaves)
        for i, square, kept in zip(before, start, jax.tree.leaves(state.rho), strict=True):
            rho[i] = jnp.where(state.count == 0, jnp.sqrt(square), kept)

        def factor(i: int) -> jax.Array:
            """The factor that gives a block its norm; 0 where the norm is 0 or the block has no direction."""
            if i in layers:
                wanted = math.sqrt(entries(known[i], "tensor", layout, y[i].shape))
            else:
                wanted = rho[i] if target == "init" else 1.0 if target == "unit" else scalar(target, y[i])
            total = sum(after[j] for j in joint if layers[j] == layers[i]) if i in layers else after[i]
            return divide(wanted * jnp.ones_like(total), jnp.sqrt(total))

        count = increment(state.count)
        now = count % update_interval == 0
        for i in moved:
            c = factor(i)
            leaves[i] = jnp.where(now & (c > 0), c * y[i] - w[i], leaves[i])
        for i in layers if gains == "decay" else ():
            born = 1.0 if known[i].rpartition("/")[2] == "scale" else 0.0
            leaves[i] = jnp.where(now, leaves[i] - scalar(strength, y[i]) * (y[i] - born), leaves[i])
        return structure.unflatten(leaves), NormalizeAndProjectState(count, structure.unflatten(rho))

    return transformation("normalize_and_project", init, update, needs_params=True)


register(
    project_updates,
    form="primitive",
    paper=PAPER,
    example={"projection": lambda tree: jax.tree.map(lambda x: jnp.clip(x, -2.0, 2.0), tree)},
    opt_outs={
        "complex": "what a projection of complex leaves does is the projection's",
        "descends": "it goes behind the learning rate, which the contract chains behind it",
    },
    notes="the last link, after the learning rate",
)
register(
    normalize_and_project,
    form="primitive",
    paper=PAPER,
    collectives="norms",
    opt_outs={
        "descends": "it goes behind the learning rate, which the contract chains behind it",
        "zeros": "a kernel that is 0 has no norm to be kept, and is refused",
    },
    notes="the last link, after the learning rate",
)
