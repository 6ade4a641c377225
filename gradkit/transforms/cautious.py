"""Cautious updates: entries of an update that oppose the gradient are left out.

phi = 1[u g > 0] entrywise,  u the direction that an inner transformation makes of the gradient g
normalize="mean":   u phi / max(mean(phi), floor)        the mean over a tensor
normalize="count":  u phi n / (sum(phi) + 1)             n entries of a tensor
normalize=None:     u phi
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import inside, scalar, transformation
from gradkit.engine.norms import entries, packed_sums
from gradkit.leaves import Layout, names, resolve_layout
from gradkit.types import Scalar

NAME = "cautious"
NORMALIZATIONS = ("mean", "count", None)
PAPER = Paper("Cautious Optimizers: Improving Training with One Line of Code", "Liang et al.", 2024, "2411.16085")


@jax.jit
def _agrees(u: jax.Array, g: jax.Array) -> jax.Array:
    # Of the signs: a product of small numbers would be rounded to 0.
    return (jnp.sign(u) * jnp.sign(g) > 0).astype(g.dtype)


def cautious(
    inner: optax.GradientTransformation,
    *,
    normalize: str | None = "mean",
    floor: Scalar = 1e-3,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Sets the entries of a direction to 0 that point against the gradient, and rescales the others.

    Equations, with the direction u that `inner` makes of the gradient g, before weight decay and learning rate:

        phi = 1[u g > 0] entrywise
        normalize="mean":   u phi / max(mean(phi), floor)        the mean over a tensor
        normalize="count":  u phi n / (sum(phi) + 1)             n entries of a tensor
        normalize=None:     u phi

    Args:
      inner: the transformation that makes the direction, such as `scale_by_adam()`. Weight decay and learning rate come
        after this wrapper: a decay inside of it would be masked as well.
      normalize: how the entries that are left are rescaled: "mean" (default; the official AdamW and Muon), "count" (the
        paper and the official Lion), or None.
      floor: smallest mean of the mask that is divided by, in (0, 1]. Default 1e-3 (official code). With "mean".
      layout: which axes are stacks: every layer of a scan has its own mean.

    Returns:
      A transformation. State: that of `inner`. Collectives: one scalar per tensor where leaves are sharded, none with
      `normalize=None`.

    Raises:
      ValueError: an argument outside its range; complex leaves, which have no sign.

    Example:
      >>> tx = cautious(optax.trace(0.9), normalize=None)
      >>> g = jnp.array([1.0, 2.0])
      >>> _, state = tx.update(g, tx.init(g))
      >>> tx.update(jnp.array([1.0, -0.5]), state)[0].round(4).tolist()  # the momentum of the second opposes it
      [1.899999976158142, 0.0]

    Reference: Liang et al. Cautious Optimizers: Improving Training with One Line of Code. 2024, arXiv 2411.16085. The
    code of the AdamW and Muon of the same authors has "mean" with a floor; other copies add 1e-8 to the mean instead.
    """
    checks.layout(layout)
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize must be one of {NORMALIZATIONS}, got {normalize!r}; write normalize='mean'")
    checks.real("floor", floor, "(0, 1]")
    below = inside(inner)

    def init(params: optax.Params) -> Any:
        if normalize is not None:
            resolve_layout(layout, params, method=NAME, matters=True)
        return below.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        direction, state = below.update(updates, state, params, **extra)
        leaves, structure = jax.tree.flatten(updates)
        known, u = names(updates), jax.tree.leaves(direction)
        masks = [*map(_agrees, u, leaves)]
        factors: list[Any] = [None] * len(u)
        if normalize is not None:
            counts = [max(1, entries(name, "tensor", layout, g.shape)) for name, g in zip(known, leaves, strict=True)]

            def factor(kept: jax.Array, n: Any) -> jax.Array:
                if normalize == "count":
                    return n / (kept + 1)
                return 1 / jnp.maximum(kept / n, scalar(floor, kept))

            factors = packed_sums(known, "tensor", layout, masks, like=leaves).each(factor, counts)
        # Products, not a choice: what is no number stays none.
        kept = [x * m.astype(x.dtype) for x, m in zip(u, masks, strict=True)]
        new = [x if f is None else x * f.astype(x.dtype) for x, f in zip(kept, factors, strict=True)]
        return structure.unflatten(new), state

    return transformation(NAME, init, update)


register(
    cautious,
    form="wrapper",
    paper=PAPER,
    collectives="norms",
    wraps="direction",
    golden=("modern/cautious_adamw", "modern/cautious_lion"),
)
