"""Linear layers that remember a few rows of their input: column-row sampling, and winner-take-all."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide
from gradkit.engine.keys import as_key
from gradkit.layers.axes import floating, wide
from gradkit.layers.linear import check_linear, with_bias
from gradkit.types import Key, Scalar

PAPER = Paper(
    "Winner-Take-All Column Row Sampling for Memory Efficient Adaptation of Language Model",
    "Liu et al.",
    2023,
    "2305.15265",
)
# A row whose last gradient was 0 may have one now: its norm counts as this fraction of the mean, against a bias.
LEAST = 1e-3


def _probabilities(x: jax.Array, norms: jax.Array) -> jax.Array:
    size = jnp.sqrt(jnp.sum(jnp.square(wide(x)), axis=1))
    norms = norms.astype(size.dtype)
    mean = jnp.mean(norms)
    norms = jnp.where(mean > 0, jnp.maximum(norms, LEAST * mean), jnp.ones_like(norms))
    weight = size * norms
    total = jnp.sum(weight)
    return jnp.where(total > 0, divide(weight, total), jnp.full_like(weight, 1 / weight.size))


def _picked(p: jax.Array, key: jax.Array, k: int, j: int | None) -> tuple[jax.Array, jax.Array]:
    """The indices of k rows, and their factors."""
    order = jnp.argsort(-p)
    below = jnp.concatenate([jnp.zeros((1,), p.dtype), jnp.cumsum(p[order])[: k - 1]])  # P_j for j = 0 .. k - 1
    slots = jnp.arange(k, dtype=jnp.int32)
    rest = jnp.maximum(1 - below, jnp.zeros((), p.dtype))
    best = jnp.argmin(rest / (k - slots).astype(p.dtype)).astype(jnp.int32) if j is None else jnp.int32(j)
    taken = jnp.zeros(p.shape, bool).at[order[:k]].set(slots < best)
    outside = jnp.where(taken, jnp.zeros_like(p), p)
    drawn = jax.random.categorical(key, jnp.log(jnp.where(outside > 0, outside, jnp.finfo(p.dtype).tiny)), shape=(k,))
    share = rest[best] / (k - best).astype(p.dtype)
    rows = jnp.where(slots < best, order[:k].astype(jnp.int32), drawn.astype(jnp.int32))
    return rows, jnp.where(slots < best, jnp.ones((), p.dtype), divide(jnp.broadcast_to(share, (k,)), outside[drawn]))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _linear(k: int, j: int | None, x: jax.Array, kernel: jax.Array, key: jax.Array, norms: jax.Array) -> jax.Array:
    return x @ kernel


def _forward(k: int, j: int | None, x: Any, kernel: Any, key: Any, norms: Any) -> tuple[jax.Array, Any]:
    if k >= x.shape[0]:  # all of them, once: the gradient is exact
        rows, factor = jnp.arange(k), jnp.ones((k,), wide(x).dtype)
    else:
        rows, factor = _picked(_probabilities(x, norms), key, k, j)
    return x @ kernel, (x[rows], rows, factor, kernel, norms)


def _backward(k: int, j: int | None, kept: Any, g: jax.Array) -> tuple[Any, ...]:
    x, rows, factor, kernel, norms = kept
    dW = jnp.matmul((wide(x) * factor.reshape(k, 1)).T, wide(g[rows]), precision="highest")
    seen = jnp.sqrt(jnp.sum(jnp.square(wide(g)), axis=1))
    return g @ kernel.T, dW.astype(kernel.dtype), None, seen.astype(norms.dtype)


_linear.defvjp(_forward, _backward)


@jax.custom_vjp
def _per_row(norms: jax.Array, like: jax.Array) -> jax.Array:
    """The norm of an example, for each of its rows."""
    return jnp.broadcast_to(norms.reshape(norms.shape + (1,) * (like.ndim - norms.ndim)), like.shape).reshape(-1)


def _per_row_back(shapes: tuple[jax.Array, jax.Array], seen: jax.Array) -> tuple[jax.Array, jax.Array]:
    norms, like = shapes
    seen = seen.reshape(like.shape)
    together = jnp.sqrt(jnp.sum(jnp.square(seen), axis=tuple(range(norms.ndim, like.ndim))))
    return together.astype(norms.dtype), jnp.zeros_like(like)


_per_row.defvjp(lambda norms, like: (_per_row(norms, like), (norms, like)), _per_row_back)


def _sampled(x: Any, kernel: Any, bias: Any, key: Any, grad_norms: Any, budget: Any, j: int | None) -> jax.Array:
    x, kernel = check_linear(x, kernel)
    checks.real("budget", budget, "(0, 1]")
    rows = x.reshape(-1, x.shape[-1])
    n = rows.shape[0]
    k = max(1, round(budget * n))
    like = jnp.zeros(x.shape[:-1], wide(x).dtype)
    norms = jnp.zeros_like(like) if grad_norms is None else floating("grad_norms", grad_norms)
    if norms.shape not in (x.shape[:-1], x.shape[:1]):
        raise ValueError(f"grad_norms must have shape {x.shape[:1]} or {x.shape[:-1]}, got {norms.shape}")
    if j is not None and not 0 <= j < k:
        raise ValueError(f"deterministic must be 'adaptive' or an integer in [0, {k}), got {j}")
    y: Any = _linear(k, j, rows, kernel, as_key(key), _per_row(norms, like))
    return with_bias(y.reshape(*x.shape[:-1], kernel.shape[1]), bias)


def wta_crs_linear(
    x: Any,
    kernel: Any,
    bias: Any = None,
    *,
    key: Key,
    grad_norms: Any = None,
    budget: Scalar = 0.3,
    deterministic: str | int = "adaptive",
) -> jax.Array:
    """x @ kernel + bias, which keeps some rows of x for the gradient: the most important ones, and random others.

    Equations, for dW = sum_i x_i^T g_i over n rows (examples, tokens), of which k are kept; with the set C of the j
    most probable rows, and the sum P_j of their probabilities:

        p_i = |x_i| |g_i| / sum over all rows   |g_i| from the last visit of the row; without one, |x_i| alone
        j   = argmin of (1 - P_j) / (k - j)                over j = 0 ... k - 1
        dW ~ sum over i in C of x_i^T g_i
             + (1 - P_j) / (k - j) times the sum over k - j rows m of x_m^T g_m / p_m,  drawn outside C by p

    Args:
      x: inputs, shape (examples, ..., in); all axes but the last are rows, n of them.
      kernel: shape (in, out).
      bias: shape (out,). Default None: none. Its gradient is exact.
      key: a random key (typed key or integer), another one in every layer and step.
      grad_norms: norms of the gradients of these examples at their last visit, shape (examples,), or one per row. THE
        DERIVATIVE WITH RESPECT TO IT IS NO DERIVATIVE: it is the norms of this visit, to be stored for the next.
        Default None, or all 0: probabilities by |x_i| alone.
      budget: k / n, in (0, 1]; k is rounded, and at least 1. Default 0.3 (official scripts). With 1 the gradient
        is exact.
      deterministic: j, in [0, k), or "adaptive": the j of the least variance. Default "adaptive" (official code).

    Returns:
      Outputs, shape (examples, ..., out). The kernel's gradient is unbiased for all norms. Kept for the backward pass
      are k rows of x, k integers and k factors.

    Raises:
      ValueError: a budget or number of winners outside its range; shapes that do not fit.

    Example:
      >>> x, w, norms = jnp.eye(4), jnp.ones((4, 1)), jnp.zeros(4)
      >>> loss = lambda w, norms: jnp.sum(wta_crs_linear(x, w, key=jax.random.key(0), grad_norms=norms, budget=1.0))
      >>> dw, seen = jax.jit(jax.grad(loss, argnums=(0, 1)))(w, norms)
      >>> dw[:, 0].tolist(), seen.tolist()
      ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0])

    Reference: Liu et al. Winner-Take-All Column Row Sampling for Memory Efficient Adaptation of Language Model. 2023,
    arXiv 2305.15265. Departures: where no norm is cached the official code weights drawn rows by 1 - P alone, which is
    biased, and its modes without replacement have no weights; here every estimate is unbiased, for which a cached norm
    counts as at least a thousandth of the mean.
    """
    checks.arrays(x=x, kernel=kernel, bias=bias, grad_norms=grad_norms)
    if deterministic != "adaptive":
        checks.integer("deterministic", deterministic)
    return _sampled(x, kernel, bias, key, grad_norms, budget, None if isinstance(deterministic, str) else deterministic)


def crs_linear(
    x: Any, kernel: Any, bias: Any = None, *, key: Key, grad_norms: Any = None, budget: Scalar = 0.3
) -> jax.Array:
    """x @ kernel + bias, which keeps random rows of x for the gradient, drawn by their importance.

    Equations: those of `wta_crs_linear`, with j = 0:

        dW ~ (1 / k) times the sum over k rows m of x_m^T g_m / p_m,  drawn by p

    Args:
      x: inputs, shape (examples, ..., in).
      kernel: shape (in, out).
      bias: shape (out,). Default None: none.
      key: a random key (typed key or integer), another one in every layer and step.
      grad_norms: as in `wta_crs_linear`: its derivative is the norms to store.
      budget: k / n, in (0, 1]. Default 0.3. With 1 all rows are kept, and the gradient is exact.

    Returns:
      Outputs, shape (examples, ..., out). The kernel's gradient is unbiased.

    Raises:
      ValueError: a budget outside its range; shapes that do not fit.

    Example:
      >>> crs_linear(jnp.ones((4, 2)), jnp.ones((2, 1)), key=jax.random.key(0))[:, 0].tolist()
      [2.0, 2.0, 2.0, 2.0]

    Reference: Drineas, Kannan, Mahoney. Fast Monte Carlo Algorithms for Matrices I. 2006; in this form Liu et al.
    Winner-Take-All Column Row Sampling for Memory Efficient Adaptation of Language Model. 2023, arXiv 2305.15265.
    """
    checks.arrays(x=x, kernel=kernel, bias=bias, grad_norms=grad_norms)
    return _sampled(x, kernel, bias, key, grad_norms, budget, 0)


_SHAPES = {"x": jax.ShapeDtypeStruct((16, 8), "float32"), "kernel": jax.ShapeDtypeStruct((8, 4), "float32")}
register(wta_crs_linear, form="layer", paper=PAPER, example=_SHAPES)
register(crs_linear, form="layer", paper=PAPER, example=_SHAPES)
