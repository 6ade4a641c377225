"""Tests of whether the gradient of a batch is accurate enough, and how large the batch should be."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import abs_sq, divide, widen
from gradkit.engine.matching import check_leaves
from gradkit.engine.norms import global_square, global_sums
from gradkit.types import Scalar

PAPER = Paper(
    "AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods", "Lau, Liu, Kolar", 2024, "2402.11215"
)
# The largest number of examples that fits into int32.
UNLIMITED = 2**31 - 1


def _check(batch_size: Any, name: str, threshold: Any, max_batch: Any) -> None:
    checks.real("batch_size", batch_size, "[2, inf)")
    checks.real(name, threshold, "(0, inf)")
    checks.integer("max_batch", max_batch, 2)


def _next(batch_size: Any, needed: jax.Array, max_batch: int) -> jax.Array:
    """The batch size that is needed, rounded up; infinity becomes `max_batch`, and NaN keeps the batch size."""
    now = jnp.asarray(batch_size).astype(jnp.int32)
    many = needed >= max_batch  # compared as floats: an integer would overflow
    wanted = jnp.where(many | jnp.isnan(needed), 0, jnp.ceil(needed)).astype(jnp.int32)
    return jnp.maximum(now, jnp.where(many, max_batch, wanted))


def _needed(variance: jax.Array, square: jax.Array) -> jax.Array:
    """variance / square; infinite where the square is 0: a gradient of zeros has no direction."""
    return jnp.where(square == 0, jnp.inf, divide(variance, square))


def norm_test(mean: Any, var: Any, *, batch_size: Scalar, eta: Scalar = 0.1, max_batch: int = UNLIMITED) -> jax.Array:
    """The batch size whose gradient has an error of at most eta, in expectation and relative to its norm.

    Equations, with the mean g and the sample variances Var (over the examples i, divided by n - 1) of the gradients of
    examples g_1 ... g_n:

        next = max(batch, ceil(sum_j Var_i(g_ij) / (eta^2 |g|^2)))           j over the entries of all leaves

    Args:
      mean: g, the gradient of the batch; any tree.
      var: sample variances of the gradient of ONE example: a tree like `mean`, or their sum as one number. From parts
        of n examples each it is n times the variance of the parts' gradients (`example_variance`).
      batch_size: examples in the batch, >= 2.
      eta: relative error that is allowed, > 0. Default 0.1 (official scripts); the theory needs it below 1.
      max_batch: the largest batch size, >= 2, which is the result where g is 0. Default 2^31 - 1.

    Returns:
      An int32 scalar: examples for the next step, never fewer than `batch_size`. With a gradient that is not finite the
      batch size stays. Collectives: one vector of scalars where leaves are sharded.

    Raises:
      ValueError: an argument outside its range, complex or integer leaves.

    Example:
      >>> g = {"w": jnp.array([3.0, 4.0])}
      >>> int(norm_test(g, {"w": jnp.array([40.0, 60.5])}, batch_size=64, eta=0.2))  # 100.5 / (0.04 * 25), rounded up
      101

    Reference: Lau, Liu, Kolar. AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods. 2024, arXiv
    2402.11215; the test is of Byrd et al. 2012. The paper's theory also has a test per coordinate, which its code does
    not run, nor does this.
    """
    checks.arrays(mean=mean, var=var)
    _check(batch_size, "eta", eta, max_batch)
    for tree in (mean, var):
        check_leaves("norm_test", tree, complex_leaves=False)
    square = global_square(widen(mean))
    one_number = jax.tree.structure(var) != jax.tree.structure(mean)
    variance = jnp.sum(jnp.asarray(var)) if one_number else global_sums(widen(var))[0]
    return _next(batch_size, _needed(variance.astype(square.dtype), square * eta**2), max_batch)


def example_variance(moments: Any, examples: int) -> jax.Array:
    """The summed variance of the gradient of one example, from the gradients of parts of a batch.

    Args:
      moments: what `gk.gradients.gradient_moments` returns; its parts are microbatches.
      examples: how many examples a part has, >= 1.

    Returns:
      examples k / (k - 1) (mean_sq_norm - |mean|^2) for k parts, at least 0; NaN for one part, which has no variance.

    Raises:
      ValueError: fewer than one example.

    Example:
      >>> import gradkit as gk
      >>> fn = gk.gradients.gradient_moments(lambda x, batch: jnp.mean(x * batch), 2)
      >>> _, moments = fn(jnp.array(2.0), jnp.array([1.0, 3.0]))
      >>> float(example_variance(moments, 1))
      2.0

    Reference: Lau, Liu, Kolar. AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods. 2024, arXiv
    2402.11215.
    """
    checks.arrays(moments=moments)
    checks.integer("examples", examples, 1)
    total = jnp.asarray(moments.mean_sq_norm)
    k = moments.count.astype(total.dtype)
    spread = jnp.maximum(total - global_square(widen(moments.mean)).astype(total.dtype), 0)
    return jnp.where(k > 1, examples * k / jnp.where(k > 1, k - 1, 1) * spread, jnp.nan)


def _about(method: str, example_grads: Any) -> tuple[int, jax.Array, jax.Array, jax.Array]:
    """n, |g|^2, and per example <g_i - g, g> and |g_i - g|^2."""
    check_leaves(method, example_grads, complex_leaves=False)
    sizes = {x.shape[:1] for x in jax.tree.leaves(example_grads)}
    n = min((s[0] for s in sizes if s), default=0)
    if len(sizes) != 1 or n < 2:
        raise ValueError(f"{method}: example_grads must have a leading axis of two or more examples, got {sizes}")
    rows = widen(example_grads)
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), rows)

    def of(row: Any) -> tuple[jax.Array, jax.Array]:
        apart = jax.tree.map(lambda x, g: x - g, row, mean)
        along, square = global_sums(jax.tree.map(lambda d, g: d * g, apart, mean), jax.tree.map(abs_sq, apart))
        return along, square

    along, square = jax.vmap(of)(rows)
    return n, global_square(mean), along, square


def inner_product_test(
    example_grads: Any,
    *,
    batch_size: Scalar | None = None,
    theta: Scalar = 0.1,
    examples: int = 1,
    max_batch: int = UNLIMITED,
) -> jax.Array:
    """The batch size whose gradient has a small variance along the true gradient.

    Equations, with the mean g and the sample variances Var (over i, divided by n - 1) of the gradients of examples g_i:

        next = max(batch, ceil(Var_i(<g_i, g>) / (theta^2 |g|^4)))

    The augmented test is the larger of this and `orthogonality_test`. Products run over all leaves together.

    Args:
      example_grads: a tree with a leading axis: one gradient per example, at least two.
      batch_size: examples in the batch, >= 2. Default None: the number of gradients (times `examples`).
      theta: relative error that is allowed, > 0. Default 0.1 (official scripts).
      examples: how many examples each given gradient is a mean over, >= 1. Default 1.
      max_batch: the largest batch size, >= 2, which is the result where g is 0. Default 2^31 - 1.

    Returns:
      An int32 scalar: examples for the next step, never fewer than `batch_size`. Collectives: one vector of scalars
      where leaves are sharded.

    Raises:
      ValueError: an argument outside its range, fewer than two examples.

    Example:
      >>> g = {"w": jnp.array([[1.0, 5.0], [3.0, -5.0]])}  # along the mean (2, 0): 2 and 6, variance 8
      >>> int(inner_product_test(g, theta=0.1))  # 8 / (0.01 * 16)
      50

    Reference: Lau, Liu, Kolar. AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods. 2024, arXiv
    2402.11215; the test is of Bollapragada, Byrd, Nocedal 2018. The official code tests tensor by tensor and adds up,
    which ignores covariances between tensors; here the gradient is one vector.
    """
    checks.arrays(example_grads=example_grads)
    checks.integer("examples", examples, 1)
    n, square, along, _ = _about("inner_product_test", example_grads)
    batch_size = n * examples if batch_size is None else batch_size
    _check(batch_size, "theta", theta, max_batch)
    variance = examples * jnp.sum(jnp.square(along)) / (n - 1)
    # Divided twice by |g|^2, because |g|^4 of a small gradient may be 0 in float32.
    return _next(batch_size, _needed(_needed(variance, square), square * theta**2), max_batch)


def orthogonality_test(
    example_grads: Any,
    *,
    batch_size: Scalar | None = None,
    nu: Scalar = 1.0,
    examples: int = 1,
    max_batch: int = UNLIMITED,
) -> jax.Array:
    """The batch size whose gradient has a small part that is orthogonal to the true gradient.

    Equations, with the mean g and the sample variances Var (over i, divided by n - 1) of the gradients of examples g_i:

        next = max(batch, ceil(sum_j Var_i((g_i - <g_i, g> / |g|^2 g)_j) / (nu^2 |g|^2)))     j over the entries

    Args:
      example_grads: a tree with a leading axis: one gradient per example, at least two.
      batch_size: examples in the batch, >= 2. Default None: the number of gradients (times `examples`).
      nu: relative norm of the orthogonal part that is allowed, > 0. Default 1 (official scripts).
      examples: how many examples each given gradient is a mean over, >= 1. Default 1.
      max_batch: the largest batch size, >= 2, which is the result where g is 0. Default 2^31 - 1.

    Returns:
      An int32 scalar: examples for the next step, never fewer than `batch_size`; the larger of this and
      `inner_product_test` is the augmented test. Collectives: one vector of scalars where leaves are sharded.

    Raises:
      ValueError: an argument outside its range, fewer than two examples.

    Example:
      >>> g = {"w": jnp.array([[1.0, 5.0], [3.0, -5.0]])}  # across the mean (2, 0): 5 and -5, variance 50
      >>> int(orthogonality_test(g, nu=0.5))  # 50 / (0.25 * 4)
      50

    Reference: Lau, Liu, Kolar. AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods. 2024, arXiv
    2402.11215; the test is of Bollapragada, Byrd, Nocedal 2018. The official code tests tensor by tensor and adds up,
    and its form for several devices squares a sum where squares are to be summed; here the gradient is one vector.
    """
    checks.arrays(example_grads=example_grads)
    checks.integer("examples", examples, 1)
    n, square, along, apart = _about("orthogonality_test", example_grads)
    batch_size = n * examples if batch_size is None else batch_size
    _check(batch_size, "nu", nu, max_batch)
    across = jnp.maximum(apart - divide(jnp.square(along), square + jnp.zeros_like(along)), 0)
    variance = examples * jnp.sum(across) / (n - 1)
    return _next(batch_size, _needed(variance, square * nu**2), max_batch)


GRADS = np.array([[1, 5], [3, -5]], np.float32)
SHARED: dict[str, Any] = {
    "form": "function",
    "paper": PAPER,
    "collectives": "norms",
    "golden": ("large_batch/norm_test",),
}
register(norm_test, **SHARED, example={"mean": GRADS.mean(0), "var": GRADS.var(0), "batch_size": 2})
register(inner_product_test, **SHARED, example={"example_grads": GRADS})
register(orthogonality_test, **SHARED, example={"example_grads": GRADS})
