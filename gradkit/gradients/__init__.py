"""Where the gradient comes from: drop-in replacements of `jax.value_and_grad`, and losses."""

from gradkit.gradients.cluster_momentum import (
    ClusterMomentumState,
    cluster_momentum,
)
from gradkit.gradients.displaced import (
    displaced_gradient,
)
from gradkit.gradients.gauss_newton_bartlett_diag import (
    gauss_newton_bartlett_diag,
)
from gradkit.gradients.hutchinson_diag import (
    hutchinson_diag,
)
from gradkit.gradients.microbatch import (
    microbatch,
)
from gradkit.gradients.moments import (
    GradientMoments,
    gradient_moments,
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

__all__ = [
    "ClusterMomentumState",
    "GradientMoments",
    "SvrgState",
    "TableState",
    "asam",
    "cluster_momentum",
    "displaced_gradient",
    "gauss_newton_bartlett_diag",
    "gradient_moments",
    "hutchinson_diag",
    "log_stablemax",
    "microbatch",
    "sag_estimator",
    "saga_estimator",
    "sam",
    "stablemax_cross_entropy",
    "svag",
    "svrg_estimator",
]
