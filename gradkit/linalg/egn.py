"""Damped Gauss-Newton systems, solved in the space of the examples instead of that of the parameters."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.linalg.damped import resolved
from gradkit.types import Scalar

Product = Callable[[Any], Any]
SOLVERS = ("woodbury", "cg", "dense")
MOST_ROWS = 4096


def _highest(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")


def gram(jvp: Product, vjp: Product, like: jax.Array) -> jax.Array:
    """J J^T, (b c) x (b c), for residuals of the shape of `like`."""
    basis = jnp.eye(like.size, dtype=like.dtype).reshape(-1, *like.shape)
    K = jax.vmap(lambda e: jvp(vjp(e)).reshape(-1))(basis)
    return (K + K.T) / 2


def times_loss_hessian(Q: jax.Array | None, rows: jax.Array) -> jax.Array:
    """Q times a matrix of b c rows."""
    if Q is None:
        return rows
    b, c = Q.shape[:2]
    return _highest(Q, rows.reshape(b, c, -1)).reshape(rows.shape)


def _small_solve(K: jax.Array, Q: jax.Array | None, shift: Any, rhs: jax.Array) -> jax.Array:
    """(shift I + Q K)^{-1} rhs for one column; the shift is raised where it is below the rounding of Q K."""
    shifted = times_loss_hessian(Q, K)
    shifted = shifted + resolved(shift, shifted) * jnp.eye(K.shape[0], dtype=K.dtype)
    if Q is not None:  # Q K is not symmetric, so Cholesky does not apply.
        return jnp.linalg.solve(shifted, rhs[:, None])[:, 0]
    lower, column = jnp.linalg.cholesky(shifted), rhs[:, None]
    column = jax.lax.linalg.triangular_solve(lower, column, left_side=True, lower=True)
    return jax.lax.linalg.triangular_solve(lower, column, left_side=True, lower=True, transpose_a=True)[:, 0]


def _dot(a: Any, b: Any) -> jax.Array:
    parts = [jnp.sum(x * y).astype(float) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return functools.reduce(operator.add, parts, jnp.zeros((), float))


def _plus(a: Any, scale: jax.Array, b: Any) -> Any:
    return jax.tree.map(lambda x, y: x + scale.astype(x.dtype) * y, a, b)


def _conjugate_gradients(matvec: Product, g: Any, iterations: int, tolerance: Any) -> Any:
    """A^{-1} g by conjugate gradients from 0, until |g - A x| <= tolerance |g|."""
    goal = jnp.square(jnp.asarray(tolerance).astype(float)) * _dot(g, g)

    def going(carry: Any) -> jax.Array:
        i, _, _, _, square = carry
        return (i < iterations) & (square > goal)

    def step(carry: Any) -> Any:
        i, x, r, p, square = carry
        Ap = matvec(p)
        # Without curvature along p above rounding the search has ended: the step is 0.
        curvature = _dot(p, Ap)
        alpha = jnp.where(curvature > 0, square / jnp.where(curvature > 0, curvature, 1), 0)
        x, r = _plus(x, alpha, p), _plus(r, -alpha, Ap)
        new = _dot(r, r)
        return i + 1, x, r, _plus(r, new / square, p), new

    start = (jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, g), g, g, _dot(g, g))
    return jax.lax.while_loop(going, step, start)[1]


def damped_inverse(
    jvp: Product,
    vjp: Product,
    g: Any,
    *,
    like: jax.Array,
    damping: Any,
    loss_hessian: jax.Array | None = None,
    solver: str = "woodbury",
    cg_iterations: int = 100,
    cg_tolerance: Any = 1e-6,
) -> Any:
    """A^{-1} g for any tree g; the arguments are those of `damped_gauss_newton_solve`, and residuals have the shape of
    `like`."""
    b, shift = like.shape[0], jnp.asarray(damping).astype(like.dtype)

    def matvec(v: Any) -> Any:
        row = times_loss_hessian(loss_hessian, jvp(v).reshape(-1)).reshape(like.shape)
        return jax.tree.map(lambda x, y: x / b + shift.astype(x.dtype) * y, vjp(row), v)

    if solver == "cg":
        return _conjugate_gradients(matvec, g, cg_iterations, cg_tolerance)
    if solver == "dense":
        flat, back = ravel_pytree(g)
        columns = jax.vmap(lambda e: ravel_pytree(matvec(back(e)))[0])
        eye = jnp.eye(flat.size, dtype=flat.dtype)
        A = columns(eye).T
        # A contains the damping already; only what it lacks to be above rounding is added.
        A = A + jnp.maximum(resolved(0, A) - shift.astype(A.dtype), 0) * eye
        return back(jnp.linalg.solve(A, flat[:, None])[:, 0])
    right = times_loss_hessian(loss_hessian, jvp(g).reshape(-1))
    w = _small_solve(gram(jvp, vjp, like), loss_hessian, b * shift, right)
    return jax.tree.map(lambda x, y: (x - y) / shift.astype(x.dtype), g, vjp(w.reshape(like.shape)))


def check_solver(solver: Any, cg_iterations: Any, cg_tolerance: Any) -> None:
    """Raises `ValueError` for arguments that `damped_gauss_newton_solve` does not accept, before there are arrays."""
    checks.choice("solver", solver, SOLVERS)
    checks.integer("cg_iterations", cg_iterations, 1)
    checks.real("cg_tolerance", cg_tolerance, "[0, 1)")


def check_rows(method: str, like: jax.Array, solver: str) -> None:
    """Raises `ValueError` where the system of the "woodbury" solver would be too large to build."""
    if solver == "woodbury" and like.size > MOST_ROWS:
        raise ValueError(
            f"{method}: {like.shape[0]} examples of {like.size // like.shape[0]} outputs make a system of {like.size} "
            f"rows, more than {MOST_ROWS}; give solver='cg', or fewer examples"
        )


def damped_gauss_newton_solve(
    jvp: Product,
    vjp: Product,
    residual: jax.Array,
    *,
    damping: Scalar,
    loss_hessian: jax.Array | None = None,
    solver: str = "woodbury",
    cg_iterations: int = 100,
    cg_tolerance: Any = 1e-6,
) -> Any:
    """The damped Gauss-Newton direction A^{-1} J^T r / b of a loss that is a mean over examples.

    Equations:

        J          derivative of the predictions by the parameters, (examples b times outputs c) x (parameters d)
        Q          second derivative of the loss of each example by its predictions, c x c blocks
        A          J^T Q J / b + damping I
        A^{-1} J^T r / b = J^T (b damping I + Q J J^T)^{-1} r                                    a system of b c rows
        A^{-1} g         = (g - J^T (b damping I + Q J J^T)^{-1} Q J g) / damping                for any g

    J J^T is built column by column from products J v and J^T w. The result is a direction of descent: parameters move
    by a positive multiple of it.

    Args:
      jvp: v -> J v, from a tree like the parameters to an array like `residual`. Linear.
      vjp: w -> J^T w, its transpose.
      residual: r, (b,) or (b, c): minus the derivative of the loss of every example by its predictions: target minus
        prediction for half a squared error, one-hot target minus softmax for the cross-entropy.
      damping: added to the curvature, in its units, > 0.
      loss_hessian: Q, (b, c, c), symmetric and positive semidefinite; may be singular. Default None: the identity, for
        half a squared error.
      solver: "woodbury", the system of b c rows, at most 4096, by Cholesky (by LU where there is a Q, which makes it
        nonsymmetric), exact to rounding; "cg", conjugate gradients on A, which builds no matrix; "dense", A itself,
        d x d, for tests. Default "woodbury" (paper).
      cg_iterations: largest number of iterations of "cg", >= 1. Default 100.
      cg_tolerance: norm of the residual at which "cg" stops, relative to its right side, in [0, 1). Default 1e-6.

    Returns:
      A tree like the parameters. Collectives on a mesh: those of the model's products, and an all-reduce of (b c)^2
      numbers.

    Raises:
      ValueError: an argument outside its range; a residual that is not (b,) or (b, c); a Q of another shape; a system
        of more than 4096 rows.

    Example:
      >>> X, y = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([1.0, 2.0])
      >>> p = damped_gauss_newton_solve(lambda v: X @ v, lambda w: w @ X, y, damping=1e-6)
      >>> print(p.round(3))  # one step from 0 to the least-squares solution
      [1. 1.]

    Reference: Korbit et al. Exact Gauss-Newton Optimization for Training Deep Neural Networks. 2024, arXiv 2405.14402.
    Its authors' second release factors Q + 1e-6 I and applies the factor on the wrong side; this is the first
    release's system, which needs no factor.
    """
    checks.function("jvp", jvp)
    checks.function("vjp", vjp)
    checks.arrays(residual=residual, loss_hessian=loss_hessian)
    checks.real("damping", damping, "(0, inf)")
    check_solver(solver, cg_iterations, cg_tolerance)
    if residual.ndim not in (1, 2) or not jnp.issubdtype(residual.dtype, jnp.floating):
        raise ValueError(f"residual must be floating point, (b,) or (b, c), got {residual.dtype}{list(residual.shape)}")
    b, c = residual.shape[0], residual.size // max(residual.shape[0], 1)
    if loss_hessian is not None and loss_hessian.shape != (b, c, c):
        raise ValueError(f"loss_hessian must be {(b, c, c)}, got {loss_hessian.shape}")
    check_rows("damped_gauss_newton_solve", residual, solver)
    if solver != "woodbury":
        g = jax.tree.map(lambda x: x / b, vjp(residual))
        rest: Any = {"solver": solver, "cg_iterations": cg_iterations, "cg_tolerance": cg_tolerance}
        return damped_inverse(jvp, vjp, g, like=residual, damping=damping, loss_hessian=loss_hessian, **rest)
    shift = b * jnp.asarray(damping).astype(residual.dtype)
    w = _small_solve(gram(jvp, vjp, residual), loss_hessian, shift, residual.reshape(-1))
    return vjp(w.reshape(residual.shape))


register(
    damped_gauss_newton_solve,
    form="program",
    paper=Paper(
        "Exact Gauss-Newton Optimization for Training Deep Neural Networks", "Korbit et al.", 2024, "2405.14402"
    ),
)
