"""Weights of a fixed norm: the direction says where on the sphere they go, the learning rate by which angle."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import at_count, counter, divide, increment, inside, scalar, transformation, wide_dtype
from gradkit.engine.matrix_sums import BLOCKS, MatrixSums, block_of, entries_of, matrix_sums, zero_blocks
from gradkit.leaves import (
    Layout,
    Method,
    check_mask,
    check_mask_form,
    matrices_by_default,
    names,
    resolve_layout,
    resolve_mask,
)
from gradkit.leaves.recording import links_of
from gradkit.types import Mask, PyTree, Scalar, ScalarOrSchedule

PAPER = Paper(
    "Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization",
    "Wen et al.",
    2026,
    "2606.16899",
)
RELATIVE, HYPERBALL = "relative_update", "hyperball"
BY_LAYOUT = {"layout": "its blocks are matrices, whatever their stacks are called; its test has layouts"}
ON_A_SPHERE = {"descends": "weights keep the norm that they start with, and what the contract descends to has another"}


def refuse_zeros(method: str, known: list[str], layout: Layout | None, leaves: list[Any], block: str) -> None:
    """Raises where a block is zero that is to keep its norm."""
    if zeros := zero_blocks(known, layout, leaves, block_of(block)):
        more = f" and {len(zeros) - 8} more" if len(zeros) > 8 else ""
        instead = "; or radius_of_zeros=0.02, the root mean square to bring them to" if method == HYPERBALL else ""
        raise ValueError(
            f"{method}: a block of zeros has no norm to be kept and would stay zero for ever, and these leaves have "
            f"one: {', '.join(map(repr, zeros[:8]))}{more}. Initialise them otherwise, or leave them out: "
            f"mask=~gk.leaves.by_path({zeros[0]!r}){instead}"
        )


def chosen_leaves(mask: Mask, tree: PyTree) -> list[int]:
    """The numbers of the leaves that a mask selects and that have entries."""
    on = jax.tree.leaves(resolve_mask(mask, tree))
    return [i for i, x in enumerate(jax.tree.leaves(tree)) if on[i] and x.size]


def three_sums(
    known: list[str], layout: Layout | None, w: list[jax.Array], u: list[jax.Array], block: str
) -> MatrixSums:
    """|W|^2, |u|^2 and <W, u> of every block, in one exchange."""
    quantities = ([x * x for x in w], [x * x for x in u], [x * y for x, y in zip(w, u, strict=True)])
    return matrix_sums(known, layout, *quantities, over=block_of(block), like=u)


def relative_update(
    *, mask: Mask | None = None, block: str = "tensor", eps: Scalar = 1e-15, layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Gives the update of every matrix the norm that the matrix has, so that the learning rate is relative.

    Equations, of every block W of the parameters and its update u:

        u <- u |W| / |u|                 0 where |W| < eps or |u| < eps

    One link before the learning rate: `optax.chain(gk.scale_by_adam(), gk.relative_update(),
    gk.scale_by_learning_rate(0.01))`.

    Args:
      mask: which leaves are rescaled; the others pass. Default None: those with inputs and outputs.
      block: "tensor", one matrix (of a stack, of fused weights), or "unit", the inputs of one output. Default "tensor".
      eps: smallest norm that counts, in the parameters' and the updates' units, >= 0. Default 1e-15 (NVIDIA's code).
      layout: which axes are stacks, inputs and outputs.

    Returns:
      A transformation that needs `params`. No state. Collectives: one all-reduce of two numbers per block where leaves
      are sharded.

    Raises:
      ValueError: an argument outside its range; `params` missing; at `init` a block that is zero, which could never
        move. Where `init` is traced this cannot be seen.

    Example:
      >>> tx = relative_update()
      >>> w, u = jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 2.0]])
      >>> tx.update(u, tx.init(w), w)[0].tolist()
      [[0.0, 5.0]]

    Reference: Wen et al. Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization. 2026,
    arXiv 2606.16899. NVIDIA's hook has one ratio per leaf, also of stacked layers.
    """
    checks.layout(layout)
    checks.choice("block", block, BLOCKS)
    checks.real("eps", eps, "[0, inf)")
    check_mask_form(mask=mask)
    chosen_by = matrices_by_default(layout) if mask is None else mask

    def init(params: optax.Params) -> optax.EmptyState:
        resolve_layout(layout, params, method=RELATIVE, matters=True)
        check_mask(chosen_by, params, method=RELATIVE, argument="mask", instead="mask=False")
        own = chosen_leaves(chosen_by, params)
        known, leaves = names(params), jax.tree.leaves(params)
        refuse_zeros(RELATIVE, [known[i] for i in own], layout, [leaves[i] for i in own], block)
        return optax.EmptyState()

    def factor(w_square: jax.Array, u_square: jax.Array) -> jax.Array:
        n_w, n_u = jnp.sqrt(w_square), jnp.sqrt(u_square)
        none = (n_w < scalar(eps, n_w)) | (n_u < scalar(eps, n_u))
        return jnp.where(none, jnp.zeros_like(n_w), divide(n_w, n_u))

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        leaves, structure = jax.tree.flatten(updates)
        w, known, own = jax.tree.leaves(params), names(updates), chosen_leaves(chosen_by, updates)
        some, u = [known[i] for i in own], [leaves[i] for i in own]
        squares = [jnp.square(w[i]) for i in own], [jnp.square(x) for x in u]
        sums = matrix_sums(some, layout, *squares, over=block_of(block), like=u)
        for i, f in zip(own, sums.per_leaf(sums.each(factor)), strict=True):
            leaves[i] = leaves[i] * f.astype(leaves[i].dtype)
        return structure.unflatten(leaves), state

    return transformation(RELATIVE, init, update, needs_params=True)


