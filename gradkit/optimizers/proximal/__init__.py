"""Methods for a smooth loss and a penalty that is not."""

from gradkit.optimizers.proximal.model_based import (
    ModelState,
    ProximalState,
    prox_linear,
    proximal,
    proximal_sgd,
    stochastic_proximal_point,
    truncated_model,
)
from gradkit.optimizers.proximal.nonconvex_accelerated_gradient import (
    NonconvexAcceleratedGradientState,
    nonconvex_accelerated_gradient,
)
from gradkit.optimizers.proximal.proxy_prox import (
    ProxyProxState,
    proxy_prox,
)
from gradkit.optimizers.proximal.target_surrogate import (
    target_surrogate,
)

__all__ = [
    "ModelState",
    "NonconvexAcceleratedGradientState",
    "ProximalState",
    "ProxyProxState",
    "nonconvex_accelerated_gradient",
    "prox_linear",
    "proximal",
    "proximal_sgd",
    "proxy_prox",
    "stochastic_proximal_point",
    "target_surrogate",
    "truncated_model",
]
