"""How near training is to instability, from the largest curvature of the loss over a fixed set of batches.

sharpness      lambda = the largest eigenvalue of the Hessian H, or of P^(-1) H where updates are divided by P

ratio = learning_rate lambda / limit, above 1 unstable

method                                               limit of learning_rate lambda
gradient descent                                     2
heavy ball,  v <- b1 v + g                           2 (1 + b1)
averaged,    v <- b1 v + (1 - b1) g                  2 (1 + b1) / (1 - b1)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.diagnostics.gauss_newton_split import accumulated_hvp
from gradkit.diagnostics.gradient_subspace_fraction import top_eigenpairs
from gradkit.engine.matching import check_leaves, check_match
from gradkit.types import Key, PyTree, Scalar

PAPER = Paper(
    "A Loss Curvature Perspective on Training Instability in Deep Learning", "Gilmer et al.", 2021, "2110.04369"
)


class Sharpness(NamedTuple):
    """The largest eigenvalue, and the norm of H u - lambda u, which an eigenvalue is at most away."""

    value: jax.Array
    residual: jax.Array


def sharpness(
    loss_fn: Callable[..., Any],
    params: PyTree,
    key: Key,
    batches: Any,
    *,
    weights: Any = None,
    preconditioner: Any = None,
    steps: int | None = None,
) -> Sharpness:
    """The largest eigenvalue of the Hessian of the mean loss over fixed microbatches, with its error.

        lambda = max over u of u^T H u / |u|^2,   of P^(-1/2) H P^(-1/2) where there is a preconditioner

    Args:
      loss_fn: (params, microbatch) -> a scalar, twice differentiable: a mean over the examples of the microbatch.
      params: where the curvature is measured.
      key: a typed key or an integer, for the first vector.
      batches: a tree with one leading axis: the microbatches, the whole data set or a large part of it (paper). They
        are the same at every product.
      weights: (n,), >= 0 and not all 0, such as the examples in each. Default None: all equal.
      preconditioner: P > 0, a tree like `params`, such as the root of Adam's second moment plus eps. Default None: 1.
      steps: Lanczos steps, from 1 to the number of parameters; `steps` words per parameter are kept. Default None: 20,
        or all.

    Returns:
      (value, residual) in float32 or wider: the value is from below. Collectives: vectors of scalars where leaves are
      sharded, and what the loss needs.

    Raises:
      ValueError: an argument outside its range, trees that do not match.

    Example:
      >>> loss = lambda x, c: 0.5 * jnp.sum(c * x**2)
      >>> batches = jnp.array([[1.0, 5.0], [3.0, 0.0]])
      >>> measure = jax.jit(lambda x, key: sharpness(loss, x, key, batches))
      >>> round(float(measure(jnp.ones(2), jax.random.key(0)).value), 4)  # of the mean, [2, 2.5]
      2.5

    Reference: Gilmer et al. A Loss Curvature Perspective on Training Instability in Deep Learning. 2021, arXiv
    2110.04369. `gk.diagnostics.top_hessian_eigenvalue` is the same of one batch, in three words per parameter.
    """
    checks.arrays(params=params, preconditioner=preconditioner)
    checks.function("loss_fn", loss_fn)
    check_leaves("sharpness", params, complex_leaves=False)
    root = None
    if preconditioner is not None:
        check_match("sharpness", preconditioner, params)
        root = jax.tree.map(lambda d, x: jax.lax.rsqrt(jnp.asarray(d, x.dtype)), preconditioner, params)

    def times_root(v: Any) -> Any:
        return v if root is None else jax.tree.map(jnp.multiply, root, v)

    def product(v: Any) -> Any:
        return times_root(accumulated_hvp(loss_fn, params, times_root(v), batches, weights=weights))

    size = sum(jnp.size(x) for x in jax.tree.leaves(params))
    found = top_eigenpairs(product, key, params, 1, steps=min(20, size) if steps is None else steps)
    return Sharpness(found.values[0], found.residuals[0])


class CurvatureStability(NamedTuple):
    """Where a method with this learning rate is.

    Attributes:
      ratio: learning_rate lambda / limit; above 1 the steps along the sharpest direction grow.
      limit: of learning_rate lambda.
      largest_rate: the largest stable learning rate, limit / lambda; infinite where lambda <= 0.
    """

    ratio: Any
    limit: Any
    largest_rate: Any


def curvature_stability(
    eigenvalue: Any, learning_rate: Scalar, *, b1: Scalar = 0.0, averaged: bool = False
) -> CurvatureStability:
    """The learning rate beside the largest that is stable at this curvature.

        limit of learning_rate lambda:   2 (1 + b1),  divided by 1 - b1 where the momentum is an average

    Args:
      eigenvalue: lambda, as `gk.diagnostics.sharpness` measures it (with the method's preconditioner); any shape.
      learning_rate: >= 0.
      b1: momentum, in [0, 1). Default 0: gradient descent, or a preconditioned method without momentum.
      averaged: whether the momentum is v <- b1 v + (1 - b1) g, as Adam's is, and not v <- b1 v + g. Default False.

    Returns:
      (ratio, limit, largest_rate), of the shape of `eigenvalue`.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> found = curvature_stability(50.0, 0.05)
      >>> found.ratio.item(), found.limit.item(), round(found.largest_rate.item(), 3)
      (1.25, 2.0, 0.04)
      >>> round(curvature_stability(50.0, 0.5, b1=0.9, averaged=True).ratio.item(), 3)  # 25 / 38
      0.658

    Reference: Gilmer et al. A Loss Curvature Perspective on Training Instability in Deep Learning. 2021, arXiv
    2110.04369.
    """
    checks.arrays(eigenvalue=eigenvalue)
    checks.real("learning_rate", learning_rate, "[0, inf)")
    checks.real("b1", b1, "[0, 1)")
    checks.switch(averaged=averaged)
    lam = jnp.asarray(eigenvalue, jnp.result_type(float))
    rate, b = (jnp.asarray(x, lam.dtype) for x in (learning_rate, b1))
    limit = 2 * (1 + b) / (1 - b) if averaged else 2 * (1 + b)
    positive = lam > 0
    largest = jnp.where(positive, limit / jnp.where(positive, lam, 1), jnp.inf)
    return CurvatureStability(rate * lam / limit, limit, largest)


SHARED: dict[str, Any] = {"paper": PAPER}
ONES = np.ones(2, np.float32)
register(
    sharpness,
    form="function",
    **SHARED,
    collectives="norms",
    example={
        "loss_fn": lambda x, c: jnp.sum(c * x**2),
        "params": ONES,
        "key": np.zeros(2, np.uint32),
        "batches": np.ones((3, 2), np.float32),
    },
)
register(curvature_stability, form="function", **SHARED, example={"eigenvalue": 50.0, "learning_rate": 0.01})
