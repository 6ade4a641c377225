"""Where the gradient comes from: drop-in replacements of `jax.value_and_grad`, and losses."""

from gradkit.gradients.aggregate_inner_gradients import (
    Sga,
    SgaState,
    aggregate_inner_gradients,
    sga,
)
from gradkit.gradients.cluster_momentum import (
    ClusterMomentumState,
    cluster_momentum,
)
from gradkit.gradients.concurrent_adversarial import (
    ConcurrentAdversarial,
    ConcurrentAdversarialState,
    concurrent_adversarial,
)
from gradkit.gradients.displaced import (
    displaced_gradient,
)
from gradkit.gradients.grad_cache import (
    grad_cache,
)
from gradkit.gradients.map_cotangent import (
    clip_pixels,
    clip_pixelwise,
    map_cotangent,
)
from gradkit.gradients.microbatch import (
    microbatch,
)
from gradkit.gradients.moments import (
    GradientMoments,
    gradient_moments,
)
from gradkit.gradients.ppo_decoupled_loss import (
    ppo_decoupled_kl_loss,
    ppo_decoupled_loss,
)
from gradkit.gradients.saga import (
    TableState,
    sag_estimator,
    saga_estimator,
)
from gradkit.gradients.sam import (
    asam,
    sam,
)
from gradkit.gradients.stablemax import (
    log_stablemax,
    stablemax_cross_entropy,
)
from gradkit.gradients.svag import (
    svag,
)
from gradkit.gradients.svrg import (
    SvrgState,
    svrg_estimator,
)
from gradkit.gradients.vanishing_gradient_penalty import (
    vanishing_gradient_penalty,
)

__all__ = [
    "ClusterMomentumState",
    "ConcurrentAdversarial",
    "ConcurrentAdversarialState",
    "GradientMoments",
    "Sga",
    "SgaState",
    "SvrgState",
    "TableState",
    "aggregate_inner_gradients",
    "asam",
    "clip_pixels",
    "clip_pixelwise",
    "cluster_momentum",
    "concurrent_adversarial",
    "displaced_gradient",
    "grad_cache",
    "gradient_moments",
    "log_stablemax",
    "map_cotangent",
    "microbatch",
    "ppo_decoupled_kl_loss",
    "ppo_decoupled_loss",
    "sag_estimator",
    "saga_estimator",
    "sam",
    "sga",
    "stablemax_cross_entropy",
    "svag",
    "svrg_estimator",
    "vanishing_gradient_penalty",
]
