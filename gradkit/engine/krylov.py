"""Lanczos iterations on trees: what every spectral diagnostic is computed with.

    alpha_j = <v_j, H v_j>,    w = H v_j - alpha_j v_j - beta_{j-1} v_{j-1},    beta_j = |w|,    v_{j+1} = w / beta_j

Vectors are trees like the parameters, in float32 or wider; inner products run over all leaves.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit.engine.core import divide, widen
from gradkit.engine.matching import check_match
from gradkit.engine.norms import global_norm, global_sums

PROBES = ("gaussian", "rademacher")


def inner(a: Any, b: Any) -> jax.Array:
    """The inner product of two trees, over all leaves.

    >>> inner({"a": jnp.ones(2), "b": jnp.array(3.0)}, {"a": jnp.ones(2), "b": jnp.array(2.0)}).item()
    8.0
    """
    return global_sums(jax.tree.map(lambda x, y: x * y, a, b))[0]


def scaled(factor: jax.Array, tree: Any) -> Any:
    """A number times a tree.

    >>> scaled(jnp.array(2.0), [jnp.ones(2)])[0].tolist()
    [2.0, 2.0]
    """
    return jax.tree.map(lambda x: factor.astype(x.dtype) * x, tree)


def minus(a: Any, b: Any) -> Any:
    """The difference of two trees.

    >>> minus([jnp.ones(2)], [jnp.ones(2)])[0].tolist()
    [0.0, 0.0]
    """
    return jax.tree.map(lambda x, y: x - y, a, b)


def unit(tree: Any) -> Any:
    """A tree of norm 1 in its direction, also where squares of its entries are 0 in its dtype; 0 where it is 0.

    >>> unit({"a": jnp.array([3e-30]), "b": jnp.array([-4e-30])})["a"].round(3).tolist()
    [0.6000000238418579]
    """
    largest = [jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(tree)]
    widest = max((x.dtype for x in largest), key=lambda dtype: dtype.itemsize)
    size = jnp.max(jnp.stack([x.astype(widest) for x in largest]))
    tree = jax.tree.map(lambda x: divide(x, size.astype(x.dtype)), tree)
    length = global_norm(tree)
    return jax.tree.map(lambda x: divide(x, length.astype(x.dtype)), tree)


def combination(coefficients: jax.Array, rows: Any) -> Any:
    """The sum of the vectors of a stack, by coefficients of shape (k,); of shape (k, m), a stack of m such sums.

    >>> combination(jnp.array([1.0, 2.0]), [jnp.eye(2)])[0].tolist()
    [1.0, 2.0]
    """

    def leaf(x: jax.Array) -> jax.Array:
        return jnp.tensordot(coefficients.astype(x.dtype).T, x, 1, precision="highest")

    return jax.tree.map(leaf, rows)


def start_vector(key: Any, like: Any, probe: str) -> Any:
    """A random vector of norm 1, of standard normal numbers ("gaussian") or random signs ("rademacher")."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, max(len(leaves), 1))
    draw = jax.random.normal if probe == "gaussian" else jax.random.rademacher
    v = structure.unflatten([draw(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=False)])
    return scaled(1 / global_norm(v), v)


def wide_product(method: str, hvp_fn: Callable[[Any], Any], like: Any) -> Callable[[Any], Any]:
    """The product with an operator as a function of vectors in float32 or wider.

    Args:
      method: the public name, for messages.
      hvp_fn: takes and returns trees of the dtypes of `like`.
      like: the parameters.
    """

    def product(v: Any) -> Any:
        out = hvp_fn(jax.tree.map(lambda x, p: x.astype(p.dtype), v, like))
        check_match(method, out, like)
        return widen(out)

    return product


def orthogonal_to(basis: Any, w: Any) -> Any:
    """w without its components along the rows of an orthonormal stack; rows that are 0 have no effect."""
    shares = jax.vmap(lambda row: inner(row, w))(basis)
    return minus(w, combination(shares, basis))


class Krylov(NamedTuple):
    """Lanczos iterations: (k,) alphas, (k,) betas of which the last is the norm of what is left, and the vectors as a
    stack of k rows, or None."""

    alphas: jax.Array
    betas: jax.Array
    basis: Any


def iterate(
    product: Callable[[Any], Any], v: Any, steps: int, *, reorthogonalize: bool = True, restart_key: Any = None
) -> Krylov:
    """Lanczos iterations from a vector of norm 1.

    Args:
      product: a symmetric operator, as `wide_product` makes it.
      v: the first vector.
      steps: how many products are made.
      reorthogonalize: whether every vector is made orthogonal, twice, to all before it. The vectors are kept then.
      restart_key: where the space is exhausted before `steps`, go on with a random vector that is orthogonal to it, so
        that the other eigenvectors of multiple eigenvalues are found too. None: all that follows is 0.

    Returns:
      The coefficients, and the vectors where they are kept.
    """
    dtype = global_norm(v).dtype
    basis = jax.tree.map(lambda x: jnp.zeros((steps, *x.shape), x.dtype), v) if reorthogonalize else None

    def step(carry: Any, j: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        v, before, beta, size, basis = carry
        w = product(v)
        alpha = inner(v, w)
        w = minus(minus(w, scaled(alpha, v)), scaled(beta, before))
        if reorthogonalize:
            basis = jax.tree.map(lambda rows, x: rows.at[j].set(x), basis, v)
            w = orthogonal_to(basis, orthogonal_to(basis, w))
        new = global_norm(w)
        # What is left of a vector in the span of those before it is rounding.
        size = jnp.maximum(size, jnp.abs(alpha) + beta)
        over = new <= 10 * jnp.finfo(dtype).eps * size
        new = jnp.where(over, 0, new)
        w = scaled(jnp.where(over, 0, 1 / jnp.where(over, 1, new)), w)
        if restart_key is not None:
            fresh = start_vector(jax.random.fold_in(restart_key, j), v, "gaussian")
            fresh = orthogonal_to(basis, orthogonal_to(basis, fresh))
            left = global_norm(fresh)
            fresh = scaled(1 / jnp.where(left > 0, left, 1), fresh)
            w = jax.tree.map(lambda x, y: jnp.where(over, x, y), fresh, w)
        return (w, v, new, size, basis), (alpha, new)

    zero = jnp.zeros((), dtype)
    first = (v, jax.tree.map(jnp.zeros_like, v), zero, zero, basis)
    last, (alphas, betas) = jax.lax.scan(step, first, jnp.arange(steps))
    return Krylov(alphas, betas, last[4])


def tridiagonal(alphas: jax.Array, betas: jax.Array) -> jax.Array:
    """The symmetric matrix with these diagonals, (k,) and (k - 1,)."""
    return jnp.diag(alphas) + jnp.diag(betas, 1) + jnp.diag(betas, -1)
