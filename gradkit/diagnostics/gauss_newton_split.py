"""Products with the Hessian of a loss, and the Hessian as the sum of two parts.

H v      = d/dt grad L(x + t v) at t = 0                             one derivative of the gradient
H v      = sum_i w_i H_i v / sum_i w_i                               over microbatches i of a fixed data set
H        = G + R,   for L(x) = loss(f(x)), z = f(x), J = df/dx
G v      = J^T (d^2 loss / dz^2) J v                                 the Gauss-Newton matrix; rank <= entries of z
R v      = sum_k (d loss / dz_k) (d^2 z_k / dx^2) v                  0 where the loss is stationary in the outputs
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype
from gradkit.engine.matching import check_leaves, check_match
from gradkit.types import PyTree

PAPER = Paper(
    "Empirical Analysis of the Hessian of Over-Parametrized Neural Networks", "Sagun et al.", 2017, "1706.04454"
)


def _checked(method: str, params: Any, v: Any) -> Any:
    """The vector in the dtypes of the parameters."""
    check_leaves(method, params, complex_leaves=False)
    check_match(method, v, params)
    check_leaves(method, v, complex_leaves=False)
    return jax.tree.map(lambda x, p: jnp.asarray(x, jnp.result_type(p)), v, params)


def _product(loss_fn: Callable[..., Any], params: Any, v: Any, args: tuple[Any, ...]) -> Any:
    return jax.jvp(jax.grad(lambda x: loss_fn(x, *args)), (params,), (v,))[1]


def hvp(loss_fn: Callable[..., Any], params: PyTree, v: Any, *args: Any) -> Any:
    """The product of the Hessian of a loss with a vector.

        H v = d/dt grad L(x + t v) at t = 0

    Args:
      loss_fn: (params, *args) -> a scalar, twice differentiable.
      params: x, where the curvature is taken.
      v: a tree like `params`.
      *args: further arguments of the loss, such as a batch.

    Returns:
      A tree like `params`, sharded as they are. Costs two to three gradients; no collective of its own.

    Raises:
      ValueError: a loss that cannot be called, leaves that are not real, a vector that does not match the parameters.

    Example:
      >>> loss = lambda x: x[0] ** 2 * x[1]
      >>> hvp(loss, jnp.array([1.0, 3.0]), jnp.array([1.0, 0.0])).tolist()  # [2 x_1, 2 x_0]
      [6.0, 2.0]

    Reference: Sagun et al. Empirical Analysis of the Hessian of Over-Parametrized Neural Networks. 2017, arXiv
    1706.04454; Pearlmutter 1994.
    """
    checks.arrays(params=params, v=v)
    checks.function("loss_fn", loss_fn)
    return _product(loss_fn, params, _checked("hvp", params, v), args)


def accumulated_hvp(loss_fn: Callable[..., Any], params: PyTree, v: Any, batches: Any, *, weights: Any = None) -> Any:
    """The product of a vector with the Hessian of the mean loss over the microbatches of a fixed data set.

        H v = sum_i w_i H_i v / sum_i w_i

    An eigenvalue needs one operator from the first product to the last: with a new batch at every product the values
    of different matrices are mixed, and iterations do not converge. One microbatch is in memory at a time.

    Args:
      loss_fn: (params, microbatch) -> a scalar, twice differentiable: a mean over the examples of the microbatch.
      params: where the curvature is taken.
      v: a tree like `params`.
      batches: a tree of arrays with one leading axis of the same length n: the microbatches.
      weights: (n,), >= 0 and not all 0, such as the number of examples in each. Default None: all equal.

    Returns:
      A tree like `params`, sharded as they are; the sum is in float32 or wider.

    Raises:
      ValueError: a loss that cannot be called, leaves that are not real, a vector that does not match the parameters,
        leading axes or weights of different lengths.

    Example:
      >>> loss = lambda x, c: 0.5 * jnp.sum(c * x**2)
      >>> batches = jnp.array([[1.0, 2.0], [3.0, 6.0]])
      >>> accumulated_hvp(loss, jnp.ones(2), jnp.ones(2), batches, weights=jnp.array([3.0, 1.0])).tolist()
      [1.5, 3.0]

    Reference: Sagun et al. Empirical Analysis of the Hessian of Over-Parametrized Neural Networks. 2017, arXiv
    1706.04454.
    """
    checks.arrays(params=params, v=v, batches=batches, weights=weights)
    checks.function("loss_fn", loss_fn)
    v = _checked("accumulated_hvp", params, v)
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(batches)}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        raise ValueError(
            f"accumulated_hvp: batches must have the same leading axis on every leaf, one entry per microbatch, got "
            f"leading axes {sorted(lengths)}; stack the microbatches, or write hvp(loss_fn, params, v, batch) for one"
        )
    ((n,),) = lengths
    if weights is not None and jnp.shape(weights) != (n,):
        raise ValueError(
            f"accumulated_hvp: weights must have shape ({n},), one per microbatch, got {jnp.shape(weights)}"
        )
    w = jnp.ones(n, jnp.float32) if weights is None else jnp.asarray(weights, jnp.result_type(float))
    w = w / jnp.sum(w)

    def add(total: Any, row: Any) -> tuple[Any, None]:
        share, batch = row
        part = _product(loss_fn, params, v, (batch,))
        return jax.tree.map(lambda t, p: t + share.astype(t.dtype) * p.astype(t.dtype), total, part), None

    zero = jax.tree.map(lambda x: jnp.zeros_like(x, wide_dtype(jnp.result_type(x))), params)
    total, _ = jax.lax.scan(add, zero, (w, jax.tree.map(jnp.asarray, batches)))
    return jax.tree.map(lambda t, p: t.astype(jnp.result_type(p)), total, params)


class GaussNewtonSplit(NamedTuple):
    """The product of a vector with each part of a Hessian: with the Gauss-Newton matrix, and with what is left."""

    gauss_newton: Any
    residual: Any


def gauss_newton_split(
    model_fn: Callable[..., Any], loss_fn: Callable[..., Any], params: PyTree, v: Any, inputs: Any, *args: Any
) -> GaussNewtonSplit:
    """The product of a vector with the Gauss-Newton matrix, and with the rest of the Hessian.

        H v = G v + R v,   G v = J^T (d^2 loss / dz^2) J v,   R v = sum_k (d loss / dz_k) (d^2 z_k / dx^2) v

    G has no more nonzero eigenvalues than the outputs of all examples have entries, and is positive semidefinite where
    the loss is convex in the outputs. `lambda v: gauss_newton_split(...).gauss_newton` is an operator for
    `gk.diagnostics.top_eigenpairs` and all others.

    Args:
      model_fn: (params, inputs) -> outputs z, a tree of floating point arrays; twice differentiable.
      loss_fn: (outputs, *args) -> a scalar, twice differentiable.
      params: x, where the curvature is taken.
      v: a tree like `params`.
      inputs: what the model is given.
      *args: further arguments of the loss, such as targets.

    Returns:
      (G v, R v), trees like `params`. R v is computed by itself, and not as a difference.

    Raises:
      ValueError: functions that cannot be called, leaves that are not real, a vector that does not match the
        parameters.

    Example:
      >>> model = lambda x, a: a * x**2
      >>> loss = lambda z, y: 0.5 * jnp.sum((z - y) ** 2)
      >>> parts = gauss_newton_split(model, loss, jnp.array([3.0]), jnp.array([1.0]), 1.0, 4.0)
      >>> [x.item() for x in parts]  # (2 x)^2, and 2 (x^2 - y)
      [36.0, 10.0]

    Reference: Sagun et al. Empirical Analysis of the Hessian of Over-Parametrized Neural Networks. 2017, arXiv
    1706.04454.
    """
    checks.arrays(inputs=inputs)
    checks.arrays(params=params, v=v)
    checks.function("model_fn", model_fn)
    checks.function("loss_fn", loss_fn)
    v = _checked("gauss_newton_split", params, v)

    def model(x: Any) -> Any:
        return model_fn(x, inputs)

    outputs, pull = jax.vjp(model, params)
    slope_fn = jax.grad(lambda z: loss_fn(z, *args))
    _, pushed = jax.jvp(model, (params,), (v,))
    slope, curved = jax.jvp(slope_fn, (outputs,), (pushed,))

    def pulled(x: Any) -> Any:
        return jax.vjp(model, x)[1](slope)[0]

    return GaussNewtonSplit(pull(curved)[0], jax.jvp(pulled, (params,), (v,))[1])


ONES = np.ones(2, np.float32)
SHARED: dict[str, Any] = {"form": "function", "paper": PAPER}
register(hvp, **SHARED)
register(
    accumulated_hvp,
    **SHARED,
    example={
        "loss_fn": lambda x, c: jnp.sum(c * x**2),
        "params": ONES,
        "v": ONES,
        "batches": np.ones((3, 2), np.float32),
    },
)
register(
    gauss_newton_split,
    **SHARED,
    example={
        "model_fn": lambda x, a: a * x**2,
        "loss_fn": lambda z: jnp.sum(z**2),
        "params": ONES,
        "v": ONES,
        "inputs": ONES,
    },
)
