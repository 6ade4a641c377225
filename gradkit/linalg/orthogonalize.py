"""The nearest orthogonal matrix U V^T of X = U diag(s) V^T, by matrix products only."""

import math
import numbers
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.linalg.one_by_one import one_by_one
from gradkit.types import DTypeLike, Scalar

Coefficients = Sequence[tuple[float, float, float]]

# A list longer than the number of steps is truncated; the last entry of a shorter list is repeated.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
_CONVERGED = (1.875, -1.25, 0.375)
SAFETY = 1.01
PRESETS: dict[str, Coefficients] = {
    "muon": ((3.4445, -4.7750, 2.0315),),
    "dion": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "polar_express": (*_POLAR_EXPRESS, _CONVERGED),
    # The last entry is not divided, so that the iteration converges to 1.
    "polar_express_safe": (*((a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in _POLAR_EXPRESS), _CONVERGED),
    "aol": (
        (4.0098, -7.0585, 2.4635),
        (3.4585, -5.5479, 2.5959),
        (2.7573, -3.2939, 1.4254),
        (2.7215, -3.0494, 1.3169),
    ),
    "quintic": ((2.0, -1.5, 0.5),),
}
# z of a preset: room for singular values that rounding has pushed above 1.
NORM_FACTORS = {"polar_express_safe": SAFETY}
METHODS = ("newton_schulz", "plain", "gram", "svd")
PRECONDITIONS = ("frobenius", "schatten4", "aol")
# XLA's batched product on CPU is slower than one product after another for matrices of this many entries and more.
LOOP_FROM = 128 * 128


def orthogonalize(
    x: jax.Array,
    *,
    steps: int = 5,
    coefficients: Any = "muon",
    method: str | Callable[[jax.Array], jax.Array] = "newton_schulz",
    eps: Scalar = 1e-7,
    dtype: DTypeLike | None = None,
    precondition: str = "frobenius",
) -> jax.Array:
    """Replaces the singular values of every matrix of a batch by (nearly) 1.

    Equations:

        X <- X / (z |X|_F + eps)                                              so that 0 <= s <= 1
        for every (a, b, c):   A = X X^T,   X <- a X + (b A + c A A) X        s <- a s + b s^3 + c s^5

    z is 1, and 1.01 for "polar_express_safe"; with precondition="schatten4" the norm is |X X^T|_F^(1/2), which is
    smaller. The "gram" form is the same map with iterates on the short side n of the n x m matrix:

        R = X X^T,   Q = I
        for every (a, b, c):   Z = a I + b R + c R R,   Q <- Q Z,   R <- Z R Z
        X <- Q X

    It costs 28 n^3 + 8 n^2 m operations instead of 10 n^3 + 20 n^2 m (five steps, one restart): less where m > 1.5 n,
    for every number of steps above one. A restart (X <- Q X, then R and Q from the new X; after the second step, and
    three steps after each restart) bounds the rounding error: a negative eigenvalue of R grows by a^2 in every step.
    The product is always taken on the short side, so a matrix and its transpose give the same result. Matrices of 128 x
    128 and more are processed one by one on CPU (`jax.lax.map`), where that is faster; smaller ones, and all matrices
    on accelerators, in one batched product.

    Args:
      x: (..., rows, columns), floating point and real.
      steps: iterations, >= 1. Default 5 (Jordan et al.). Not used by "svd".
      coefficients: a preset, one triple (a, b, c) for all steps, or a list of them: with more steps than entries the
        last entry repeats, with fewer the first entries are used. After five steps (four for "aol") s in [0.01, 1] is
        mapped into
          "muon" (default)        [0.68, 1.13]
          "dion"                  [0.978, 1.032]
          "polar_express"         [0.876, 1.124], for s in [0.001, 1]; more steps converge to 1
        "quintic" is (2, -1.5, 0.5) at every step, which converges to 1: after twelve steps s is 1 up to rounding for
        s >= 0.01 and 5e-6 off for s = 0.001.
        "polar_express_safe" is the paper's form for low precision: the norm is multiplied by 1.01, and all triples
        except the last are divided by (1.01, 1.01^3, 1.01^5), which leaves 1 % of room for rounding above 1.
        "polar_express" has neither. "aol" belongs to the preconditioning of that name. Not used by "svd".
      method: "newton_schulz" (the form with fewer operations: on CPU, in float32 and wider, "gram", elsewhere
        "plain"); "plain" (as the equations have it); "gram" (the Gram form where m > 1.5 n, the plain one elsewhere);
        "svd" (exact; directions whose singular value is within rounding of 0 become 0); or a function from a batch
        (batch, n, m) of matrices with n <= m, not normalised, to one of the same shape, which replaces all of the
        above. Default "newton_schulz".
      eps: added to the Frobenius norm, >= 0. Default 1e-7 (official codes of Muon and Polar Express). A zero matrix
        gives zeros, also with 0.
      dtype: dtype of the iterations; the norm is taken in float32 or wider. Default None: that of x, float32 at least.
        The official code has bfloat16 on accelerators. Products are accumulated in float32. With "gram" take float16,
        as its authors do: in bfloat16 singular values of "polar_express" end up to 0.9 away from 1 (measured).
      precondition: "frobenius"; "schatten4", which divides by (sum of s^4)^(1/4), between the largest singular value
        and the Frobenius norm, at least eps; or "aol", which after the Frobenius norm divides every row (of the short
        side) by the root of the sum of |X X^T| along it: singular values start closer to 1, but singular vectors
        change, and a square matrix and its transpose give different results. Default "frobenius".

    Returns:
      An array like x.

    Raises:
      ValueError: fewer than two axes, a dtype that is not real floating point, steps < 1, coefficients that are
        neither a preset nor triples, an unknown method or preconditioning, "aol" coefficients without "aol"
        preconditioning (they change the sign of singular values near 1).

    Example:
      >>> x = jnp.array([[3.0, 0.0, 0.0], [0.0, 0.0, -4.0]])
      >>> print(orthogonalize(x, method="svd"))
      [[ 1.  0.  0.]
       [ 0.  0. -1.]]
      >>> print(orthogonalize(x, coefficients="polar_express", steps=8).round(4))
      [[ 1.  0.  0.]
       [ 0.  0. -1.]]

    Reference: Jordan et al. Muon: An optimizer for hidden layers in neural networks. 2024. Ahn et al. Dion:
    Distributed Orthonormalized Updates. 2025, arXiv 2504.05295. Amsel et al. The Polar Express. 2025, arXiv 2505.16932.
    optax raises for longer lists or takes their last entries, and runs fewer steps where the list is shorter.
    """
    checks.arrays(x=x)
    checks.floating_dtype(dtype=dtype)
    if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"orthogonalize needs real matrices (..., rows, columns), got {x.dtype}{list(x.shape)}")
    check_options(steps=steps, coefficients=coefficients, method=method, eps=eps, precondition=precondition)
    wide = _wide(x.dtype)
    dtype = wide if dtype is None else jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be real floating point, got {dtype}")
    if x.size == 0:
        return x
    tall = x.shape[-2] > x.shape[-1]
    y = (jnp.swapaxes(x, -1, -2) if tall else x).astype(wide)
    y = y.reshape(-1, *y.shape[-2:])
    if callable(method):
        y = method(y)
    elif method == "svd":
        y = _svd(y)
    else:
        abc = listed(coefficients, steps)
        gram = _in_gram_form(method, y.shape[-2], y.shape[-1], dtype)
        eps = eps if type(eps) in (int, float) else jnp.asarray(eps).astype(wide)
        z = NORM_FACTORS.get(coefficients, 1.0) if isinstance(coefficients, str) else 1.0
        y = _batched(y, jnp.asarray(eps, wide), abc=abc, z=z, gram=gram, dtype=dtype, precondition=precondition)
    y = y.reshape(*x.shape[:-2], *y.shape[-2:])
    return (jnp.swapaxes(y, -1, -2) if tall else y).astype(x.dtype)


