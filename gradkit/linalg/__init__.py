"""Pure array kernels."""

from gradkit.linalg.damped import (
    damped_solve,
)
from gradkit.linalg.egn import (
    damped_gauss_newton_solve,
)
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
from gradkit.linalg.one_sided_polar import (
    one_sided_polar,
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
from gradkit.linalg.project_out_subspace import (
    Subspace,
    svd_subspace,
)
from gradkit.linalg.singular_basis import (
    singular_basis,
)

__all__ = [
    "Basis",
    "Subspace",
    "damped_gauss_newton_solve",
    "damped_solve",
    "eigenbasis",
    "inverse_root",
    "mcp_concave_grad",
    "mcp_penalty",
    "one_sided_polar",
    "orthogonalize",
    "prox_l1",
    "prox_mcp",
    "prox_scad",
    "scad_concave_grad",
    "scad_penalty",
    "singular_basis",
    "solve_lcp",
    "svd_subspace",
]
