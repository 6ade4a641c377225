"""Pure array kernels."""

from gradkit.linalg.eigenbasis import (
    Basis,
    eigenbasis,
)
from gradkit.linalg.inverse_root import (
    inverse_root,
)
from gradkit.linalg.lcp import (
    solve_lcp,
)
from gradkit.linalg.orthogonalize import (
    orthogonalize,
)
from gradkit.linalg.penalties import (
    mcp_concave_grad,
    mcp_penalty,
    prox_l1,
    prox_mcp,
    prox_scad,
    scad_concave_grad,
    scad_penalty,
)

__all__ = [
    "Basis",
    "eigenbasis",
    "inverse_root",
    "mcp_concave_grad",
    "mcp_penalty",
    "orthogonalize",
    "prox_l1",
    "prox_mcp",
    "prox_scad",
    "scad_concave_grad",
    "scad_penalty",
    "solve_lcp",
]