def check_options(*, steps: Any, coefficients: Any, method: Any, eps: Scalar, precondition: Any = "frobenius") -> None:
    """Raises `ValueError` for options that `orthogonalize` does not accept, before there are arrays."""
    checks.integer("steps", steps, 1, maximum=checks.MOST_UNROLLED)
    checks.real("eps", eps, "[0, inf)")
    checks.choice("precondition", precondition, PRECONDITIONS)
    if not callable(method):
        checks.choice("method", method, METHODS)
    listed(coefficients, steps)
    if coefficients == "aol" and precondition != "aol" and method in ("newton_schulz", "plain", "gram"):
        raise ValueError(
            f"coefficients='aol' need precondition='aol', got precondition={precondition!r}: without the scaling of "
            "rows they change the sign of singular values near 1; write precondition='aol', or other coefficients"
        )


def _in_gram_form(method: Any, n: int, m: int, dtype: Any) -> bool:
    """Whether the iterates are those of the Gram form."""
    if method == "plain" or 2 * m <= 3 * n:
        return False
    # Accelerators may take products of float32 in fewer bits, and in bfloat16 the Gram form is far off.
    return method == "gram" or (jax.default_backend() == "cpu" and jnp.finfo(dtype).bits >= 32)


def _wide(dtype: Any) -> Any:
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def listed(coefficients: Any, steps: int) -> tuple[tuple[float, float, float], ...]:
    """The coefficients as one triple per step."""
    if isinstance(coefficients, str):
        checks.choice("coefficients", coefficients, PRESETS)
        entries = PRESETS[coefficients]
    else:
        entries = list(coefficients) if isinstance(coefficients, Sequence) else [coefficients]
        if entries and all(isinstance(entry, numbers.Real) for entry in entries):
            entries = [tuple(entries)]
    triples = []
    for entry in entries:
        if not (isinstance(entry, Sequence) and len(entry) == 3 and all(isinstance(k, numbers.Real) for k in entry)):
            raise ValueError(
                f"coefficients must be a preset, a triple (a, b, c) of numbers or a list of triples, got {entry!r}"
            )
        if not all(math.isfinite(k) for k in entry):
            raise ValueError(f"coefficients must be finite, got {entry!r}")
        triples.append((float(entry[0]), float(entry[1]), float(entry[2])))
    if not triples:
        raise ValueError("coefficients must hold at least one triple (a, b, c)")
    return tuple(triples[min(i, len(triples) - 1)] for i in range(steps))


