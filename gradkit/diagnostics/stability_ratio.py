"""How close a learning rate is to the edge of stability."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.diagnostics.lanczos import lanczos, ritz
from gradkit.engine.matching import check_leaves, check_match
from gradkit.types import Key, PyTree, Scalar

PAPER = Paper(
    "A Loss Curvature Perspective on Training Instability in Deep Learning", "Gilmer et al.", 2021, "2110.04369"
)


def top_hessian_eigenvalue(
    loss_fn: Callable[..., Any],
    params: PyTree,
    key: Key,
    *args: Any,
    iterations: int = 20,
    preconditioner: Any = None,
) -> jax.Array:
    """The largest eigenvalue of the Hessian of a loss, by Lanczos iterations with products of the Hessian.

    Equations: those of `gk.diagnostics.lanczos`, without reorthogonalization, whose absence only repeats eigenvalues.

    Args:
      loss_fn: (params, *args) -> a scalar, twice differentiable.
      params: the parameters at which the curvature is measured.
      key: a random key (typed key or integer) for the first vector.
      *args: further arguments of the loss, such as a batch.
      iterations: products with the Hessian, >= 1. Default 20.
      preconditioner: D > 0, a tree like `params`, such as the root of Adam's second moment plus eps; the eigenvalue is
        then that of D^(-1/2) H D^(-1/2). Default None: of the Hessian.

    Returns:
      One number, in float32 or wider: a lower bound that improves with the number of iterations. Negative where the
      loss is concave. Collectives: vectors of scalars where leaves are sharded, and those of the loss.

    Raises:
      ValueError: a loss that cannot be called, fewer than one iteration, leaves that are not real, a preconditioner
        that does not match the parameters.

    Example:
      >>> loss = lambda x: 0.5 * (3 * x[0] ** 2 + x[1] ** 2 - 2 * x[2] ** 2)
      >>> round(float(top_hessian_eigenvalue(loss, jnp.ones(3), 0)), 4)
      3.0

    Reference: Gilmer et al. A Loss Curvature Perspective on Training Instability in Deep Learning. 2021, arXiv
    2110.04369.
    """
    checks.arrays(params=params, preconditioner=preconditioner)
    checks.function("loss_fn", loss_fn)
    iterations = checks.integer("iterations", iterations, 1)
    check_leaves("top_hessian_eigenvalue", params, complex_leaves=False)
    grad_fn = jax.grad(lambda x: loss_fn(x, *args))
    root = None
    if preconditioner is not None:
        check_match("top_hessian_eigenvalue", preconditioner, params)
        root = jax.tree.map(lambda d, x: jax.lax.rsqrt(jnp.asarray(d, x.dtype)), preconditioner, params)

    def product(v: Any) -> Any:
        if root is None:
            return jax.jvp(grad_fn, (params,), (v,))[1]
        inner = jax.tree.map(jnp.multiply, root, v)
        return jax.tree.map(jnp.multiply, root, jax.jvp(grad_fn, (params,), (inner,))[1])

    entries = sum(x.size for x in jax.tree.leaves(params))
    found = ritz(*lanczos(product, key, params, max(1, min(iterations, entries)), reorthogonalize=False))
    # Where the first vector is in the span of fewer eigenvectors than iterations, the other values have no weight.
    tiny = jnp.square(jnp.finfo(found.weights.dtype).eps)
    return jnp.max(jnp.where(found.weights > tiny, found.values, -jnp.inf))


def stability_ratio(eigenvalue: Any, learning_rate: Scalar, *, b1: Scalar = 0.0) -> Any:
    """The learning rate divided by the largest that is stable at this curvature; above 1 training is unstable.

    Equations, with the largest eigenvalue lambda of the Hessian H, for gradient descent (b1 = 0) and the heavy ball
    m <- b1 m + g, x <- x - learning_rate m:

        ratio = lambda learning_rate / (2 (1 + b1))

    Above 1 the steps along the eigenvector grow. For a method that divides by a diagonal D, lambda is the largest
    eigenvalue of D^(-1/2) H D^(-1/2).

    Args:
      eigenvalue: lambda, as `top_hessian_eigenvalue` measures it; any shape.
      learning_rate: the learning rate, >= 0.
      b1: momentum of m <- b1 m + g, in [0, 1). Default 0: gradient descent. For m <- b1 m + (1 - b1) g, pass the
        learning rate times 1 - b1.

    Returns:
      The ratio, of the shape of `eigenvalue`; negative along a direction of negative curvature.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> stability_ratio(50.0, 0.05), round(stability_ratio(50.0, 0.05, b1=0.9), 3)  # nearly twice as stable
      (1.25, 0.658)

    Reference: Gilmer et al. A Loss Curvature Perspective on Training Instability in Deep Learning. 2021, arXiv
    2110.04369: warm-up helps because the eigenvalue falls before the learning rate is large.
    """
    checks.arrays(eigenvalue=eigenvalue)
    checks.real("learning_rate", learning_rate, "[0, inf)")
    checks.real("b1", b1, "[0, 1)")
    return eigenvalue * learning_rate / (2 * (1 + b1))


register(top_hessian_eigenvalue, form="program", paper=PAPER, collectives="norms")
register(stability_ratio, form="function", paper=PAPER, example={"eigenvalue": 50.0, "learning_rate": 0.01})
