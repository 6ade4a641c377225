"""The polar factor of a matrix from the Gram matrix of one of its sides.

outputs    O = X (X^T X)^(-1/2)       right for matrices with few columns
inputs     O = (X X^T)^(-1/2) X       right for matrices with few rows
"""

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.linalg.one_by_one import one_by_one


def one_sided_polar(x: jax.Array, *, side: str = "outputs", center: bool = False) -> jax.Array:
    """The polar factor of every matrix of a batch, by an eigendecomposition of one side.

        O = X (X^T X)^(-1/2)     "outputs";      O = (X X^T)^(-1/2) X     "inputs"

    For tables and routers with one short side, where a singular value decomposition of the whole costs more. Directions
    whose eigenvalue is within rounding of 0 (d times finfo.eps times the largest) become 0. On a side of full rank it
    is the polar factor.

    Args:
      x: (..., inputs, outputs), real.
      side: "outputs" or "inputs": whose Gram matrix is taken. Default "outputs".
      center: whether the mean over the other side (the vocabulary of a table) is subtracted before and after. Default
        False.

    Returns:
      An array like x.

    Raises:
      ValueError: fewer than two axes; an unknown side.

    Example:
      >>> print(one_sided_polar(jnp.array([[3.0, 0.0], [0.0, -4.0], [0.0, 0.0]])).round(3) + 0.0)
      [[ 1.  0.]
       [ 0. -1.]
       [ 0.  0.]]

    Reference: Lau, Long, Su. PolarGrad: A Class of Matrix-Gradient Optimizers from a Unifying Preconditioning
    Perspective. 2025, arXiv 2505.21799, and its one-sided form in NVIDIA's Emerging-Optimizers.
    """
    checks.arrays(x=x)
    checks.choice("side", side, ("outputs", "inputs"))
    checks.switch(center=center)
    if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"one_sided_polar needs real matrices (..., inputs, outputs), got {x.dtype}{list(x.shape)}")
    if x.size == 0:
        return x
    y = x if side == "outputs" else jnp.swapaxes(x, -1, -2)
    y = y.reshape(-1, *y.shape[-2:])

    def centered(y: jax.Array) -> jax.Array:
        return y - jnp.mean(y, axis=1, keepdims=True) if center else y

    y = centered(y)
    largest = jnp.max(jnp.abs(y), axis=(1, 2), keepdims=True)
    y = y / jnp.where(largest > 0, largest, jnp.ones_like(largest))
    gram = jnp.matmul(jnp.swapaxes(y, 1, 2), y, precision="highest")
    values, vectors = one_by_one(jnp.linalg.eigh, gram)
    least = jnp.max(values, axis=1, keepdims=True) * (values.shape[1] * float(jnp.finfo(x.dtype).eps))
    kept = values > jnp.maximum(least, 0)
    roots = jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, values, 1)), 0)
    inverse = jnp.matmul(vectors * roots[:, None, :], jnp.swapaxes(vectors, 1, 2), precision="highest")
    out = centered(jnp.matmul(y, inverse, precision="highest"))
    out = out.reshape(*x.shape[:-2], *out.shape[1:])
    return out if side == "outputs" else jnp.swapaxes(out, -1, -2)
