"""Inverse p-th roots (A + eps I)^(-1/p) of symmetric positive semidefinite matrices."""

import math
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gradkit import checks
from gradkit.linalg.one_by_one import one_by_one
from gradkit.types import Scalar

METHODS = ("eigh", "coupled_newton", "higher_order")
# An error larger than the best so far by this factor is growing rounding, not convergence (official code).
GROWTH = 1.2
NEAR = 0.1


def check_root(*, p: Any, eps: Scalar, method: str, max_iters: int = 100, tolerance: Any = 1e-6) -> None:
    """Raises `ValueError` where an option of `inverse_root` is out of its range."""
    checks.choice("method", method, METHODS)
    checks.real("p", p, "(0, inf)")
    check_eps(eps)
    checks.integer("max_iters", max_iters, 1)
    checks.real("tolerance", tolerance, "[0, inf)")
    if method == "coupled_newton" and not float(p).is_integer():
        raise ValueError(
            f"p must be a whole number with method='coupled_newton', got {p!r}; give method='higher_order' for a "
            "fraction, or method='eigh' for any p"
        )


def check_eps(eps: Scalar) -> None:
    """Raises `ValueError` where eps, one number or one per matrix, is out of its range."""
    for one in [] if isinstance(eps, Tracer) else np.ravel(np.asarray(eps)).tolist():
        checks.real("eps", one, "[0, inf)")


def _number(value: Any, like: jax.Array) -> Any:
    """A Python number unchanged, anything else in the dtype of the array."""
    return value if type(value) in (int, float) else jnp.asarray(value).astype(like.dtype)


def _eye(A: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.eye(A.shape[-1], dtype=A.dtype), A.shape)


def _by_eigh(A: jax.Array, p: Any, eps: Any) -> jax.Array:
    values, Q = one_by_one(partial(jnp.linalg.eigh, symmetrize_input=False), A)
    low = jnp.min(values, axis=-1, keepdims=True)
    values = values + jnp.maximum(jnp.expand_dims(eps, -1) - low, 0)
    return (Q * jnp.expand_dims(values ** (-1 / p), -2)) @ jnp.swapaxes(Q, -1, -2)


def _power(M: jax.Array, p: int) -> jax.Array:
    """M^p by repeated squaring."""
    out = None
    while p:
        if p & 1:
            out = M if out is None else out @ M
        p >>= 1
        M = M @ M if p else M
    return M if out is None else out


def _by_iteration(A: jax.Array, p: int, tolerance: Any, max_iters: int, higher: bool) -> jax.Array:
    one = _eye(A)
    size = jnp.trace(A, axis1=-2, axis2=-1) if higher else jnp.sqrt(jnp.sum(jnp.square(A), axis=(-2, -1)))
    z = (1.0 if higher else (p + 1) / 2) / size.reshape(*size.shape, 1, 1)
    b1, b2 = 1 / p, (1 + p) / (2 * p * p)

    def error_of(M: jax.Array) -> jax.Array:
        return jnp.max(jnp.abs(M - one), axis=(-2, -1), keepdims=True)

    def body(carry: Any) -> Any:
        i, X, M, error, active = carry
        rest = one - M
        factor = one + b1 * rest
        if higher:
            # The first step is of order 2: far from I the cubic term would increase the error.
            factor = factor + jnp.where(i == 0, 0.0, b2) * (rest @ rest)
        new_M = _power(factor, p) @ M
        new_error = error_of(new_M)
        # Far from I the error may rise before it falls; near I an error that does not fall is rounding.
        bad = ~jnp.isfinite(new_error) | ((new_error > GROWTH * error) & (error < 1))
        bad = bad | ((new_error >= error) & (error < NEAR))
        take = active & ~bad
        X, M = jnp.where(take, X @ factor, X), jnp.where(take, new_M, M)
        error = jnp.where(take, new_error, error)
        return i + 1, X, M, error, take & (error > tolerance)

    M = z * A
    X = z ** (1 / p) * one
    error = error_of(M)
    start = (jnp.zeros((), jnp.int32), X, M, error, error > tolerance)
    _, X, _, error, _ = jax.lax.while_loop(lambda c: (c[0] < max_iters) & jnp.any(c[4]), body, start)
    # The iteration diverges for a negative eigenvalue, which rounding makes of a zero one; positive ones stay within 1.
    return jnp.where(error <= GROWTH, X, jnp.nan)


