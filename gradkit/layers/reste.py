"""ReSTE: the sign of weights, with a gradient that goes from that of the identity to that of the sign."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar, widen
from gradkit.engine.matching import check_match
from gradkit.layers.axes import floating, wide
from gradkit.types import PyTree, Scalar, ScalarOrSchedule

PAPER = Paper(
    "Estimator Meets Equilibrium Perspective: A Rectified Straight Through Estimator for Binary Neural Networks "
    "Training",
    "Wu et al.",
    2023,
    "2308.06689",
)


@jax.custom_vjp
def _sign(x: jax.Array, power: jax.Array, clip: jax.Array, chord: jax.Array) -> jax.Array:
    del power, clip, chord
    return jnp.sign(x)


def _backward(kept: Any, c: jax.Array) -> tuple[Any, None, None, None]:
    x, o, clip, chord = kept
    size = jnp.abs(x)
    near = size <= chord
    steepest = jnp.power(chord, 1 / o) / chord
    slope = jnp.power(jnp.where(near, jnp.ones_like(size), size), (1 - o) / o) / o
    factor = jnp.where(near, steepest, jnp.where(size <= clip, slope, jnp.zeros_like(size)))
    return c * factor, None, None, None


_sign.defvjp(lambda x, *rest: (_sign(x, *rest), (x, *rest)), _backward)


def reste_sign(x: Any, power: ScalarOrSchedule, *, clip: Scalar = 1.5, chord: Scalar = 0.1) -> jax.Array:
    """The sign of every entry, with the derivative of a root, sign(x) |x|^(1/o), in its place.

        y = sign(x), 0 of 0
        dL/dx = dL/dy times    chord^(1/o) / chord            |x| <= chord, where a chord replaces the root
                               (1/o) |x|^((1-o)/o)            chord < |x| <= clip
                               0                              clip < |x|
        o the power: 1 is the straight-through estimator that is clipped at `clip`; a large one is near the sign itself

    Binary weights of a layer in the released code: reste_sign(w, o) mean|w|, with the mean over the tensor.

    Args:
      x: floating point.
      power: o, >= 1; a number, or traced: `gk.schedules.reste_power` raises it over a run.
      clip: largest |x| with a gradient, > 0. Default 1.5 (official code).
      chord: up to where a chord replaces the root, whose slope is infinite at 0; > 0 and at most `clip`. Default
        0.1 (official code).

    Returns:
      An array like `x`. Reverse mode only.

    Raises:
      ValueError: an argument outside its range; x that is not floating point.

    Example:
      >>> import jax
      >>> jax.vmap(jax.grad(lambda x: reste_sign(x, 2.0)))(jnp.array([0.01, 0.25, 2.0])).round(3).tolist()
      [3.1619999408721924, 1.0, 0.0]

    Reference: Wu et al. Estimator Meets Equilibrium Perspective: A Rectified Straight Through Estimator for Binary
    Neural Networks Training. 2023, arXiv 2308.06689.
    """
    checks.arrays(x=x)
    checks.real("power", power, "[1, inf)")
    checks.real("clip", clip, "(0, inf)")
    checks.real("chord", chord, "(0, inf)")
    low, high = checks.readable(chord), checks.readable(clip)
    if low is not None and high is not None and low > high:
        raise ValueError(f"chord must be at most clip={high}, got {low}; write chord={high} or a larger clip")
    x = floating("x", x)
    w = wide(x)
    power, clip, chord = (jnp.asarray(scalar(value, w), w.dtype) for value in (power, clip, chord))
    return _sign(w, power, clip, chord).astype(x.dtype)


def reste_indicators(weights: Any, grads: PyTree, power: Scalar) -> tuple[jax.Array, jax.Array]:
    """How far the estimator is from the sign, and how unsteady its gradients are: what the power trades.

        error = sum over leaves of |sign(w) |w|^(1/o) - sign(w)|_2
        stability = sum over leaves of the sample variance of |g| over their entries

    A larger power o has a smaller error, and less steady gradients.

    Args:
      weights: tree of the weights that are made binary.
      grads: tree like it, of their gradients.
      power: o, >= 1; a number, or traced.

    Returns:
      (error, stability), scalars in float32 or wider. A leaf of one entry has no variance, and adds 0.

    Raises:
      ValueError: a power below 1; trees that do not match.

    Example:
      >>> error, stability = reste_indicators(jnp.array([0.25, 1.0]), jnp.array([1.0, -3.0]), 2.0)
      >>> float(error), float(stability)  # 1 - sqrt(0.25); the variance of 1 and 3
      (0.5, 2.0)

    Reference: Wu et al. Estimator Meets Equilibrium Perspective: A Rectified Straight Through Estimator for Binary
    Neural Networks Training. 2023, arXiv 2308.06689.
    """
    checks.arrays(weights=weights, grads=grads)
    checks.real("power", power, "[1, inf)")
    check_match("reste_indicators", grads, weights)
    total = jnp.zeros((), jnp.result_type(float))
    error = stability = total
    for w, g in zip(jax.tree.leaves(widen(weights)), jax.tree.leaves(widen(grads)), strict=True):
        size = jnp.abs(w)
        root = jnp.power(size, 1 / jnp.asarray(scalar(power, w), w.dtype))
        error += jnp.linalg.norm((jnp.sign(w) * (root - 1)).reshape(-1)).astype(total.dtype)
        if g.size > 1:
            stability += jnp.var(jnp.abs(g), ddof=1).astype(total.dtype)
    return error, stability


register(
    reste_sign,
    form="layer",
    paper=PAPER,
    golden=("estimators/reste",),
    example={"x": jax.ShapeDtypeStruct((8, 4), "float32"), "power": 2.0},
)
register(
    reste_indicators,
    form="function",
    paper=PAPER,
    example={
        "weights": jax.ShapeDtypeStruct((8, 4), "float32"),
        "grads": jax.ShapeDtypeStruct((8, 4), "float32"),
        "power": 2.0,
    },
)