@partial(jax.jit, static_argnames=("abc", "z", "gram", "dtype", "precondition"))
def _batched(
    x: jax.Array, eps: jax.Array, *, abc: Any, z: float, gram: bool, dtype: Any, precondition: str
) -> jax.Array:
    """Orthogonalises (batch, n, m), n <= m, batched or one by one, whichever is faster on this backend."""
    one = partial(_one, eps=eps, abc=abc, z=z, gram=gram, dtype=dtype, precondition=precondition)
    if x.shape[0] == 1:
        return one(x[0])[None]
    if jax.default_backend() == "cpu" and x.shape[1] * x.shape[2] >= LOOP_FROM:
        return jax.lax.map(one, x)
    return jax.vmap(one)(x)


def schatten4(x: jax.Array) -> jax.Array:
    """The Schatten-4 norm (sum of s^4)^(1/4) of every matrix (..., n, m), the root of the norm of X X^T.

    >>> float(schatten4(jnp.array([[3.0, 0.0], [0.0, 0.0]])))
    3.0
    """
    x = jnp.swapaxes(x, -1, -2) if x.shape[-2] > x.shape[-1] else x
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True, initial=0)
    y = x / jnp.where(largest > 0, largest, jnp.ones_like(largest))
    gram = jnp.matmul(y, jnp.swapaxes(y, -1, -2), precision="highest")
    return largest[..., 0, 0] * jnp.sqrt(jnp.sqrt(jnp.sum(jnp.square(gram), axis=(-2, -1))))


def _one(x: jax.Array, *, eps: jax.Array, abc: Any, z: float, gram: bool, dtype: Any, precondition: str) -> jax.Array:
    """Orthogonalises one n x m matrix, n <= m."""
    wide = x.dtype
    # Dividing by the largest entry first keeps squares from overflow and underflow.
    largest = jnp.max(jnp.abs(x))
    safe = jnp.where(largest > 0, largest, jnp.ones((), wide))
    x = x / safe
    norm = z * (schatten4(x) if precondition == "schatten4" else jnp.sqrt(jnp.sum(jnp.square(x))))
    norm = jnp.where(largest > 0, norm, jnp.ones((), wide))
    x = x / (jnp.maximum(norm, eps / safe) if precondition == "schatten4" else norm + eps / safe)
    if precondition == "aol":
        sums = jnp.sum(jnp.abs(x @ x.T), axis=1, keepdims=True)
        x = x * jnp.where(sums > 0, jax.lax.rsqrt(jnp.where(sums > 0, sums, 1)), 0)
    x = x.astype(dtype)
    return (_gram(x, abc) if gram else _newton_schulz(x, abc)).astype(wide)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """The matrix product, accumulated and returned in float32 or wider."""
    return jnp.matmul(x, y, preferred_element_type=_wide(x.dtype))


def _shifted(a: float, B: jax.Array, x: jax.Array, dtype: Any) -> jax.Array:
    """(a I + B) x, its product in `dtype`, left in the dtype of B."""
    if dtype == B.dtype:  # one pass less over x
        return _product(B + a * jnp.eye(B.shape[0], dtype=B.dtype), x)
    return a * x.astype(B.dtype) + _product(B.astype(dtype), x.astype(dtype))


def _newton_schulz(x: jax.Array, abc: Any) -> jax.Array:
    dtype = x.dtype
    for a, b, c in abc:
        A = _product(x, x.T)
        low = A.astype(dtype)
        x = _shifted(a, b * A + c * _product(low, low), x, dtype).astype(dtype)
    return x


def _gram(x: jax.Array, abc: Any) -> jax.Array:
    dtype, last = x.dtype, len(abc) - 1
    Q, R = None, _product(x, x.T)
    eye = jnp.eye(x.shape[0], dtype=R.dtype)
    for i, (a, b, c) in enumerate(abc):
        if i % 3 == 2 and Q is not None:
            x = _product(Q.astype(dtype), x).astype(dtype)
            Q, R = None, _product(x, x.T)
        low = R.astype(dtype)
        Z = b * R + c * _product(low, low)
        # All of them are polynomials in one matrix, and commute.
        Q = Z + a * eye if Q is None else _shifted(a, Z, Q, dtype)
        if i < last and i % 3 != 1:
            R = _shifted(a, Z, _shifted(a, Z, R, dtype), dtype)
    return x if Q is None else _product(Q.astype(dtype), x)


def _svd(x: jax.Array) -> jax.Array:
    u, s, vt = one_by_one(partial(jnp.linalg.svd, full_matrices=False), x)
    tiny = jnp.max(s, axis=-1, keepdims=True) * (max(x.shape[-2:]) * float(jnp.finfo(x.dtype).eps))
    return (u * (s > tiny).astype(u.dtype)[..., None, :]) @ vt
