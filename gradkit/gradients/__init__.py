"""Where the gradient comes from: drop-in replacements of `jax.value_and_grad`, and losses."""

from gradkit.gradients.displaced import (
    displaced_gradient,
)
from gradkit.gradients.microbatch import (
    microbatch,
)
from gradkit.gradients.moments import (
    gradient_moments,
    GradientMoments,
)
from gradkit.gradients.saga import (
    sag_estimator,
    saga_estimator,
    TableState,
)
from gradkit.gradients.sam import (
    asam,
    sam,
)
from gradkit.gradients.stablemax import (
    log_stablemax,
    stablemax_cross_entropy,
)
from gradkit.gradients.svrg import (
    svrg_estimator,
    SvrgState,
)
from gradkit.gradients.cluster_momentum import (
    ClusterMomentumState,
    cluster_momentum,
)

__all__ = [
    "ClusterMomentumState",
    "GradientMoments",
    "SvrgState",
    "TableState",
    "asam",
    "cluster_momentum",
    "displaced_gradient",
    "gradient_moments",
    "log_stablemax",
    "microbatch",
    "sag_estimator",
    "saga_estimator",
    "sam",
    "stablemax_cross_entropy",
    "svrg_estimator",
]
