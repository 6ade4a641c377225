"""How much of the gradient is in the subspace of the largest curvatures.

V = the eigenvectors of the k largest eigenvalues of the Hessian, k the number of classes

    fraction(g) = |V^T g|^2 / |g|^2                      between 0 and 1; of a random g it is k / d
    overlap(V, V') = |V^T V'|_F^2 / k                    between 0 and 1; of random subspaces it is k / d
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.diagnostics.spectral_density import checked_steps
from gradkit.engine.core import widen
from gradkit.engine.keys import as_key
from gradkit.engine.krylov import combination, inner, iterate, minus, start_vector, tridiagonal, unit, wide_product
from gradkit.engine.lazy_gradients import inner_products
from gradkit.engine.matching import check_leaves, check_match
from gradkit.engine.norms import global_norm
from gradkit.types import Key

PAPER = Paper("Gradient Descent Happens in a Tiny Subspace", "Gur-Ari, Roberts, Dyer", 2018, "1812.04754")


class Eigenpairs(NamedTuple):
    """The largest eigenvalues of an operator.

    Attributes:
      values: (k,), in descending order.
      vectors: a tree like the parameters with a leading axis of length k: orthonormal, in the order of the values.
      residuals: (k,), |H u - lambda u|: so near to an eigenvalue of H each value is.
    """

    values: jax.Array
    vectors: Any
    residuals: jax.Array


def top_eigenpairs(
    hvp_fn: Callable[[Any], Any], key: Key, like: Any, k: int, *, steps: int | None = None
) -> Eigenpairs:
    """The k largest eigenvalues of a Hessian and their eigenvectors, by Lanczos steps.

        T = V^T H V of the Lanczos vectors V;   T s = lambda s,   u = V s

    The largest in value: power iteration would find the largest in magnitude, which may be the most negative.

    Args:
      hvp_fn: vector tree -> product with the Hessian (or any symmetric operator); the same operator at every call, as
        `gk.diagnostics.accumulated_hvp` over fixed microbatches is.
      key: a typed key or an integer, for the first vector.
      like: a tree of the shapes and shardings of the vectors: the parameters.
      k: how many, from 1 to the number of parameters.
      steps: products with the Hessian, from k to the number of parameters; `steps` words per parameter are kept.
        Default None: 2 k + 10, or all. More steps make residuals smaller.

    Returns:
      `Eigenpairs`, in float32 or wider; vectors are sharded like the parameters. The sign of a vector has no meaning.
      Residuals take k more products. Collectives: vectors of scalars where leaves are sharded.

    Raises:
      ValueError: an argument outside its range, a product whose tree is another, leaves that are not real.

    Example:
      >>> values = jnp.array([1.0, 3.0, -9.0, 3.0])
      >>> found = jax.jit(lambda key: top_eigenpairs(lambda v: values * v, key, values, 2))(jax.random.key(0))
      >>> [round(float(x), 3) for x in found.values], found.vectors.shape
      ([3.0, 3.0], (2, 4))

    Reference: Gur-Ari, Roberts, Dyer. Gradient Descent Happens in a Tiny Subspace. 2018, arXiv 1812.04754. Where the
    vectors are exhausted, as they are with multiple eigenvalues, the steps go on from a new random vector, so that
    every eigenvalue is found as often as it is there.
    """
    checks.arrays(like=like)
    checks.function("hvp_fn", hvp_fn)
    k = checks.integer("k", k, 1)
    size = checked_steps("top_eigenpairs", like, None, 2**62)
    if k > size:
        raise ValueError(f"top_eigenpairs: k must be at most the {size} parameters, got {k}; write k={size}")
    steps = checked_steps("top_eigenpairs", like, steps, 2 * k + 10)
    if steps < k:
        raise ValueError(f"top_eigenpairs: steps must be at least k={k}, got {steps}; write steps={min(2 * k, size)}")
    product = wide_product("top_eigenpairs", hvp_fn, like)
    key = as_key(key)
    start = start_vector(key, widen(like), "gaussian")
    found = iterate(product, start, steps, restart_key=jax.random.fold_in(key, 1))
    values, small = jnp.linalg.eigh(tridiagonal(found.alphas, found.betas[:-1]))
    values, small = values[::-1][:k], small[:, ::-1][:, :k]
    vectors = combination(small, found.basis)

    def residual(pair: tuple[jax.Array, Any]) -> jax.Array:
        value, u = pair
        return global_norm(minus(product(u), jax.tree.map(lambda x: value.astype(x.dtype) * x, u)))

    return Eigenpairs(values, vectors, jax.lax.map(residual, (values, vectors)))


def _check_vectors(method: str, name: str, vectors: Any) -> int:
    """The number of vectors in a stack."""
    check_leaves(method, vectors, complex_leaves=False)
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(vectors)}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        raise ValueError(
            f"{method}: {name} must be a tree with the same leading axis on every leaf, one entry per vector, got "
            f"leading axes {sorted(lengths)}; write top_eigenpairs(...).vectors"
        )
    return int(next(iter(lengths))[0])


def gradient_subspace_fraction(vectors: Any, gradient: Any) -> jax.Array:
    """The share of a gradient's square that is in a subspace.

        f = |V^T g|^2 / |g|^2

    Take V and g of the same fixed data; the gradient of a minibatch has noise outside the subspace, and is another
    number.

    Args:
      vectors: V, a tree with a leading axis of length k, orthonormal: `gk.diagnostics.top_eigenpairs(...).vectors` with
        k the number of classes (paper).
      gradient: g, a tree like the parameters.

    Returns:
      A number from 0 to 1, in float32 or wider; 0 of a gradient that is 0. Collectives: k + 1 scalars.

    Raises:
      ValueError: leaves that are not real, or a gradient that does not match the vectors.

    Example:
      >>> V = jnp.eye(3)[:2]
      >>> round(float(gradient_subspace_fraction(V, jnp.array([3.0, 0.0, 4.0]))), 4)
      0.36

    Reference: Gur-Ari, Roberts, Dyer. Gradient Descent Happens in a Tiny Subspace. 2018, arXiv 1812.04754.
    """
    checks.arrays(vectors=vectors, gradient=gradient)
    _check_vectors("gradient_subspace_fraction", "vectors", vectors)
    check_leaves("gradient_subspace_fraction", gradient, complex_leaves=False)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)), vectors)
    check_match("gradient_subspace_fraction", gradient, like)
    g = unit(widen(gradient))
    shares = jax.vmap(lambda row: inner(row, g))(widen(vectors))
    return jnp.sum(jnp.square(shares))


def subspace_overlap(vectors: Any, others: Any) -> jax.Array:
    """How much of one subspace is in another of the same dimension.

        overlap = (1 / k) sum_i |V^T v'_i|^2 = |V^T V'|_F^2 / k

    Args:
      vectors: V, a tree with a leading axis of length k, orthonormal.
      others: V', a tree like it, such as the eigenvectors some steps later.

    Returns:
      A number from 0 to 1, in float32 or wider: 1 of the same subspace in any basis, k / d of random ones in d
      dimensions. Collectives: k^2 scalars.

    Raises:
      ValueError: leaves that are not real, or trees that do not match, also in k.

    Example:
      >>> V, W = jnp.eye(3)[:2], jnp.eye(3)[1:]
      >>> float(subspace_overlap(V, W))
      0.5

    Reference: Gur-Ari, Roberts, Dyer. Gradient Descent Happens in a Tiny Subspace. 2018, arXiv 1812.04754.
    """
    checks.arrays(vectors=vectors, others=others)
    k = _check_vectors("subspace_overlap", "vectors", vectors)
    _check_vectors("subspace_overlap", "others", others)
    check_match("subspace_overlap", others, vectors)
    return jnp.sum(jnp.square(inner_products(widen(vectors), widen(others)))) / k


BASIS = np.eye(3, dtype=np.float32)[:2]
SHARED: dict[str, Any] = {"form": "function", "paper": PAPER}
register(
    top_eigenpairs,
    **SHARED,
    collectives="norms",
    example={"hvp_fn": lambda v: 2 * v, "key": np.zeros(2, np.uint32), "like": np.ones(3, np.float32), "k": 1},
)
register(
    gradient_subspace_fraction,
    **SHARED,
    collectives="norms",
    example={"vectors": BASIS, "gradient": np.ones(3, np.float32)},
)
register(subspace_overlap, **SHARED, collectives="norms", example={"vectors": BASIS, "others": BASIS})
