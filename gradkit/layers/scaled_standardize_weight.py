"""Scaled weight standardization, for networks without normalization layers."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, scalar
from gradkit.layers.axes import Axis, floating, unit_axes, wide
from gradkit.types import Scalar

PAPER = Paper(
    "High-Performance Large-Scale Image Recognition Without Normalization", "Brock et al.", 2021, "2102.06171"
)
# 1 / (standard deviation of the activation of a standard normal number), from samples of the paper's authors.
GAINS = {
    "celu": 1.270926833152771,
    "elu": 1.2716004848480225,
    "gelu": 1.7015043497085571,
    "identity": 1.0,
    "leaky_relu": 1.70590341091156,
    "relu": 1.7139588594436646,
    "sigmoid": 4.803835391998291,
    "silu": 1.7881293296813965,
    "softplus": 1.9203323125839233,
    "tanh": 1.5939117670059204,
}


def scaled_standardize_weight(w: Any, gain: Scalar = 1.0, *, eps: Scalar = 1e-4, axis: Axis = None) -> jax.Array:
    """Weights of every output unit with mean 0 and norm `gain`.

    Equations, per output unit of n weights:

        W^ = gain (w - mean(w)) / sqrt(max(n var(w), eps))

    The weights of a unit have mean 0 and Euclidean norm `gain`. With the activation multiplied by its `nf_gain`, inputs
    of variance 1 give outputs of variance 1. Call it in the forward pass on the weights that are trained, or put it
    inside the chain as `decode` of `gk.reparameterize`.

    Args:
      w: the weights, dense (inputs, outputs) or a convolution (HWIO).
      gain: factor of a unit: a number, or one per unit, trained from 1. Default 1.
      eps: lower bound of n var(w), >= 0. Default 1e-4 (official code). With 0, equal weights give 0.
      axis: axes that make up a unit. Default None: all but the last. Of stacked layers, leave the stack out.

    Returns:
      Weights of the shape and dtype of w. No state.

    Raises:
      ValueError: weights that are not floating point; axes they do not have; a gain whose shape fits no unit; a
        negative or NaN `eps`.

    Example:
      >>> print(scaled_standardize_weight(jnp.array([[-1.0, 0.0, 1.0]]).T, 2.0).T.round(3))  # of norm 2
      [[-1.414  0.     1.414]]

    Reference: Brock et al. High-Performance Large-Scale Image Recognition Without Normalization. 2021, arXiv
    2102.06171; first in Characterizing Signal Propagation to Close the Performance Gap in Unnormalized ResNets. 2021,
    arXiv 2101.08692. timm adds eps to the variance instead, which differs from this by some per cent.
    """
    checks.arrays(w=w, gain=gain)
    checks.axes(axis=axis)
    w = floating("w", w)
    checks.real("eps", eps, "[0, inf)")
    own = unit_axes(w, axis)
    x = wide(w)
    centred = x - jnp.mean(x, axis=own, keepdims=True) if x.size else x
    square = jnp.sum(jnp.square(centred), axis=own, keepdims=True)  # n var
    floor = jnp.maximum(square, jnp.broadcast_to(scalar(jnp.asarray(eps), x), square.shape))
    # The square root has no derivative at 0, where the numerator is 0 too.
    root = jnp.where(floor > 0, jnp.sqrt(jnp.where(floor > 0, floor, jnp.ones_like(floor))), jnp.zeros_like(floor))
    factor = divide(jnp.broadcast_to(_per_unit(gain, square), root.shape), root)
    return (centred * factor).astype(w.dtype)


def _per_unit(gain: Any, units: jax.Array) -> jax.Array:
    """The gain along the axes of the weights; a number applies to all units."""
    if isinstance(gain, int | float):
        checks.real("gain", gain)
    g = jnp.asarray(gain, None if hasattr(gain, "dtype") else units.dtype)
    floating("gain", g)
    if g.ndim == 0:
        return g.astype(units.dtype).reshape((1,) * units.ndim)
    if g.size != units.size:
        raise ValueError(f"gain must be a number or have one entry per unit, {units.size}, got shape {g.shape}")
    return g.astype(units.dtype).reshape(units.shape)


def nf_gain(name: str) -> float:
    """The factor of an activation with which inputs from a standard normal distribution give outputs of variance 1.

    Equations:

        nf_gain = 1 / sqrt(Var f(z)),    z ~ N(0, 1),    f the activation

    Args:
      name: "celu", "elu", "gelu" (with tanh, as `jax.nn.gelu`), "identity", "leaky_relu", "relu", "sigmoid", "silu",
        "softplus" or "tanh".

    Returns:
      The factor of the activation's output.

    Raises:
      ValueError: another name.

    Example:
      >>> nf_gain("relu")  # sqrt(2 / (1 - 1 / pi)) = 1.7129 but for the noise of the authors' sample
      1.7139588594436646

    Reference: Brock et al. High-Performance Large-Scale Image Recognition Without Normalization. 2021, arXiv
    2102.06171. The numbers are the published ones, which were sampled, and are within a thousandth of the integrals.
    """
    checks.choice("name", name, GAINS)
    return GAINS[name]


register(
    scaled_standardize_weight,
    form="layer",
    paper=PAPER,
    golden=("large_batch/scaled_weight_standardization",),
    example={"w": jax.ShapeDtypeStruct((16, 8), "float32")},
    notes="inside a chain: gk.reparameterize(inner, encode, decode=scaled_standardize_weight on every kernel)",
)
register(nf_gain, form="function", paper=PAPER, example={"name": "relu"})
