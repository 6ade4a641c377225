"""The spectrum of a Hessian from products with it: density, trace, and criteria of its negative part.

Of k Lanczos steps from a random vector v of norm 1, with T the tridiagonal matrix of their coefficients:

    theta_i = eigenvalues of T,    w_i = (first component of eigenvector i of T)^2
    sum_i w_i p(theta_i) = v^T p(H) v         for polynomials p of degree <= 2 k - 1
    density(t) = mean over probes v of sum_i w_i N(t; theta_i, s2)          the expectation is the density of all values
    s2 = sigma_squared max(1, width of the grid)

    trace(H) = E[z^T H z],    z of random signs

    r_e = |lambda_min / lambda_max|,   K_n = sum_{theta < 0} (|theta| w)^n / sum_{theta > 0} (theta w)^n
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.diagnostics.lanczos import Ritz, ritz
from gradkit.engine.core import widen
from gradkit.engine.hutchinson import probe as hutchinson_probe
from gradkit.engine.keys import as_key
from gradkit.engine.krylov import PROBES, Krylov, inner, iterate, start_vector, wide_product
from gradkit.engine.matching import check_leaves
from gradkit.types import Key, Scalar

PAPER = Paper(
    "Investigating generalization capabilities of neural networks by means of loss landscapes and Hessian analysis",
    "Gabdullin",
    2024,
)
# How far the grid of a density goes beyond the extreme values, and the most steps where their number is not given.
MARGIN, STEPS = 0.01, 90


def checked_steps(method: str, like: Any, steps: Any, default: int) -> int:
    """How many Lanczos steps are made: at most as many as there are parameters."""
    check_leaves(method, like, complex_leaves=False)
    size = sum(jnp.size(x) for x in jax.tree.leaves(like))
    if not size:
        raise ValueError(f"{method}: there must be one parameter at least, got none; leave out what has no parameters")
    if steps is None:
        return min(default, size)
    steps = checks.integer("steps", steps, 1)
    if steps > size:
        raise ValueError(f"{method}: steps must be at most the {size} parameters, got {steps}; write steps={size}")
    return steps


def lanczos_tridiagonal(
    hvp_fn: Callable[[Any], Any],
    key: Key,
    like: Any,
    steps: int,
    *,
    reorthogonalize: bool = True,
    probe: str = "gaussian",
) -> Krylov:
    """Lanczos steps from a random vector: the tridiagonal matrix, and the vectors that take the operator to it.

        alpha_j = <v_j, H v_j>,   w = H v_j - alpha_j v_j - beta_{j-1} v_{j-1},   beta_j = |w|,   v_{j+1} = w / beta_j

    Args:
      hvp_fn: vector tree -> product with the Hessian (or any symmetric operator); the same operator at every call, as
        `gk.diagnostics.accumulated_hvp` is.
      key: a typed key or an integer, for the first vector.
      like: a tree of the shapes and shardings of the vectors: the parameters.
      steps: products that are made, from 1 to the number of parameters.
      reorthogonalize: whether every vector is made orthogonal, twice, to all before it. Default True; takes `steps`
        words per parameter. False takes three, returns no vectors, and finds converged eigenvalues several times.
      probe: "gaussian" (default) or "rademacher", how the first vector is drawn.

    Returns:
      (alphas, betas, basis): (steps,) and (steps,) numbers, of which the last beta is the norm of what is left after
      the last step; and the vectors as a tree with a leading axis, sharded like the parameters, or None. Where the
      vectors are exhausted all that follow are 0. `gk.diagnostics.ritz(alphas, betas[:-1])` gives eigenvalues and
      weights.

    Raises:
      ValueError: steps outside their range, a product whose tree is another, leaves that are not real.

    Example:
      >>> values = jnp.array([1.0, 4.0])
      >>> found = jax.jit(lambda key: lanczos_tridiagonal(lambda v: values * v, key, values, 2))(jax.random.key(0))
      >>> ritz(found.alphas, found.betas[:-1]).values.round(3).tolist(), found.basis.shape
      ([1.0, 4.0], (2, 2))

    Reference: Gabdullin. Investigating generalization capabilities of neural networks by means of loss landscapes and
    Hessian analysis. 2024; Lanczos 1950. `gk.diagnostics.lanczos` is the same without the vectors.
    """
    checks.arrays(like=like)
    checks.function("hvp_fn", hvp_fn)
    checks.choice("reorthogonalize", reorthogonalize, (True, False))
    checks.choice("probe", probe, PROBES)
    steps = checked_steps("lanczos_tridiagonal", like, steps, STEPS)
    start = start_vector(as_key(key), widen(like), probe)
    product = wide_product("lanczos_tridiagonal", hvp_fn, like)
    return iterate(product, start, steps, reorthogonalize=reorthogonalize)


class SpectralDensity(NamedTuple):
    """The density of the eigenvalues of an operator.

    Attributes:
      grid: (num_points,), evenly spaced values.
      density: (num_points,), whose sum times the spacing is 1.
      values: (num_probes, steps), the Ritz values of every probe in ascending order.
      weights: (num_probes, steps), their weights; of each probe they add up to 1.
    """

    grid: jax.Array
    density: jax.Array
    values: jax.Array
    weights: jax.Array


def _extremes(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The smallest and largest value of each probe; values without weight follow where vectors are exhausted."""
    counts = weights > jnp.square(jnp.finfo(weights.dtype).eps)
    low = jnp.min(jnp.where(counts, values, jnp.inf), axis=-1)
    return low, jnp.max(jnp.where(counts, values, -jnp.inf), axis=-1)


