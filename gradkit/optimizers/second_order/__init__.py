"""Curvature: the Hessian, its diagonal, or what stands for them."""

from gradkit.optimizers.second_order.adahessian import (
    adahessian,
    scale_by_adahessian,
)
from gradkit.optimizers.second_order.sania import (
    ScaleByPreconditionedPolyakState,
    sania,
    sania_adagrad_sqr,
    sania_adam_sqr,
    scale_by_preconditioned_polyak,
)
from gradkit.optimizers.second_order.sophia import (
    sophia,
    sophia_g,
    sophia_h,
)

__all__ = [
    "ScaleByPreconditionedPolyakState",
    "adahessian",
    "sania",
    "sania_adagrad_sqr",
    "sania_adam_sqr",
    "scale_by_adahessian",
    "scale_by_preconditioned_polyak",
    "sophia",
    "sophia_g",
    "sophia_h",
]
