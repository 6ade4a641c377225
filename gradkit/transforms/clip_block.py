"""Clipping of single tensors and single coordinates."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar, stateless, transformation
from gradkit.engine.norms import packed_norms
from gradkit.leaves import Layout, names
from gradkit.transforms.clip import clip_by_global_norm
from gradkit.types import Scalar

PAPER = Paper(
    "Gradient Clipping Improves AdaGrad when the Noise Is Heavy-Tailed", "Chezhegov et al.", 2024, "2406.04443"
)
CLIPPINGS = ("global", "local", "elementwise")


def clip_coordinates(x: jax.Array, limit: jax.Array) -> jax.Array:
    """The coordinates clipped to [-limit, limit]; NaN stays NaN.

    >>> clip_coordinates(jnp.array([0.5, -3.0]), jnp.array(1.0)).tolist()
    [0.5, -1.0]
    """
    return jnp.minimum(jnp.maximum(x, -limit), limit)


def clip_by_block_norm(max_norm: Scalar, *, layout: Layout | None = None) -> optax.GradientTransformationExtraArgs:
    """Shortens the gradient of every tensor to a norm of at most `max_norm`.

    Equations, with the norm |g| of one tensor:

        g <- g min(1, max_norm / (|g| + 1e-6))

    Args:
      max_norm: largest norm of a tensor's gradient, in the gradient's units, > 0; infinity clips nothing.
      layout: which axes are stacks: every layer of a scan is clipped by itself.

    Returns:
      A transformation. No state. Collectives: one scalar per tensor where leaves are sharded.

    Raises:
      ValueError: `max_norm` not > 0.

    Example:
      >>> tx = clip_by_block_norm(1.0)
      >>> g = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.5])}
      >>> updates, _ = tx.update(g, tx.init(g))
      >>> [round(float(x), 4) for x in (*updates["a"], *updates["b"])]
      [0.6, 0.8, 0.5]

    Reference: Chezhegov et al. Gradient Clipping Improves AdaGrad when the Noise Is Heavy-Tailed. 2024, arXiv
    2406.04443. The 1e-6 is that of torch, on which the paper's code is built: clipped norms are smaller than `max_norm`
    by a factor of 1 - 1e-6 / |g|.
    """
    checks.layout(layout)
    checks.real("max_norm", max_norm, "(0, inf]")

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        leaves, structure = jax.tree.flatten(updates)
        norms = packed_norms(names(updates), "tensor", layout, leaves, large=(0,))
        factors = norms.each(lambda n: jnp.minimum(scalar(max_norm, n) / (n + 1e-6), jnp.ones_like(n)))
        return structure.unflatten([g * f.astype(g.dtype) for g, f in zip(leaves, factors, strict=True)]), state

    return transformation("clip_by_block_norm", stateless("clip_by_block_norm", layout), update, complex_leaves=True)


def _clip_by_value(limit: Any) -> optax.GradientTransformationExtraArgs:
    checks.real("max_norm", limit, "(0, inf]")

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        return jax.tree.map(lambda g: clip_coordinates(g, jnp.asarray(limit).astype(g.dtype)), updates), state

    return transformation("elementwise clipping", lambda params: optax.EmptyState(), update)


def clip_by(clipping: str, max_norm: Scalar, layout: Layout | None) -> optax.GradientTransformationExtraArgs:
    """The link of a method that can clip all leaves together ("global"), every tensor ("local") or every coordinate
    ("elementwise").

    >>> clip = clip_by("elementwise", 1.0, None)
    >>> g = jnp.array([0.5, -3.0])
    >>> clip.update(g, clip.init(g))[0].tolist()
    [0.5, -1.0]
    """
    checks.choice("clipping", clipping, CLIPPINGS)
    if clipping == "global":
        return clip_by_global_norm(max_norm)
    return clip_by_block_norm(max_norm, layout=layout) if clipping == "local" else _clip_by_value(max_norm)


register(clip_by_block_norm, form="primitive", paper=PAPER, collectives="norms", example={"max_norm": 1.0})
