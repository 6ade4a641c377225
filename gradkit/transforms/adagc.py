"""AdaGC: the gradient of every tensor is clipped by the running mean of its own norm.

t <= warmup_steps:  g_i <- g_i min(1, max_norm / |g|),          gamma_i <- min(gamma_i, |g_i|),  |g| over all leaves
afterwards:         g_i <- g_i min(1, relative gamma_i / |g_i|),  gamma_i <- beta gamma_i + (1 - beta) |g_i|
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment, real_dtype, scalar, transformation, wide_dtype
from gradkit.engine.norms import packed_norms
from gradkit.leaves import Layout, axes_of, map_named, names, resolve_layout, tensor_axes
from gradkit.types import Scalar

NAME = "adagc"


@jax.jit
def _one(n: jax.Array, gamma: jax.Array, warm: jax.Array, whole: Any, relative: Any, beta: Any) -> Any:
    """The factor of the gradient of one leaf, and its gamma, which is 0 as long as no norm has been seen."""
    none, finite = gamma == 0, jnp.isfinite(n) & (n > 0)
    limit = jnp.where(finite & ~none, scalar(relative, n) * gamma / jnp.where(finite, n, 1), jnp.ones_like(n))
    factor = jnp.where(warm, whole, jnp.minimum(limit, jnp.ones_like(n)))
    clipped = n * factor
    b = scalar(beta, n)
    new = jnp.where(warm, jnp.minimum(gamma, clipped), b * gamma + (1 - b) * clipped)
    return factor, jnp.where(finite, jnp.where(none, clipped, new), gamma)


class AdagcState(NamedTuple):
    """Number of updates made, and per tensor the running mean of its clipped norm (0: none seen)."""

    count: jax.Array
    gamma: Any


def adagc(
    *,
    beta: Scalar = 0.98,
    relative: Scalar = 1.05,
    max_norm: Scalar = 1.0,
    warmup_steps: int = 100,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Clips the gradient of every tensor to a multiple of the running mean of its norm; the first link of a chain.

    Equations, per tensor i, with the global norm |g| over all leaves:

        t <= warmup_steps:  g_i <- g_i min(1, max_norm / |g|),          gamma_i <- min(gamma_i, |g_i|)
        afterwards:         g_i <- g_i min(1, relative gamma_i / |g_i|),  gamma_i <- beta gamma_i + (1 - beta) |g_i|

    where gamma_i reads the norm of the clipped gradient, and is that norm at first. So gamma_i grows by at most a
    factor of 1 + (1 - beta) (relative - 1) per step. A norm that is 0 or not finite leaves gamma_i and the gradient as
    they are.

    Args:
      beta: decay of the mean of norms, in [0, 1). Default 0.98 (paper).
      relative: largest norm as a multiple of the mean, >= 1. Default 1.05 (paper).
      max_norm: global norm that gradients are clipped to during the warm-up, > 0. Default 1 (paper).
      warmup_steps: steps with clipping by the global norm, >= 1. Default 100 (paper).
      layout: which axes are stacks: every layer of a scan has its own mean.

    Returns:
      A transformation. State: one number per tensor, and a counter. Collectives: one scalar per tensor where leaves are
      sharded.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> tx = adagc(warmup_steps=1, max_norm=5.0, relative=1.5)
      >>> g = jnp.array([3.0, 4.0])
      >>> _, state = tx.update(g, tx.init(g))
      >>> print(tx.update(10 * g, state)[0].round(4))  # 1.5 times the norm before
      [4.5 6. ]

    Reference: Wang et al. AdaGC: Enhancing LLM Pretraining Stability via Adaptive Gradient Clipping. 2025, arXiv
    2502.11034. A tensor without a gradient in the warm-up does not get the limit 0, at which it would stay.
    """
    checks.layout(layout)
    checks.real("beta", beta, "[0, 1)")
    checks.real("relative", relative, "[1, inf)")
    checks.real("max_norm", max_norm, "(0, inf]")
    warmup_steps = checks.integer("warmup_steps", warmup_steps, 1)

    def init(params: optax.Params) -> AdagcState:
        resolve_layout(layout, params, method=NAME, matters=True)

        def per_tensor(name: str, x: Any) -> jax.Array:
            own = tensor_axes(axes_of(layout, name, x.shape), x.shape)
            return jnp.zeros([1 if a in own else n for a, n in enumerate(x.shape)], real_dtype(wide_dtype(x.dtype)))

        return AdagcState(jnp.zeros((), jnp.int32), map_named(per_tensor, params))

    def update(updates: Any, state: AdagcState, params: Any = None, **extra: Any) -> tuple[Any, AdagcState]:
        del params, extra
        warm = state.count < warmup_steps
        leaves, structure = jax.tree.flatten(updates)
        if not leaves:
            return updates, AdagcState(increment(state.count), state.gamma)
        norms = packed_norms(names(updates), "tensor", layout, leaves, large=(0,))
        (every,) = norms.vectors
        # The largest is taken out, so that no square overflows.
        largest = jnp.maximum(jnp.max(every, initial=0), jnp.finfo(every.dtype).tiny)
        norm = largest * jnp.sqrt(jnp.sum(jnp.square(every / largest)))
        finite = jnp.isfinite(norm) & (norm > 0)
        limit = scalar(max_norm, norm) / jnp.where(finite, norm, jnp.ones_like(norm))
        whole = jnp.where(finite, jnp.minimum(limit, jnp.ones_like(norm)), jnp.ones_like(norm))
        rows = zip(norms.own(norms.parts[0]), jax.tree.leaves(state.gamma), strict=True)
        made = [_one(n.astype(c.dtype), c, warm, whole.astype(c.dtype), relative, beta) for n, c in rows]
        new = [g * f.astype(g.dtype) for g, (f, _) in zip(leaves, made, strict=True)]
        gamma = structure.unflatten([c for _, c in made])
        return structure.unflatten(new), AdagcState(increment(state.count), gamma)

    return transformation(NAME, init, update, complex_leaves=True)


register(
    adagc,
    form="primitive",
    paper=Paper(
        "AdaGC: Enhancing LLM Pretraining Stability via Adaptive Gradient Clipping", "Wang et al.", 2025, "2502.11034"
    ),
    collectives="norms",
    golden=("modern/adagc",),
    example={"warmup_steps": 1},
)
