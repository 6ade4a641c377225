"""Weight conditioning: the layer uses weights whose units have norm 1, so its matrix is better conditioned."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide
from gradkit.layers.axes import Axis, floating, readable, unit_axes, wide


def condition_weight(w: Any, *, axis: Axis = None, differentiate: bool = True) -> jax.Array:
    """Weights of which every output unit has norm 1.

    Equations, for every output unit j:

        w^_j = w_j / |w_j|

    An (inputs, outputs) kernel is multiplied by P = diag(1 / |w_j|) from the right. Among all diagonal matrices on that
    side, this one is within a factor sqrt(outputs) of the smallest condition number. Call it in the forward pass on the
    weights that are trained, or put it inside the chain as `decode` of `gk.reparameterize`.

    Args:
      w: the weights, dense (inputs, outputs) or a convolution (HWIO), which counts as the matrix (HWI, outputs).
      axis: axes that make up a unit. Default None: all but the last. Of stacked layers, leave the stack out.
      differentiate: whether the gradient flows through P, which is computed anew at every call. Default True; then
        this is weight normalization with g = 1.

    Returns:
      Weights of the shape and dtype of w. No state.

    Raises:
      ValueError: weights that are not floating point; axes they do not have; a unit of zeros, where values can be read
        (where they are traced it stays at zero, with a gradient of 0).

    Example:
      >>> print(condition_weight(jnp.array([[3.0, 0.0], [4.0, 0.1]])).round(3))
      [[0.6 0. ]
       [0.8 1. ]]

    Reference: Saratchandran, Wang, Lucey. Weight Conditioning for Smooth Optimization of Neural Networks. 2024, arXiv
    2409.03424. Whether the paper's gradient flows through P could not be verified. The bound is van der Sluis's, 1969.
    """
    checks.arrays(w=w)
    checks.axes(axis=axis)
    checks.switch(differentiate=differentiate)
    w = floating("w", w)
    own = unit_axes(w, axis)
    x = wide(w)
    square = jnp.sum(jnp.square(x), axis=own, keepdims=True)
    if readable(square) and bool((square == 0).any()):
        raise ValueError(
            f"condition_weight: every unit of w must have an entry that is not 0, got one of zeros in shape {w.shape}"
        )
    if not differentiate:
        square = jax.lax.stop_gradient(square)
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, jnp.ones_like(square))), square)
    return divide(x, jnp.broadcast_to(norm, x.shape)).astype(w.dtype)


register(
    condition_weight,
    form="layer",
    paper=Paper(
        "Weight Conditioning for Smooth Optimization of Neural Networks",
        "Saratchandran, Wang, Lucey",
        2024,
        "2409.03424",
    ),
    example={"w": jax.ShapeDtypeStruct((16, 8), "float32")},
)
