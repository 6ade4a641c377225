"""Grafting: the direction of one method with the step length of another."""

from typing import Any, NamedTuple

import jax
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import inside, transformation
from gradkit.engine.mismatches import check_fit, shapes
from gradkit.engine.norms import packed_norms
from gradkit.leaves import Axes, Layout, axes_of, names

PAPER = Paper("Learning Rate Grafting: Transferability of Optimizer Tuning", "Agarwal et al.", 2021)
TINY = 1e-16


class GraftState(NamedTuple):
    """The states of the two methods."""

    magnitude: Any
    direction: Any


def graft(
    magnitude: optax.GradientTransformation,
    direction: optax.GradientTransformation,
    *,
    block: str = "tensor",
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Gives the update of one transformation the length of another's.

    Equations, of every tensor, with the update a_t of `magnitude` and p_t of `direction`, both of the same gradient:

        d_t = p_t |a_t| / (|p_t| + 1e-16)

    A learning rate belongs after it, or in `magnitude`: one in `direction` cancels.

    Args:
      magnitude: the transformation whose update gives the length.
      direction: the transformation whose update gives the direction.
      block: "tensor", every tensor of the layout (every layer of a stack) separately; "leaf", every leaf as one.
        Default "tensor".
      layout: which axes are stacks.

    Returns:
      A transformation. State: that of both. Collectives: one all-reduce of two numbers per tensor, besides those of
      both.

    Raises:
      ValueError: an unknown `block`, or an argument that is not a transformation.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = graft(optax.scale(2.0), optax.scale_by_sign())
      >>> g = jnp.array([3.0, -4.0])
      >>> print(tx.update(g, tx.init(g))[0].round(3))  # as long as 2 g, along the sign
      [ 7.071 -7.071]

    Reference: Agarwal, Anil, Hazan, Koren, Zhang. Learning Rate Grafting: Transferability of Optimizer Tuning. 2021;
    Shi et al. 2023, arXiv 2309.06497.
    """
    checks.layout(layout)
    checks.choice("block", block, ("tensor", "leaf"))
    for name, tx in (("magnitude", magnitude), ("direction", direction)):
        if not isinstance(tx, optax.GradientTransformation):
            raise ValueError(f"{name} must be a gradient transformation, got {tx!r}")
    one, other = inside(magnitude, "magnitude"), inside(direction, "direction")

    def whole(name: str, shape: tuple[int, ...]) -> Axes:
        return axes_of(layout, name, shape)._replace(stack=())

    def init(params: optax.Params) -> GraftState:
        return GraftState(one.init(params), other.init(params))

    def update(updates: Any, state: GraftState, params: Any = None, **extra: Any) -> tuple[Any, GraftState]:
        a, kept = one.update(updates, state.magnitude, params, **extra)
        p, kept_too = other.update(updates, state.direction, params, **extra)
        if shapes(a) != shapes(updates):
            check_fit("graft", updates, state)
        lengths, leaves = jax.tree.leaves(a), jax.tree.leaves(p)
        chosen = [i for i, x in enumerate(leaves) if x.size]
        known = names(updates)
        norms = packed_norms(
            [known[i] for i in chosen],
            "tensor",
            layout if block == "tensor" else whole,
            [leaves[i] for i in chosen],
            [lengths[i] for i in chosen],
        )
        for i, ratio in zip(chosen, norms.each(lambda n_p, n_a: n_a / (n_p + TINY)), strict=True):
            leaves[i] = leaves[i] * ratio
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), GraftState(kept, kept_too)

    return transformation("graft", init, update)


register(
    graft,
    form="wrapper",
    paper=PAPER,
    words=0,
    collectives="norms",
    wraps="direction",
    example={"direction": optax.scale_by_sign()},
    opt_outs={
        "bad input": "it has transformations for arguments, no numbers; tests/papers/test_graft.py hands it others"
    },
)
