"""Kernel methods: the dual of a regression."""

from gradkit.optimizers.kernels.stochastic_dual_descent import (
    StochasticDualDescentState,
    dual_gradient,
    stochastic_dual_descent,
)

__all__ = [
    "StochasticDualDescentState",
    "dual_gradient",
    "stochastic_dual_descent",
]
