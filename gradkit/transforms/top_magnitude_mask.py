"""Sparse training: only the largest incoming weights of every neuron are trained, chosen once.

Equations: in the docstring of `top_magnitude_mask`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import transformation
from gradkit.leaves import Layout, check_mask, check_mask_form, resolve_layout, resolve_mask
from gradkit.leaves.paths import map_named
from gradkit.types import Mask, PyTree

PAPER = Paper(
    "Proactive Gradient Conflict Mitigation in Multi-Task Learning: A Sparse Training Perspective", "Zhang et al.",
    2024, "2411.18615",
)  # fmt: skip


def _top(x: jax.Array, k: int, over: tuple[int, ...]) -> jax.Array:
    """Whether an entry is among the k largest of |x| over these axes together; of equal ones, the first."""
    rest = tuple(a for a in range(x.ndim) if a not in over)
    order = (*rest, *over)
    moved = jnp.transpose(jnp.abs(x), order)
    rows = moved.reshape(*moved.shape[: len(rest)], math.prod(x.shape[a] for a in over))
    rank = jnp.argsort(jnp.argsort(-rows, axis=-1, stable=True), axis=-1, stable=True)
    back = tuple(int(a) for a in np.argsort(order))
    return jnp.transpose((rank < k).reshape(moved.shape), back)


def top_magnitude_mask(params: PyTree, *, k: int = 1, axis: str = "in", layout: Layout | None = None) -> Any:
    """The weights that a sparse training moves: of every output neuron, the k incoming ones of largest magnitude.

        mask_ij = 1 where |W_ij| is among the k largest of |W_1j| ... |W_nj|       W (in, out)

    Fewer weights are shared by all tasks, and their gradients conflict less often
    (`gk.diagnostics.conflict_incidence`). Call it once, before training, and put `gk.keep_updates(mask)` last in the
    chain.

    Args:
      params: the parameters at the start, or the part of them that all tasks share.
      k: weights per neuron, >= 1. Default 1.
      axis: "in" (default): the largest over the inputs of each output, of a convolution (HWIO) over H, W and I
        together; "out": over the outputs of each input.
      layout: which axes are inputs, outputs and stacks. Default None: the tree.

    Returns:
      A tree of boolean arrays like `params`. Leaves without inputs and outputs, such as biases, are True throughout.
      Sharded parameters are gathered along the inputs where these are sharded.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> top_magnitude_mask({"kernel": jnp.array([[1.0, -5.0], [-2.0, 3.0]])})["kernel"].tolist()
      [[False, True], [True, False]]

    Reference: Zhang et al. Proactive Gradient Conflict Mitigation in Multi-Task Learning: A Sparse Training
    Perspective. 2024, arXiv 2411.18615. The paper says nothing of biases; they are trained here.
    """
    checks.arrays(params=params)
    k = checks.integer("k", k, 1)
    checks.choice("axis", axis, ["in", "out"])
    meaning = resolve_layout(layout, params, method="top_magnitude_mask")

    def leaf(name: str, x: Any) -> jax.Array:
        axes = meaning(name, jnp.shape(x))
        if not (axes.inputs and axes.outputs):
            return jnp.ones(jnp.shape(x), bool)
        return _top(jnp.asarray(x), k, axes.inputs if axis == "in" else axes.outputs)

    return map_named(leaf, params)


def keep_updates(mask: Mask) -> optax.GradientTransformationExtraArgs:
    """Sets the updates outside a mask to zero: what is not in it keeps its bits, also under weight decay.

        u <- u where mask, 0 elsewhere

    Put it last in a chain, `optax.chain(gk.adamw(1e-3), gk.keep_updates(mask))`: a mask of the gradients would leave
    decay, and the momentum from before, in the updates.

    Args:
      mask: a tree like the parameters of boolean arrays of their shapes, as `gk.top_magnitude_mask` makes it; or, for
        whole leaves, a selector, a tree of booleans, a function params -> booleans, a boolean.

    Returns:
      A transformation. No state: the mask is a constant of the program. Elementwise: no collective.

    Raises:
      ValueError: a mask of another structure, or of entries that are no booleans.

    Example:
      >>> tx = keep_updates({"w": jnp.array([True, False])})
      >>> g = {"w": jnp.array([1.0, 2.0])}
      >>> tx.update(g, tx.init(g))[0]["w"].tolist()
      [1.0, 0.0]

    Reference: Zhang et al. Proactive Gradient Conflict Mitigation in Multi-Task Learning: A Sparse Training
    Perspective. 2024, arXiv 2411.18615.
    """
    flags = jax.tree.leaves(mask)
    arrays = any(getattr(flag, "ndim", 0) for flag in flags)
    if not arrays:
        check_mask_form(mask=mask)
    for flag in flags:
        boolean = isinstance(flag, bool) or getattr(flag, "dtype", None) == np.dtype(bool)
        if not boolean and (arrays or not callable(flag)):
            raise ValueError(f"mask must be booleans, or trees or arrays of them, got {flag!r}; write mask != 0")

    def init(params: Any) -> optax.EmptyState:
        if not arrays:
            check_mask(mask, params, method="keep_updates", argument="mask", instead="mask=False")
        return optax.EmptyState()

    def leaf(flag: Any, u: jax.Array) -> jax.Array:
        if not getattr(flag, "ndim", 0):
            return u if flag else jnp.zeros_like(u)
        if flag.shape != u.shape:
            raise ValueError(f"keep_updates: mask has an entry of shape {flag.shape} for a leaf of shape {u.shape}")
        return jnp.where(flag, u, jnp.zeros_like(u))

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, optax.EmptyState]:
        del params, extra
        if not arrays:
            return jax.tree.map(leaf, resolve_mask(mask, updates, method="keep_updates"), updates), state
        if jax.tree.structure(mask) != jax.tree.structure(updates):
            raise ValueError(
                "keep_updates: the structure of mask does not match the parameters: it must have one entry for each, "
                "as gk.top_magnitude_mask(params) has"
            )
        return jax.tree.map(leaf, mask, updates), state

    return transformation("keep_updates", init, update, complex_leaves=True)


_KERNEL = {"kernel": np.array([[1.0, -5.0], [-2.0, 3.0]], np.float32)}
register(top_magnitude_mask, form="function", paper=PAPER, example={"params": _KERNEL})
register(keep_updates, form="primitive", paper=PAPER, example={"mask": True}, notes="goes last in a chain")