def spectral_density(
    hvp_fn: Callable[[Any], Any],
    key: Key,
    like: Any,
    *,
    steps: int | None = None,
    num_probes: int = 1,
    num_points: int = 10_000,
    sigma_squared: Scalar = 1e-5,
    reorthogonalize: bool = True,
    probe: str = "gaussian",
) -> SpectralDensity:
    """The density of the eigenvalues of a Hessian, by stochastic Lanczos quadrature.

        density(t) = mean over probes of sum_i w_i N(t; theta_i, s2),   theta, w the Ritz values and their weights
        s2 = sigma_squared max(1, width of the grid), a variance

    Args:
      hvp_fn: vector tree -> product with the Hessian (or any symmetric operator); the same operator at every call.
      key: a typed key or an integer, for the probes.
      like: a tree of the shapes and shardings of the vectors: the parameters.
      steps: products per probe, from 1 to the number of parameters. Default None: 90 (public code), or all.
      num_probes: random vectors, >= 1. Default 1 (public code): their variance falls with the number of parameters.
      num_points: length of the grid, >= 2, from the mean of the smallest Ritz values less 0.01 to that of the largest
        plus 0.01. Default 10,000 (public code).
      sigma_squared: > 0, as above. Default 1e-5 (public code).
      reorthogonalize: see `gk.diagnostics.lanczos_tridiagonal`. Default True; takes `steps` words per parameter.
      probe: "gaussian" (default) or "rademacher".

    Returns:
      A `SpectralDensity`. Probes are computed one after another. Collectives: where leaves are sharded, vectors of
      scalars, and what the product needs.

    Raises:
      ValueError: an argument outside its range, a product whose tree is another, leaves that are not real.

    Example:
      >>> values = jnp.array([0.0, 0.0, 0.0, 1.0])
      >>> measure = jax.jit(lambda key: spectral_density(lambda v: values * v, key, values, num_points=101))
      >>> found = measure(jax.random.key(0))
      >>> round(float(found.density.sum() * (found.grid[1] - found.grid[0])), 4)
      1.0

    Reference: Gabdullin. Investigating generalization capabilities of neural networks by means of loss landscapes and
    Hessian analysis. 2024; Ghorbani, Krishnan, Xiao, arXiv 1901.10159, whose code calls the variance `sigma`. The
    tridiagonal matrix goes to a symmetric eigensolver; some public code takes the real parts of a general one. s2 is
    never below the square of the spacing of the grid: a narrower peak would fall between its points.
    """
    checks.arrays(like=like)
    checks.function("hvp_fn", hvp_fn)
    num_probes = checks.integer("num_probes", num_probes, 1)
    num_points = checks.integer("num_points", num_points, 2)
    checks.real("sigma_squared", sigma_squared, "(0, inf)")
    checks.choice("reorthogonalize", reorthogonalize, (True, False))
    checks.choice("probe", probe, PROBES)
    steps = checked_steps("spectral_density", like, steps, STEPS)
    product = wide_product("spectral_density", hvp_fn, like)
    wide = widen(like)

    def one(key: jax.Array) -> Ritz:
        start = start_vector(key, wide, probe)
        found = iterate(product, start, steps, reorthogonalize=reorthogonalize)
        return ritz(found.alphas, found.betas[:-1])

    values, weights = jax.lax.map(one, jax.random.split(as_key(key), num_probes))
    low, high = _extremes(values, weights)
    low, high = jnp.mean(low) - MARGIN, jnp.mean(high) + MARGIN
    grid = jnp.linspace(low, high, num_points, dtype=values.dtype)
    spacing = (high - low) / (num_points - 1)
    s2 = jnp.asarray(sigma_squared, values.dtype) * jnp.maximum(high - low, 1)
    s2 = jnp.maximum(s2, jnp.square(spacing))

    def add(total: jax.Array, node: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        theta, w = node
        return total + w * jnp.exp(-jnp.square(grid - theta) / (2 * s2)), None

    density, _ = jax.lax.scan(add, jnp.zeros_like(grid), (values.reshape(-1), weights.reshape(-1)))
    return SpectralDensity(grid, density / (jnp.sum(density) * spacing), values, weights)


class Trace(NamedTuple):
    """An estimate of a trace: the mean over probes, its standard error, and the number of each probe, (num_probes,)."""

    mean: jax.Array
    standard_error: jax.Array
    per_probe: jax.Array


def hessian_trace(
    hvp_fn: Callable[[Any], Any], key: Key, like: Any, *, num_probes: int = 100, probe: str = "rademacher"
) -> Trace:
    """The trace of a Hessian, by Hutchinson's estimate with a fixed number of probes.

        trace = mean of z^T H z,    standard error = sqrt(sum of squared deviations / (n (n - 1)))

    Args:
      hvp_fn: vector tree -> product with the Hessian (or any operator); the same operator at every call.
      key: a typed key or an integer, for the probes.
      like: a tree of the shapes and shardings of the vectors: the parameters.
      num_probes: n >= 1. Default 100 (public code's largest).
      probe: "rademacher" (default), random signs, with which one probe is exact for a diagonal H; or "gaussian".

    Returns:
      A `Trace`; the standard error of one probe is infinite. Probes are computed one after another. Collectives: one
      scalar per probe where leaves are sharded, and what the product needs.

    Raises:
      ValueError: an argument outside its range, a product whose tree is another, leaves that are not real.

    Example:
      >>> values = jnp.array([1.0, 2.0, 4.0])
      >>> hessian_trace(lambda v: values * v, 0, values, num_probes=2).mean.item()
      7.0

    Reference: Gabdullin. Investigating generalization capabilities of neural networks by means of loss landscapes and
    Hessian analysis. 2024; Hutchinson 1989. PyHessian stops where two successive means differ by less than 0.1 %, which
    may happen by chance long before the mean is that exact; the number of probes here is fixed, and the error is told.
    """
    checks.arrays(like=like)
    checks.function("hvp_fn", hvp_fn)
    n = checks.integer("num_probes", num_probes, 1)
    checks.choice("probe", probe, PROBES)
    checked_steps("hessian_trace", like, None, 1)
    product = wide_product("hessian_trace", hvp_fn, like)
    wide = widen(like)
    distribution = "normal" if probe == "gaussian" else probe

    def one(key: jax.Array) -> jax.Array:
        z = hutchinson_probe(key, wide, distribution)
        return inner(z, product(z))

    samples = jax.lax.map(one, jax.random.split(as_key(key), n))
    mean = jnp.mean(samples)
    error = jnp.sqrt(jnp.sum(jnp.square(samples - mean)) / (n * (n - 1))) if n > 1 else jnp.full_like(mean, jnp.inf)
    return Trace(mean, error, samples)


class HessianCriteria(NamedTuple):
    """How much of a spectrum is negative: by its extreme values, and by all of them."""

    r_e: jax.Array
    K_n: jax.Array


def hessian_criteria(values: Any, weights: Any, *, n: Any = 0.5) -> HessianCriteria:
    """Two measures of how far from a minimum a spectrum is: 0 where no eigenvalue is negative.

        r_e = |lambda_min / lambda_max|   (0 where lambda_min >= 0)
        K_n = sum_{theta < 0} (|theta| w)^n / sum_{theta > 0} (theta w)^n

    Args:
      values: Ritz values, shape (k,), or (num_probes, k) as `gk.diagnostics.spectral_density` returns them.
      weights: their weights, of the same shape.
      n: > 0. Default 0.5 (public code).

    Returns:
      (r_e, K_n), each a mean over the probes; infinite where there are negative values and no positive one.

    Raises:
      ValueError: shapes that differ, or n outside its range.

    Example:
      >>> found = hessian_criteria(jnp.array([-1.0, 4.0]), jnp.array([0.25, 0.25]))
      >>> found.r_e.item(), found.K_n.item()
      (0.25, 0.5)

    Reference: Gabdullin. Investigating generalization capabilities of neural networks by means of loss landscapes and
    Hessian analysis. 2024. Of a smallest value that is positive r_e is 0 here, as nothing is negative.
    """
    checks.arrays(values=values, weights=weights)
    checks.real("n", n, "(0, inf)")
    theta, w = (jnp.asarray(x, jnp.result_type(float)) for x in (values, weights))
    if theta.shape != w.shape or theta.ndim not in (1, 2) or not theta.size:
        raise ValueError(
            f"hessian_criteria: values and weights must have one shape, (k,) or (num_probes, k), got {theta.shape} and "
            f"{w.shape}; write hessian_criteria(found.values, found.weights) for what spectral_density found"
        )
    low, high = _extremes(theta, w)
    power = jnp.asarray(n, theta.dtype)

    def part(negative: bool) -> jax.Array:
        own = theta < 0 if negative else theta > 0
        return jnp.sum(jnp.where(own, jnp.power(jnp.where(own, jnp.abs(theta) * w, 1), power), 0), axis=-1)

    def ratio(above: jax.Array, below: jax.Array) -> jax.Array:
        return jnp.mean(jnp.where(above > 0, above / jnp.where(below > 0, below, 0), 0))

    return HessianCriteria(ratio(jnp.maximum(-low, 0), jnp.maximum(high, 0)), ratio(part(True), part(False)))


SHARED: dict[str, Any] = {"form": "function", "paper": PAPER}
START: dict[str, Any] = {"hvp_fn": lambda v: 2 * v, "key": np.zeros(2, np.uint32), "like": np.ones(3, np.float32)}
register(lanczos_tridiagonal, **SHARED, collectives="norms", example={**START, "steps": 2})
register(spectral_density, **SHARED, collectives="norms", example={**START, "num_points": 4})
register(hessian_trace, **SHARED, collectives="norms", example={**START, "num_probes": 2})
register(hessian_criteria, **SHARED, example={"values": (-1.0, 4.0), "weights": (0.5, 0.5)})