class HyperballState(NamedTuple):
    """Number of updates made (None where the rate is no schedule); the radius of every block, 0 where it is left free,
    `optax.MaskedNode` where a leaf is left out; metrics; the state of the inner transformation."""

    count: Any
    radius: Any
    metrics: dict[str, jax.Array]
    inner: Any

    exact_fields = ("radius",)  # norms of parameters, which gk.precision(state=...) must not round


def _refuse_decay(inner: optax.GradientTransformation, params: Any) -> None:
    """Raises where the direction has a learning rate, whose sign would be the wrong one, or decays weights."""
    for link in (each for outer in links_of(inner, params) for each in outer.walk()):
        if link.method.learning_rate is not None:
            raise ValueError(
                f"hyperball: inner must be a direction without a learning rate, and {link.method.name} has one; write "
                "hyperball(gk.scale_by_adam(), 0.018)"
            )
        decay = link.method.weight_decay
        if decay is not None and not (isinstance(decay, int | float) and decay == 0):
            raise ValueError(
                f"hyperball: inner must not decay weights, whose norm is fixed, and {link.method.name} does; leave the "
                "decay out"
            )


def hyperball(
    inner: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    radius: Scalar | None = None,
    radius_of_zeros: Scalar | None = None,
    block: str = "tensor",
    eps: Scalar = 1e-10,
    mask: Mask | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Keeps the norm of every matrix where it starts, and moves the matrix on this sphere.

    Equations, of every block W of the parameters and the direction u that `inner` makes of its gradient:

        R  = |W_0|, or `radius`
        y  = W - learning_rate R u / max(|u|, eps)
        W' = R y / max(|y|, eps)

    A step turns a block by about `learning_rate` radians, whatever the size of u. There is no weight decay, which would
    only mix W into u: the rate stands for sqrt(rate times decay) of a run with decay. Leaves that are left out move by
    -learning_rate u. R is part of the state: after a restore the weights go back to the sphere of the start of the run,
    also where they have been rounded.

    Args:
      inner: the transformation that makes the direction, without learning rate and weight decay, such as
        `gk.scale_by_adam()`.
      learning_rate: the angle of a step, about, in radians, >= 0, or a schedule.
      radius: R of every block, > 0. Default None: the norm that the block has at `init`.
      radius_of_zeros: the root mean square of the entries, > 0, that a block is brought to which is zero at `init`: its
        first step takes it to the sphere in the direction -u. Default None: such a block is refused.
      block: "tensor", one matrix (of a stack, of fused weights), or "unit", the inputs of one output. Default "tensor".
      eps: smallest norm that is divided by, in the units of u and of W, > 0. Default 1e-10 (levanter's code).
      mask: which leaves are kept on their sphere. Default None: those with inputs and outputs, also embeddings and
        heads.
      layout: which axes are stacks, inputs and outputs.

    Returns:
      A transformation that needs `params`. State: one number per block and that of `inner`. Metrics: the last learning
      rate; `free_blocks`, the number of blocks that have no radius. Collectives: one all-reduce of three numbers per
      block where leaves are sharded, and those of `inner`.

    Raises:
      ValueError: an argument outside its range; `params` missing; at `init`, a learning rate or a weight decay inside,
        and a block that is zero. Where `init` is traced values are not known: such a block is left free, and counted.

    Example:
      >>> tx, w = hyperball(optax.identity(), 1.0), jnp.array([[3.0, 4.0]])
      >>> u, _ = tx.update(jnp.array([[8.0, -6.0]]), tx.init(w), w)  # at right angles: by atan(1)
      >>> print((w + u).round(3), jnp.linalg.norm(w + u).round(3))
      [[-0.707  4.95 ]] 5.0

    Reference: Wen et al. Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization. 2026,
    arXiv 2606.16899. Departures: codes without a radius in their
    state project onto the norm of the current weights, which rounding lets
    wander; one norm per matrix of a stack, where levanter mixes two leading axes; a zero
    block is refused, where it gives NaN there, and stays zero without a word in heavyball.
    """
    checks.layout(layout)
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    checks.real("radius", radius, "(0, inf)", optional=True)
    checks.real("radius_of_zeros", radius_of_zeros, "(0, inf)", optional=True)
    checks.choice("block", block, BLOCKS)
    checks.real("eps", eps, "(0, inf)")
    check_mask_form(mask=mask)
    chosen_by, below = matrices_by_default(layout) if mask is None else mask, inside(inner)

    def published(rate: Any, free: Any) -> dict[str, jax.Array]:
        own = {"last_learning_rate": rate, "free_blocks": free}
        return {name: jnp.array(value, jnp.float32, copy=True) for name, value in own.items()}

    def radii(known: list[str], leaves: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        """The radii, and the number of blocks that have none: of all devices, and the same ever after."""
        own = [x.astype(wide_dtype(x.dtype)) for x in leaves]
        sums = matrix_sums(known, layout, [jnp.square(x) for x in own], over=block_of(block), like=own)

        def of(square: jax.Array, entries: int) -> jax.Array:
            if radius is not None:
                return jnp.broadcast_to(scalar(radius, square), square.shape)
            norm = jnp.sqrt(square)
            if radius_of_zeros is None:
                return norm
            return jnp.where(norm == 0, scalar(radius_of_zeros, norm) * entries**0.5, norm)

        entries = [
            entries_of(known[b.leaf], layout, leaves[b.leaf].shape, block_of(block))[b.part] for b in sums.blocks
        ]
        own = sums.each(of, entries)
        free = sum((jnp.sum(r == 0, dtype=jnp.float32) for r in own), jnp.zeros((), jnp.float32))
        return sums.per_leaf(own), free

    def init(params: optax.Params) -> HyperballState:
        resolve_layout(layout, params, method=HYPERBALL, matters=True)
        check_mask(chosen_by, params, method=HYPERBALL, argument="mask", instead="mask=False")
        _refuse_decay(below, params)
        leaves, structure = jax.tree.flatten(params)
        known, own = names(params), chosen_leaves(chosen_by, params)
        some, w = [known[i] for i in own], [leaves[i] for i in own]
        if radius is None and radius_of_zeros is None:
            refuse_zeros(HYPERBALL, some, layout, w, block)
        made, free = jax.eval_shape(lambda x: radii(some, x), w)
        if not any(isinstance(x, jax.ShapeDtypeStruct) for x in w):
            made, free = radii(some, w)
        R: list[Any] = [optax.MaskedNode()] * len(leaves)
        for i, r in zip(own, made, strict=True):
            R[i] = r if isinstance(r, jax.Array) else jnp.zeros(r.shape, r.dtype)
        count = counter(callable(learning_rate))
        rate = at_count(learning_rate, count, f"{HYPERBALL}: learning_rate")
        return HyperballState(
            count,
            structure.unflatten(R),
            published(rate, free if isinstance(free, jax.Array) else 0),
            below.init(params),
        )

    def update(updates: Any, state: HyperballState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        direction, state_below = below.update(updates, state.inner, params, **extra)
        leaves, structure = jax.tree.flatten(direction)
        w, known, own = jax.tree.leaves(params), names(updates), chosen_leaves(chosen_by, updates)
        rate = at_count(learning_rate, state.count, f"{HYPERBALL}: learning_rate")
        u = [leaves[i] for i in own]
        sums = three_sums([known[i] for i in own], layout, [w[i] for i in own], u, block)
        rows = zip(own, jax.tree.leaves(state.radius), *map(sums.per_leaf, sums.parts), strict=True)
        out = [-scalar(rate, x) * x for x in leaves]
        for i, R, w_square, u_square, product in rows:
            R = R.astype(w_square.dtype)
            s = scalar(rate, R) * R / jnp.maximum(jnp.sqrt(u_square), scalar(eps, R))
            y_square = jnp.maximum(w_square - 2 * s * product + s * s * u_square, 0)
            c = R / jnp.maximum(jnp.sqrt(y_square), scalar(eps, R))
            out[i] = jnp.where(R > 0, (c - 1) * w[i] - c * s * leaves[i], out[i])
        metrics = published(rate, state.metrics["free_blocks"])
        state = HyperballState(increment(state.count), state.radius, metrics, state_below)
        return structure.unflatten(out), state

    return transformation(
        HYPERBALL, init, update, needs_params=True, as_params=True, described=Method(HYPERBALL, learning_rate)
    )


register(
    relative_update,
    form="primitive",
    paper=PAPER,
    collectives="norms",
    golden=("modern/relative_update",),
    opt_outs=BY_LAYOUT,
    notes="one link before the learning rate",
)
register(
    hyperball,
    form="wrapper",
    paper=PAPER,
    collectives="norms",
    golden=("modern/adamh", "modern/muonh"),
    wraps="direction",
    example={"learning_rate": 0.01},
    opt_outs=BY_LAYOUT | ON_A_SPHERE,
    notes="around a direction; the learning rate is its own argument",
)
