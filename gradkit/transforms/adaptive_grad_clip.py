"""Adaptive gradient clipping: no output unit's gradient is longer than a share of its weights.

limit_j = clipping max(|w_j|, eps)
g_j <- g_j limit_j / max(|g_j|, 1e-6)   where |g_j| > limit_j,   for every output unit j
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import abs_sq, scalar, transformation, wide_dtype
from gradkit.engine.norms import BLOCKS, block_axes, packed_norms
from gradkit.leaves import Layout, check_mask, check_mask_form, names, resolve_layout, resolve_mask
from gradkit.types import Mask, Scalar


def block_norm(
    x: Any, block: str | int = "tensor", *, name: str = "", axis_name: Any = None, layout: Layout | None = None
) -> jax.Array:
    """The Euclidean norm of every block of one array: what trust ratios and unit-wise clipping are made of.

    Args:
      x: floating point or complex, of any rank.
      block: "tensor", one norm for each tensor of a stack; "unit", one for each output unit; or a number k, of leading
        axes that enumerate separate tensors. Default "tensor".
      name: the name of the leaf, `a/b/c`, which the layout goes by. Default "": the shape alone says what its axes are.
      axis_name: axes of `vmap` or `shard_map` that the array is cut over WITHIN its blocks: squares are summed over
        them. Never those that all members have the same array of. Default None.
      layout: which axes are stacks and outputs.

    Returns:
      Norms in float32 or wider, with length 1 along the axes of a block, so that they broadcast against `x`.
      Collectives: one number per block where `axis_name` is given.

    Raises:
      ValueError: an unknown block, more leading axes than there are, integers.

    Example:
      >>> x = jnp.array([[3.0, 0.0], [4.0, 2.0]])
      >>> block_norm(x, "unit").tolist(), block_norm(x, 1).tolist(), round(float(block_norm(x)[0, 0]), 4)
      ([[5.0, 2.0]], [[3.0], [4.4721360206604]], 5.3852)

    Reference: the unit-wise norm of Brock et al. High-Performance Large-Scale Image Recognition Without Normalization.
    2021, arXiv 2102.06171; the layer-wise one of LARS.
    """
    checks.arrays(x=x)
    checks.axis_name("axis_name", axis_name)
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise ValueError(f"x must be floating point, got {x.dtype}")
    if isinstance(block, str):
        checks.choice("block", block, BLOCKS)
        axes = block_axes(name, x.shape, block, layout)
    else:
        leading = checks.integer("block", block)
        if leading > x.ndim:
            raise ValueError(f"block must be at most the rank of x, {x.ndim}, got {block}")
        axes = tuple(range(leading, x.ndim))
    square = jnp.sum(abs_sq(x.astype(wide_dtype(x.dtype))), axis=axes, keepdims=True)
    return jnp.sqrt(square if axis_name is None else jax.lax.psum(square, axis_name))


def adaptive_grad_clip(
    clipping: Scalar = 0.01, *, eps: Scalar = 1e-3, mask: Mask | None = None, layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Clips the gradient of every output unit relative to the norm of its weights.

    Put it first in the chain, on raw gradients, before decay and momentum:
    `optax.chain(gk.adaptive_grad_clip(0.01), gk.sgd(0.1, momentum=0.9, nesterov=True))`.

    Args:
      clipping: largest ratio of the two norms, > 0. Default 0.01 (paper, at batch 4096).
      eps: smallest norm weights are taken to have, > 0, so that units at zero can start. Default 1e-3 (paper).
      mask: which leaves are clipped. Default all; the paper leaves out the final linear layer.
      layout: what a unit is. By default: of a dense kernel (inputs, outputs) a column; of a convolution
        (HWIO) a filter; of an attention kernel (inputs, heads, features) one feature of one head, of its
        output kernel (heads, features, outputs) one output; of a vector the whole leaf; of other leaves
        everything over all but the last axis; and stacked layers apart.

    Returns:
      A transformation that needs `params`. No state. Collectives: one all-reduce of two scalars per unit.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = adaptive_grad_clip(0.5)
      >>> w, g = jnp.ones((4, 2)), jnp.ones((4, 2)) * jnp.array([[0.25, -8.0]])
      >>> tx.update(g, tx.init(w), w)[0][0].tolist()  # the second column was too long
      [0.25, -0.5]

    Reference: Brock et al. High-Performance Large-Scale Image Recognition Without Normalization. 2021, arXiv
    2102.06171. optax's link has one `axis` for the whole tree and clips rank-3 leaves over axis 0 alone.
    """
    checks.layout(layout)
    checks.real("clipping", clipping, "(0, inf]")
    checks.real("eps", eps, "(0, inf)")
    check_mask_form(mask=mask)

    def init(params: optax.Params) -> optax.EmptyState:
        resolve_layout(layout, params, method="adaptive_grad_clip", matters=True)
        check_mask(mask, params, method="adaptive_grad_clip", argument="mask", instead="mask=False")
        return optax.EmptyState()

    def factors(n_w: jax.Array, n_g: jax.Array) -> jax.Array:
        """What every unit's gradient is multiplied by."""
        limit = jnp.maximum(n_w, scalar(eps, n_w)) * scalar(clipping, n_w)
        long = n_g > limit
        return jnp.where(long, limit / jnp.maximum(n_g, 1e-6), jnp.ones_like(n_g))

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, optax.EmptyState]:
        del extra
        g, structure = jax.tree.flatten(updates)
        w, known, clipped = jax.tree.leaves(params), names(updates), jax.tree.leaves(resolve_mask(mask, updates))
        chosen = [i for i, x in enumerate(g) if clipped[i] and x.size]
        norms = packed_norms(
            [known[i] for i in chosen], "unit", layout, [w[i] for i in chosen], [g[i] for i in chosen], large=(1,)
        )
        for i, factor in zip(chosen, norms.each(factors), strict=True):
            g[i] = g[i] * factor
        return structure.unflatten(g), state

    return transformation("adaptive_grad_clip", init, update, needs_params=True)


PAPER = Paper(
    "High-Performance Large-Scale Image Recognition Without Normalization", "Brock et al.", 2021, "2102.06171"
)
register(
    adaptive_grad_clip,
    form="primitive",
    paper=PAPER,
    collectives="norms",
    golden=("large_batch/agc",),
    variants={"agc_nesterov": Race(1e-1, {"clipping": 0.01}, before="nesterov")},
)
register(block_norm, form="layer", paper=PAPER)
