"""Pure array kernels."""

from gradkit.linalg.lcp import solve_lcp
from gradkit.linalg.orthogonalize import orthogonalize

__all__ = ["orthogonalize", "solve_lcp"]
