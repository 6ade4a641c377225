"""The effective rank of a matrix, and the rank of a compressor that follows it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, wide_dtype
from gradkit.types import Scalar

PAPER = Paper(
    "DiLoCoX: A Low-Communication Large-Scale Training Framework for Decentralized Cluster",
    "Qi et al.",
    2025,
    "2506.21263",
)
KINDS = ("participation", "entropy")


def effective_rank(M: Scalar, *, kind: str = "participation") -> jax.Array:
    """The effective rank of matrices.

    Equations, with the singular values sigma:

        (sum sigma)^2 / sum sigma^2                             "participation"
        exp(- sum p log p),   p = sigma / sum sigma             "entropy"

    Both are r for r equal singular values, and between 1 and the rank.

    Args:
      M: matrices (..., rows, columns), real floating point.
      kind: "participation" or "entropy". Default "participation".

    Returns:
      (...,) numbers in float32 or wider; 0 for a matrix of zeros.

    Raises:
      ValueError: fewer than two axes, an unknown kind.

    Example:
      >>> print(effective_rank(jnp.eye(4)), effective_rank(jnp.diag(jnp.array([1.0, 0.0]))))
      4.0 1.0

    Reference: The measure by which Qi et al. lower the rank of a compressed exchange. DiLoCoX. 2025, arXiv 2506.21263;
    which of the definitions it has could not be checked.
    """
    checks.choice("kind", kind, KINDS)
    M = jnp.asarray(M)
    if M.ndim < 2 or not jnp.issubdtype(M.dtype, jnp.floating):
        raise ValueError(f"M must be real matrices (..., rows, columns), got {M.dtype} of shape {M.shape}")
    sigma = jnp.linalg.svd(M.astype(wide_dtype(M.dtype)), compute_uv=False)
    total = jnp.sum(sigma, axis=-1)
    if kind == "participation":
        return divide(jnp.square(total), jnp.sum(jnp.square(sigma), axis=-1))
    p = divide(sigma, jnp.broadcast_to(total[..., None], sigma.shape))
    logs = jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, jnp.ones_like(p))), jnp.zeros_like(p))
    return jnp.where(total > 0, jnp.exp(-jnp.sum(logs, axis=-1)), jnp.zeros_like(total))


def adaptive_rank(effective_ranks: Any, ranks: Sequence[int], *, window_size: int = 5) -> int:
    """The rank of the next exchanges: the smallest of a list that is at least the mean of the last effective ranks.

    Equations:

        r = min { r in ranks : r >= mean of the last `window_size` effective ranks },   the largest where there is none

    A rank fixes the lengths of arrays: there is one compiled program per rank of the list, and only the factors in the
    state differ.

    Args:
      effective_ranks: of the averaged updates so far, one number per exchange.
      ranks: the ranks that programs are compiled for, integers >= 1.
      window_size: exchanges that are averaged, >= 1. Default 5.

    Returns:
      A Python integer, one of `ranks`: the largest while nothing is known.

    Raises:
      ValueError: no ranks, or one below 1; `window_size` below 1.

    Example:
      >>> adaptive_rank([30.0, 7.0, 6.0, 5.0], [2, 8, 32], window_size=3)
      8

    Reference: After Qi et al. DiLoCoX. 2025, arXiv 2506.21263, whose rule for the window could not be checked.
    """
    window_size = checks.integer("window_size", window_size, 1)
    known = sorted(checks.integer("ranks", r, 1) for r in ranks)
    if not known:
        raise ValueError("ranks must have an integer >= 1 or more, got none; write ranks=[4, 16, 64]")
    last = np.asarray(effective_ranks, float).reshape(-1)[-window_size:]
    if not len(last):
        return known[-1]
    return next((r for r in known if r >= last.mean()), known[-1])


register(effective_rank, form="function", paper=PAPER, example={"M": np.eye(3, dtype=np.float32)})
register(adaptive_rank, form="function", paper=PAPER, example={"effective_ranks": [3.0], "ranks": [2, 4]})