def inverse_root(
    A: jax.Array, p: Any, *, eps: Scalar = 0.0, method: str = "eigh", max_iters: int = 100, tolerance: Scalar = 1e-6
) -> jax.Array:
    """The inverse p-th root of every matrix of a batch, (A + eps I)^(-1/p).

    Equations:

        "eigh"            A + eps I = Q diag(l) Q^T,    result Q diag(l^(-1/p)) Q^T
        "coupled_newton"  z = (p + 1) / (2 |A|_F),      X = z^(1/p) I,    M = z A         M = X^p A -> I
                          M' = (1 + 1/p) I - M / p,     X <- X M',        M <- M'^p M     until max |M - I| <= tolerance
        "higher_order"    z = 1 / Tr(A), the same start, one step of "coupled_newton", then steps of order 3:
                          M' = I + b_1 (I - M) + b_2 (I - M)^2,   b_i = prod_{j <= i} (1 + (j - 1) p) / (j p)

    With "eigh", where min(l) < eps, the same number is added to all l so that min(l) = eps. The iterations take A + eps
    I for A and work on all matrices of a batch until the last of them has converged; a matrix that has converged, or
    whose error max |M - I| no longer falls near I, does not change any more. "eigh" takes any p, and in float64 is
    right to the last digits; the iterations consist of matrix products only, which are much faster on accelerators, and
    end at `tolerance`. Whatever the solver, rounding of A limits eps: in float32 an eps below 1e-6 of the largest
    eigenvalue of a singular matrix gives roots that are wrong by 1e-2 and more in the null space
    (`experiments/results/linalg_roots.txt`).

    Args:
      A: (..., d, d), symmetric positive semidefinite up to rounding, in float32 or float64; only the lower triangle is
        read.
      p: the root, > 0. With "coupled_newton" a whole number, with "higher_order" a fraction p'/q' of small numbers (the
        result is then the p'-th root to the power q'), with "eigh" any number, also a traced one.
      eps: added to the diagonal first, >= 0: a number, or one per matrix, of shape A.shape[:-2]. Default 0.
      method: "eigh", "coupled_newton" or "higher_order". Default "eigh".
      max_iters: largest number of iterations, >= 1. Default 100 (official code).
      tolerance: error max |M - I| that ends the iterations, >= 0. Default 1e-6 (official code).

    Returns:
      (..., d, d), symmetric, in the dtype of A. It is not finite where A + eps I is singular, and where rounding made
      an iteration diverge.

    Raises:
      ValueError: an argument outside its range; a matrix that is not square.

    Example:
      >>> print(inverse_root(jnp.diag(jnp.array([16.0, 81.0])), 4))
      [[0.5        0.        ]
       [0.         0.33333334]]

    Reference: Shi et al. A Distributed Data-Parallel PyTorch Implementation of the Distributed Shampoo Optimizer. 2023,
    arXiv 2309.06497; Guo, Higham. A Schur-Newton Method for the Matrix p-th Root and its Inverse. 2006. Departures from
    the official code: a failure in float32 is not retried in float64; a fraction is recognised in p.
    """
    checks.arrays(A=A)
    if isinstance(p, int | float):
        check_root(p=p, eps=eps, method=method, max_iters=max_iters, tolerance=tolerance)
    else:
        checks.choice("method", method, ("eigh",))
        check_eps(eps)
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"inverse_root: A must be a batch of square matrices, got the shape {A.shape}")
    if not A.size:
        return A
    lower = jnp.tril(A)
    A = lower + jnp.swapaxes(jnp.tril(A, -1), -1, -2)
    eps = jnp.asarray(eps, A.dtype)
    if eps.ndim and eps.shape != A.shape[:-2]:
        raise ValueError(f"inverse_root: eps must be one number or of shape {A.shape[:-2]}, got the shape {eps.shape}")
    eps = jnp.broadcast_to(eps, A.shape[:-2])
    A = A + jnp.expand_dims(eps, (-2, -1)) * _eye(A)
    with jax.default_matmul_precision("highest"):
        if method == "eigh":
            X = _by_eigh(A, _number(p, A), eps)
        else:
            exact = Fraction(p).limit_denominator(64)
            if not math.isclose(float(exact), p, rel_tol=1e-12):
                raise ValueError(f"p must be a fraction of small whole numbers with method='higher_order', got {p!r}")
            X = _by_iteration(A, exact.numerator, tolerance, max_iters, method == "higher_order")
            X = _power(X, exact.denominator)
        return (X + jnp.swapaxes(X, -1, -2)) / 2
