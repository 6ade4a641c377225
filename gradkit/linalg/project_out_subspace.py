"""The subspaces of the largest singular values of a matrix."""

from typing import Any, NamedTuple

import jax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.linalg.svd import signed_svd

PAPER = Paper(
    "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning",
    "Nayak et al.",
    2025,
    "2504.07097",
)


class Subspace(NamedTuple):
    """Orthonormal columns U_h (..., n, k) and rows V_h (..., k, m); None for a side without a basis."""

    left: Any
    right: Any


def svd_subspace(w: jax.Array, k: int) -> Subspace:
    """The bases of the k largest singular values of every matrix, which `gk.project_out_subspace` keeps unchanged.

    Equations:

        w = U S V^T,    U_h = the first k columns of U,    V_h = the first k rows of V^T

    Compute them again from the current weights when a task ends.

    Args:
      w: (..., n, m), floating point and real.
      k: number of singular values, from 0 to min(n, m); see `gk.diagnostics.retained_rank`.

    Returns:
      A pair U_h (..., n, k), V_h (..., k, m), float32 or wider. The entry of largest magnitude of a column of U_h is
      positive. Where singular values are equal, the basis of their space is arbitrary.

    Raises:
      ValueError: fewer than two axes, another dtype, a k outside its range.

    Example:
      >>> U_h, V_h = svd_subspace(jax.numpy.array([[0.0, -2.0], [1.0, 0.0]]), 1)
      >>> (U_h + 0.0).T.tolist(), (V_h + 0.0).tolist()  # no -0
      ([[1.0, 0.0]], [[0.0, -1.0]])

    Reference: Nayak et al. Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning. 2025,
    arXiv 2504.07097.
    """
    checks.arrays(w=w)
    checks.integer("k", k)
    if w.ndim < 2 or not jax.numpy.issubdtype(w.dtype, jax.numpy.floating):
        raise ValueError(f"svd_subspace: w must be real matrices (..., n, m), got {w.dtype} of shape {w.shape}")
    if k > min(w.shape[-2:]):
        raise ValueError(f"svd_subspace: k must be at most {min(w.shape[-2:])}, the short side of w {w.shape}, got {k}")
    U, _, Vt = signed_svd(w)
    return Subspace(U[..., :, :k], Vt[..., :k, :])


register(
    svd_subspace,
    form="layer",
    paper=PAPER,
    example={"w": jax.ShapeDtypeStruct((8, 4), "float32"), "k": 2},
)
