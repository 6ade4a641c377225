"""Methods that reduce the variance of the gradient with what earlier steps have seen."""

from gradkit.optimizers.variance_reduction.gsnr import vr_adam, vr_lamb, vr_lars, vr_momentum, vr_sgd
from gradkit.optimizers.variance_reduction.implicit_gradient_transport import (
    ImplicitGradientTransportState,
    implicit_gradient_transport,
)
from gradkit.optimizers.variance_reduction.mars import mars_adamw, mars_exact, mars_lion
from gradkit.optimizers.variance_reduction.mars_shampoo import mars_shampoo

__all__ = [
    "ImplicitGradientTransportState",
    "implicit_gradient_transport",
    "mars_adamw",
    "mars_exact",
    "mars_lion",
    "mars_shampoo",
    "vr_adam",
    "vr_lamb",
    "vr_lars",
    "vr_momentum",
    "vr_sgd",
]
