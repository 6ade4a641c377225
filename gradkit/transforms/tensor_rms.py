"""The root mean square of a tensor: as a bound of its update, and as the unit in which its parameters move.

RMS(a) = |a| / sqrt(number of entries)                 of a tensor; every layer of a stack is one
clip_by_tensor_rms       u <- u / max(1, RMS(u) / threshold)
scale_by_param_rms       u <- u clip(RMS(x), floor, ceiling)
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import register
from gradkit.engine.core import scalar, stateless, transformation
from gradkit.engine.norms import entries, packed_norms
from gradkit.leaves import Layout, names
from gradkit.transforms.factored_rms import PAPER
from gradkit.types import PyTree, Scalar


def tensor_rms(tree: PyTree, layout: Layout | None, function: Any, *, large: bool = False) -> list[jax.Array]:
    """A function of the root mean square of every tensor, per leaf, as it broadcasts against what this device has.

    >>> tensor_rms({"w": jnp.array([3.0, 4.0])}, None, lambda r: 2 * r**2)[0].round(4).tolist()
    [25.0]
    """
    leaves, known = jax.tree.leaves(tree), names(tree)
    if not leaves:
        return []
    norms = packed_norms(known, "tensor", layout, leaves, large=(0,) if large else ())
    counts = [max(1, entries(name, "tensor", layout, x.shape)) for name, x in zip(known, leaves, strict=True)]
    return norms.each(lambda n, root: function(n / scalar(root, n)), [math.sqrt(n) for n in counts])


def clip_by_tensor_rms(
    threshold: Scalar = 1.0, *, layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Scales the update of a tensor down to a root mean square of at most `threshold`.

    Equations, per tensor:

        u <- u / max(1, RMS(u) / threshold),      RMS(u) = |u| / sqrt(number of entries)

    Args:
      threshold: largest root mean square, > 0; infinity clips nothing. Default 1 (Adafactor's paper).
      layout: which axes are stacks: every layer of a scan has its own.

    Returns:
      A transformation without state. Collectives: one scalar per tensor where leaves are sharded.

    Raises:
      ValueError: a threshold outside its range.

    Example:
      >>> tx = clip_by_tensor_rms(1.0)
      >>> u = {"a": jnp.array([6.0, 8.0]), "b": jnp.array([0.5])}
      >>> updates, _ = tx.update(u, tx.init(u))  # RMS 5 sqrt(2), and 0.5
      >>> [x.round(4).tolist() for x in updates.values()]
      [[0.8485000133514404, 1.1313999891281128], [0.5]]

    Reference: Shazeer, Stern. Adafactor: Adaptive Learning Rates with Sublinear Memory Cost. 2018, arXiv 1804.04235.
    optax's `clip_by_block_rms` takes a stack of layers for one tensor.
    """
    checks.layout(layout)
    checks.real("threshold", threshold, "(0, inf]")
    name = "clip_by_tensor_rms"

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra

        def factor(r: jax.Array) -> jax.Array:
            return jnp.maximum(r / scalar(threshold, r), jnp.ones_like(r))

        leaves, structure = jax.tree.flatten(updates)
        factors = tensor_rms(updates, layout, factor, large=True)
        return structure.unflatten([u / f.astype(u.dtype) for u, f in zip(leaves, factors, strict=True)]), state

    return transformation(name, stateless(name, layout), update, complex_leaves=True)


def scale_by_param_rms(
    *, floor: Scalar = 1e-3, ceiling: Scalar | None = None, layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the update of a tensor by the root mean square of its parameters, so that a rate is a relative one.

    Equations, per tensor:

        u <- u min(max(RMS(x), floor), ceiling),      RMS(x) = |x| / sqrt(number of entries)

    Args:
      floor: smallest factor, in the parameters' units, >= 0: what lets zero parameters move. Default 1e-3 (Adafactor's
        paper, where it is eps_2).
      ceiling: largest factor, > 0, at least `floor`. Default None: no bound; t5x has one.
      layout: which axes are stacks: every layer of a scan has its own.

    Returns:
      A transformation that needs `params`, without state. Collectives: one scalar per tensor where leaves are sharded.

    Raises:
      ValueError: a bound outside its range, or a floor above the ceiling.

    Example:
      >>> tx = scale_by_param_rms()
      >>> x = {"a": jnp.array([3.0, -3.0]), "b": jnp.array(0.0)}
      >>> updates, _ = tx.update(jax.tree.map(jnp.ones_like, x), tx.init(x), x)
      >>> [x.round(4).tolist() for x in updates.values()]
      [[3.0, 3.0], 0.0010000000474974513]

    Reference: Shazeer, Stern. Adafactor: Adaptive Learning Rates with Sublinear Memory Cost. 2018, arXiv 1804.04235.
    optax's `scale_by_param_block_rms` takes a stack of layers for one tensor.
    """
    checks.layout(layout)
    checks.real("floor", floor, "[0, inf)")
    checks.real("ceiling", ceiling, "(0, inf]", optional=True)
    low, high = checks.readable(floor), checks.readable(ceiling)
    if low is not None and high is not None and low > high:
        raise ValueError(
            f"floor must be in [0, ceiling], got {floor} above {ceiling} in scale_by_param_rms: give a lower floor, or "
            "ceiling=None for no bound"
        )
    name = "scale_by_param_rms"

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        leaves, structure = jax.tree.flatten(updates)
        factors = tensor_rms(params, layout, lambda r: bounded(r, floor, ceiling))
        return structure.unflatten([u * f.astype(u.dtype) for u, f in zip(leaves, factors, strict=True)]), state

    return transformation(name, stateless(name, layout), update, needs_params=True, complex_leaves=True)


def bounded(r: jax.Array, floor: Any, ceiling: Any = None) -> jax.Array:
    """A root mean square of parameters between its bounds.

    >>> bounded(jnp.array([0.0, 3.0]), 0.5, 2.0).tolist()
    [0.5, 2.0]
    """
    r = jnp.maximum(r, scalar(floor, r))
    return r if ceiling is None else jnp.minimum(r, scalar(ceiling, r))


register(
    clip_by_tensor_rms,
    form="primitive",
    paper=PAPER,
    collectives="norms",
    golden=("modern/adafactor", "modern/adafactor_stack"),
)
register(
    scale_by_param_rms,
    form="primitive",
    paper=PAPER,
    collectives="norms",
    golden=("modern/adafactor", "modern/adafactor_stack"),
)
