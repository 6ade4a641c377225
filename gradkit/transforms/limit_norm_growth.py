"""A limit on the growth of updates from step to step, which turns a loss spike into small steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar, transformation, wide_dtype
from gradkit.engine.norms import block_axes, global_norm, packed_norms
from gradkit.leaves import Layout, map_named, names, resolve_layout
from gradkit.leaves.keeping import LayoutState
from gradkit.types import Scalar

PAPER = Paper(
    "Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank Constraint?", "Chen et al.", 2024, "2410.01623"
)
FLOOR = 1e-8


def growth(n: jax.Array, before: jax.Array, gamma: Any) -> jax.Array:
    """The divisor f_t of `limit_norm_growth`; 1 where the previous norm was 0.

    >>> growth(jnp.array([4.0, 0.5, 4.0]), jnp.array([1.0, 1.0, 0.0]), 2.0).round(4).tolist()
    [2.0, 1.0, 1.0]
    """
    one = jnp.ones((), n.dtype)
    return jnp.where(before == 0, one, jnp.maximum(n / ((before + FLOOR) * scalar(gamma, n)), one))


class LimitNormGrowthState(NamedTuple):
    """The norms of the last updates that were returned: one per tensor, or one; and the layout's own state."""

    norm: Any
    layout: LayoutState | None = None


def limit_norm_growth(
    gamma: Scalar = 1.01, *, block: str = "tensor", layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Lets the norm of updates grow by a factor of at most `gamma` per step; shrinking is free.

    Equations:

        n_t = |u_t|                                               of every tensor, or of all leaves together
        f_t = max(1, n_t / (gamma (n'_{t-1} + 1e-8)))             1 at the first step, and where n'_{t-1} = 0
        u_t <- u_t / f_t,      n'_t = n_t / f_t                   so that n'_t <= gamma (n'_{t-1} + 1e-8)

    After an optimizer's direction it replaces clipping, without a bound that must be known in advance.

    Args:
      gamma: largest factor of growth per step, >= 1; infinity limits nothing. Default 1.01 (paper).
      block: "tensor", every tensor by itself (the layers of a stack are tensors), or "global", all leaves together.
        Default "tensor" (paper).
      layout: which axes are stacks.

    Returns:
      A transformation. State: one number per tensor, or one. Collectives: one number per tensor where leaves are
      sharded, all in one all-reduce.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = limit_norm_growth(2.0)
      >>> state = tx.init(jnp.zeros(2))
      >>> for x in (1.0, 10.0, 3.0):
      ...     u, state = tx.update(jnp.array([0.0, x]), state)
      ...     print(u.round(4))
      [0. 1.]
      [0. 2.]
      [0. 3.]

    Reference: Chen et al. Fira. 2024, arXiv 2410.01623. Departure: after a step of zeros the next one is not limited,
    like the first one; the official code would start again from a norm of 1e-8 and grow by 1 % per step.
    """
    checks.layout(layout)
    checks.real("gamma", gamma, "[1, inf]")
    checks.choice("block", block, ("tensor", "global"))

    def init(params: optax.Params) -> LimitNormGrowthState:
        resolve_layout(layout, params, method="limit_norm_growth", matters=True)
        if block == "global":
            dtypes = [jnp.finfo(wide_dtype(x.dtype)).dtype for x in jax.tree.leaves(params)]
            widest = max(dtypes, key=lambda d: d.itemsize, default=jnp.dtype(jnp.float32))
            return LimitNormGrowthState(jnp.zeros((), widest))

        def one(name: str, x: Any) -> jax.Array:
            summed = block_axes(name, x.shape, "tensor", layout)
            shape = [1 if a in summed else k for a, k in enumerate(x.shape)]
            return jnp.zeros(shape, jnp.finfo(wide_dtype(x.dtype)).dtype)

        return LimitNormGrowthState(map_named(one, params), LayoutState(jnp.zeros((), jnp.int32)))

    def update(u: Any, state: LimitNormGrowthState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        if block == "global":
            n = global_norm(u)
            f = growth(n, state.norm.astype(n.dtype), gamma)
            limited = jax.tree.map(lambda x: x / f.astype(x.dtype), u)
            return limited, LimitNormGrowthState((n / f).astype(state.norm.dtype))
        leaves, structure = jax.tree.flatten(u)
        norms = packed_norms(names(u), "tensor", layout, leaves, large=(0,))
        n = norms.own(norms.parts[0])
        f = [growth(k, before, gamma) for k, before in zip(n, jax.tree.leaves(state.norm), strict=True)]
        kept = [(k / d).astype(k.dtype) for k, d in zip(n, f, strict=True)]
        limited = [x / d.astype(x.dtype) for x, d in zip(leaves, f, strict=True)]
        return structure.unflatten(limited), state._replace(norm=structure.unflatten(kept))

    return transformation("limit_norm_growth", init, update, complex_leaves=True)


register(limit_norm_growth, form="primitive", paper=PAPER, collectives="norms")
