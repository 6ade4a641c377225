"""Gauss-Newton and natural gradient steps of a minibatch, which ask for its predictions."""

from gradkit.optimizers.gauss_newton.egn import (
    EgnState,
    egn,
)
from gradkit.optimizers.gauss_newton.kfac import (
    Kfac,
    from_kfac,
    kfac_preconditioner,
)
from gradkit.optimizers.gauss_newton.thermodynamic_ngd import (
    ThermodynamicNgdState,
    ngd,
    thermodynamic_ngd,
)

__all__ = [
    "EgnState",
    "Kfac",
    "ThermodynamicNgdState",
    "egn",
    "from_kfac",
    "kfac_preconditioner",
    "ngd",
    "thermodynamic_ngd",
]
