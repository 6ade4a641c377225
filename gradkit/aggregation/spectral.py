"""The eigenvalues of a Gramian that are more than rounding, and what is inverted on their eigenvectors alone."""

import jax
import jax.numpy as jnp
import numpy as np


def kept_eigenpairs(G: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Eigenvalues in ascending order, eigenvectors in columns, and which eigenvalues are above m eps of the largest.

    They are computed in float64 where that is enabled; eps is that of the dtype of G, whose entries are rounded to it.
    """
    wide = jax.dtypes.canonicalize_dtype(np.float64)
    values, vectors = jnp.linalg.eigh(G.astype(wide))
    return values, vectors, values > values[-1] * (len(G) * float(jnp.finfo(G.dtype).eps))


def solve_kept(G: jax.Array, b: jax.Array) -> jax.Array:
    """The pseudo-inverse of G times b.

    >>> solve_kept(jnp.array([[4.0, 0.0], [0.0, 0.0]]), jnp.array([2.0, 1.0])).tolist()
    [0.5, 0.0]
    """
    values, vectors, kept = kept_eigenpairs(G)
    along = jnp.matmul(vectors.T, b.astype(values.dtype), precision="highest")
    along = jnp.where(kept, along / jnp.where(kept, values, jnp.ones_like(values)), jnp.zeros_like(along))
    return jnp.matmul(vectors, along, precision="highest").astype(G.dtype)
