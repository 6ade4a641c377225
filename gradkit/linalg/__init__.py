"""Pure array kernels."""

from gradkit.linalg.lcp import solve_lcp

__all__ = ["solve_lcp"]
