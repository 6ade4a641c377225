"""Games: leaves of which some descend and others ascend."""

from gradkit.optimizers.games.extra_gradient import (
    BaseState,
    ExtraGradientState,
    OptimisticGradientState,
    extra_gradient,
    optimistic_gradient,
    past_extra_gradient,
    reflected_gradient,
)

__all__ = [
    "BaseState",
    "ExtraGradientState",
    "OptimisticGradientState",
    "extra_gradient",
    "optimistic_gradient",
    "past_extra_gradient",
    "reflected_gradient",
]
