"""Curvature: the Hessian, its diagonal, or what stands for them."""

from gradkit.optimizers.second_order.adahessian import (
    adahessian,
    scale_by_adahessian,
)
from gradkit.optimizers.second_order.gradient_regularized_newton import (
    GradientRegularizedNewtonState,
    gradient_regularized_newton,
)
from gradkit.optimizers.second_order.oasis import (
    ScaleByLocalLipschitzState,
    oasis,
    scale_by_local_lipschitz,
    scale_by_oasis,
)
from gradkit.optimizers.second_order.sania import (
    ScaleByPreconditionedPolyakState,
    sania,
    sania_adagrad_sqr,
    sania_adam_sqr,
    scale_by_preconditioned_polyak,
)
from gradkit.optimizers.second_order.smb import (
    SmbiState,
    SmbState,
    smb,
    smbi,
)
from gradkit.optimizers.second_order.sophia import (
    sophia,
    sophia_g,
    sophia_h,
)

__all__ = [
    "GradientRegularizedNewtonState",
    "ScaleByLocalLipschitzState",
    "ScaleByPreconditionedPolyakState",
    "SmbState",
    "SmbiState",
    "adahessian",
    "gradient_regularized_newton",
    "oasis",
    "sania",
    "sania_adagrad_sqr",
    "sania_adam_sqr",
    "scale_by_adahessian",
    "scale_by_local_lipschitz",
    "scale_by_oasis",
    "scale_by_preconditioned_polyak",
    "smb",
    "smbi",
    "sophia",
    "sophia_g",
    "sophia_h",
]
