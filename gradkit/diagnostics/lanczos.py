"""The spectrum of a Hessian from Hessian-vector products, and the learning rate and momentum that follow from it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import widen
from gradkit.engine.keys import as_key
from gradkit.engine.krylov import PROBES, iterate, start_vector, tridiagonal, wide_product
from gradkit.engine.matching import check_leaves
from gradkit.types import Key, Scalar

PAPER = Paper(
    "Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network Training",
    "Granziol, Zohren, Roberts",
    2020,
    "2006.09092",
)


def lanczos(
    hvp_fn: Callable[[Any], Any],
    key: Key,
    like: Any,
    steps: int,
    *,
    reorthogonalize: bool = True,
    probe: str = "gaussian",
) -> tuple[jax.Array, jax.Array]:
    """The tridiagonal matrix of a symmetric operator on a random vector.

    Equations, from a random v_1 of norm 1:

        alpha_j = <v_j, H v_j>
        w = H v_j - alpha_j v_j - beta_{j-1} v_{j-1}
        beta_j = |w|,   v_{j+1} = w / beta_j

    The eigenvalues of the tridiagonal matrix of alpha and beta are the Ritz values; with the squared first components
    of its eigenvectors as weights they are a quadrature of the density of the spectrum (`ritz`).

    Args:
      hvp_fn: vector tree -> product with the Hessian (or any symmetric operator).
      key: a random key (typed key or integer) for the first vector.
      like: a tree with the shapes and shardings of the vectors: the parameters.
      steps: the number of products, >= 1; fewer than there are parameters.
      reorthogonalize: whether every vector is orthogonalized, twice, against all before it; without it rounding errors
        find the same eigenvalues again and again. Default True; takes `steps` words per parameter, False three.
      probe: the distribution of the first vector, "gaussian" (default) or "rademacher".

    Returns:
      (alpha, beta) of `steps` and `steps - 1` numbers, for `ritz`. Where all eigenvalues are found, the numbers that
      follow are 0, and have no weight. Collectives: where leaves are sharded, vectors of scalars, and those of the
      product.

    Raises:
      ValueError: fewer than one step, a product whose tree is another, leaves that are not real.

    Example:
      >>> values = jnp.array([1.0, 1.0, 4.0, 4.0, 4.0])
      >>> found, weights = ritz(*lanczos(lambda v: values * v, jax.random.key(0), values, 2))
      >>> print(found.round(3))
      [1. 4.]

    Reference: Granziol, Zohren, Roberts. Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to
    Neural Network Training. 2020, arXiv 2006.09092; Lanczos 1950.
    """
    checks.arrays(like=like)
    checks.function("hvp_fn", hvp_fn)
    checks.integer("steps", steps, 1)
    checks.choice("reorthogonalize", reorthogonalize, (True, False))
    checks.choice("probe", probe, PROBES)
    check_leaves("lanczos", like, complex_leaves=False)
    product = wide_product("lanczos", hvp_fn, like)
    start = start_vector(as_key(key), widen(like), probe)
    found = iterate(product, start, steps, reorthogonalize=reorthogonalize)
    return found.alphas, found.betas[:-1]


class Ritz(NamedTuple):
    """Ritz values in ascending order, and their weights, which add up to 1."""

    values: jax.Array
    weights: jax.Array


def ritz(alphas: Any, betas: Any) -> Ritz:
    """Eigenvalues of a tridiagonal matrix, and their weights in the density of the spectrum.

    Args:
      alphas: its diagonal, shape (k,).
      betas: the first off-diagonal, shape (k - 1,).

    Returns:
      Ritz values in ascending order, and the squared first components of the eigenvectors.

    Raises:
      ValueError: shapes that do not fit.

    Example:
      >>> values, weights = ritz(jnp.array([2.0, 2.0]), jnp.array([1.0]))
      >>> print(values.round(4), weights.round(4))
      [1. 3.] [0.5 0.5]

    Reference: Granziol, Zohren, Roberts. Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to
    Neural Network Training. 2020, arXiv 2006.09092; Golub, Welsch 1969.
    """
    checks.arrays(alphas=alphas, betas=betas)
    a, b = (jnp.asarray(x, jnp.result_type(float)) for x in (alphas, betas))
    if a.ndim != 1 or not a.size or b.shape != (a.size - 1,):
        raise ValueError(f"alphas and betas must have shapes (k,) and (k - 1,), got {a.shape} and {b.shape}")
    values, vectors = jnp.linalg.eigh(tridiagonal(a, b))
    return Ritz(values, jnp.square(vectors[0]))


class HeavyBallPair(NamedTuple):
    """The learning rate and momentum for `gk.heavy_ball` and `gk.sgd`."""

    learning_rate: jax.Array
    momentum: jax.Array


def lanczos_hyperparameters(values: Any, *, lower: Scalar | None = None) -> HeavyBallPair:
    """The learning rate and momentum of the heavy ball that contract fastest on a quadratic with these Ritz values.

    Equations, with the largest Ritz value L and the lower edge l:

        learning_rate = (2 / (sqrt(L) + sqrt(l)))^2
        momentum      = ((sqrt(L) - sqrt(l)) / (sqrt(L) + sqrt(l)))^2

    Args:
      values: Ritz values, shape (k,), in any order; L is the largest.
      lower: l > 0, the lower edge. Default None: the smallest value that is positive beyond rounding. The bulk edge of
        `batch_hessian_edge(0.0, ...)` is the other choice.

    Returns:
      (learning_rate, momentum) as arrays; NaN where no value is positive. They hold for one set of measurements: the
      paper refreshes them every epoch.

    Raises:
      ValueError: values that are no vector, or a lower edge that is not positive.

    Example:
      >>> pair = lanczos_hyperparameters(jnp.array([-0.5, 1.0, 2.0, 9.0]))
      >>> [round(float(x), 4) for x in pair]  # (2 / (3 + 1))^2, ((3 - 1) / (3 + 1))^2
      [0.25, 0.25]

    Reference: Granziol, Zohren, Roberts. Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to
    Neural Network Training. 2020, arXiv 2006.09092. Which lower edge the paper keeps is not certain, so both are here.
    """
    checks.arrays(values=values)
    checks.real("lower", lower, "(0, inf)", optional=True)
    theta = jnp.asarray(values, jnp.result_type(float))
    if theta.ndim != 1 or not theta.size:
        raise ValueError(f"values must be a vector that is not empty, got shape {theta.shape}")
    L = jnp.max(theta)
    if lower is None:
        counts = theta > theta.size * jnp.finfo(theta.dtype).eps * jnp.max(jnp.abs(theta))
        l = jnp.min(jnp.where(counts, theta, jnp.inf))  # noqa: E741
    else:
        l = jnp.minimum(jnp.asarray(lower, theta.dtype), L)  # noqa: E741
    root_L, root_l = jnp.sqrt(jnp.where(L > 0, L, jnp.nan)), jnp.sqrt(l)
    total = root_L + root_l
    return HeavyBallPair(jnp.square(2 / total), jnp.square((root_L - root_l) / total))


def batch_hessian_edge(
    lam: Any, sigma: Scalar, num_params: Any, batch_size: Scalar, num_examples: Scalar | None = None
) -> jax.Array:
    """The largest eigenvalue of the Hessian of a batch, from that of the full Hessian.

    Equations, with noise of variance sigma^2 per entry of the Hessian of one example on P parameters:

        1 / b' = 1 / batch_size - 1 / num_examples
        lam' = lam + P sigma^2 / (b' lam)                 where lam > sqrt(P / b') sigma
        lam' = 2 sqrt(P / b') sigma                       elsewhere

    The largest stable learning rate is proportional to 1 / lam': linear in the batch size while noise dominates, then
    constant; for Adam, which divides by a square root, to its square root.

    Args:
      lam: an eigenvalue of the full Hessian, of any shape.
      sigma: standard deviation of the entries of the Hessian of one example, >= 0.
      num_params: P > 0.
      batch_size: examples in the batch, > 0; may be traced.
      num_examples: N >= `batch_size`, the number of all examples. Default None: infinitely many.

    Returns:
      lam', of the shape of `lam`.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> [float(batch_hessian_edge(lam, 1.0, 400, 100)) for lam in (1.0, 4.0)]  # sqrt(P / b') sigma = 2
      [4.0, 5.0]

    Reference: Granziol, Zohren, Roberts. Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to
    Neural Network Training. 2020, arXiv 2006.09092.
    """
    checks.arrays(lam=lam)
    checks.real("sigma", sigma, "[0, inf)")
    checks.real("num_params", num_params, "(0, inf)")
    checks.real("batch_size", batch_size, "(0, inf)")
    checks.real("num_examples", num_examples, "(0, inf)", optional=True)
    if isinstance(batch_size, int | float) and isinstance(num_examples, int | float) and batch_size > num_examples:
        raise ValueError(f"batch_size must be at most num_examples={num_examples}, got {batch_size}")
    lam = jnp.asarray(lam, jnp.result_type(float))
    P, B, s = (jnp.asarray(x, lam.dtype) for x in (num_params, batch_size, sigma))
    left = 1 / B if num_examples is None else 1 / B - 1 / jnp.asarray(num_examples, lam.dtype)
    root = jnp.sqrt(P * jnp.maximum(left, 0)) * s
    outlier = lam > root
    return jnp.where(outlier, lam + root**2 / jnp.where(outlier, lam, 1), 2 * root)


SHARED: dict[str, Any] = {
    "form": "function",
    "paper": PAPER,
}
START = {"hvp_fn": lambda v: 2 * v, "key": np.zeros(2, np.uint32), "like": np.ones(3, np.float32), "steps": 2}
register(lanczos, **SHARED, collectives="norms", example=START)
register(ritz, **SHARED, example={"alphas": (2.0, 2.0), "betas": (1.0,)})
register(lanczos_hyperparameters, **SHARED, example={"values": (1.0, 2.0, 9.0)})
register(batch_hessian_edge, **SHARED, example={"lam": 4.0, "sigma": 1.0, "num_params": 400, "batch_size": 100})
