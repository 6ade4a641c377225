"""Methods for a smooth loss and a penalty that is not."""

from gradkit.optimizers.proximal.nonconvex_accelerated_gradient import (
    NonconvexAcceleratedGradientState,
    nonconvex_accelerated_gradient,
)

__all__ = ["NonconvexAcceleratedGradientState", "nonconvex_accelerated_gradient"]
