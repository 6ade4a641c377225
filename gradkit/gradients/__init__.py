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
from gradkit.gradients.gauss_newton_bartlett_diag import (
    gauss_newton_bartlett_diag,
)
from gradkit.gradients.grad_cache import (
    grad_cache,
)
from gradkit.gradients.hutchinson_diag import (
    hutchinson_diag,
)
from gradkit.gradients.layers.column_row_sampling import (
    crs_linear,
    wta_crs_linear,
)
from gradkit.gradients.layers.condition_weight import (
    condition_weight,
)
from gradkit.gradients.layers.ghost_batch_norm import (
    ghost_batch_norm,
)
from gradkit.gradients.layers.mip_encode import (
    mip_combine,
    mip_encode,
)
from gradkit.gradients.layers.online_norm import (
    OnlineNormControl,
    online_norm,
)
from gradkit.gradients.layers.power_norm import (
    PowerNormState,
    power_norm,
)
from gradkit.gradients.layers.randomized_linear import (
    randomized_linear,
)
from gradkit.gradients.layers.recompute_batch_stats import (
    recompute_batch_stats,
)
from gradkit.gradients.layers.scaled_standardize_weight import (
    nf_gain,
    scaled_standardize_weight,
)
from gradkit.gradients.layers.served_by_flax import (
    batch_norm,
    layer_norm,
)
from gradkit.gradients.layers.standardize_weight import (
    batch_channel_norm,
    standardize_weight,
)
from gradkit.gradients.layers.statistics import (
    RunningStatistics,
)
from gradkit.gradients.layers.tract import (
    tract,
    tract_conv,
    tract_linear,
)
from gradkit.gradients.layers.unified_norm import (
    UnifiedNormState,
    unified_norm,
)
from gradkit.gradients.lora_ga_init import (
    lora_ga_init,
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
from gradkit.gradients.multiply_by_noise import (
    multiply_by_noise,
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
    "OnlineNormControl",
    "PowerNormState",
    "RunningStatistics",
    "Sga",
    "SgaState",
    "SvrgState",
    "TableState",
    "UnifiedNormState",
    "aggregate_inner_gradients",
    "asam",
    "batch_channel_norm",
    "batch_norm",
    "clip_pixels",
    "clip_pixelwise",
    "cluster_momentum",
    "concurrent_adversarial",
    "condition_weight",
    "crs_linear",
    "displaced_gradient",
    "gauss_newton_bartlett_diag",
    "ghost_batch_norm",
    "grad_cache",
    "gradient_moments",
    "hutchinson_diag",
    "layer_norm",
    "log_stablemax",
    "lora_ga_init",
    "map_cotangent",
    "microbatch",
    "mip_combine",
    "mip_encode",
    "multiply_by_noise",
    "nf_gain",
    "online_norm",
    "power_norm",
    "ppo_decoupled_kl_loss",
    "ppo_decoupled_loss",
    "randomized_linear",
    "recompute_batch_stats",
    "sag_estimator",
    "saga_estimator",
    "sam",
    "scaled_standardize_weight",
    "sga",
    "stablemax_cross_entropy",
    "standardize_weight",
    "svag",
    "svrg_estimator",
    "tract",
    "tract_conv",
    "tract_linear",
    "unified_norm",
    "vanishing_gradient_penalty",
    "wta_crs_linear",
]
