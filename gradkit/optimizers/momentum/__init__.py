"""Gradient descent and momentum."""

from gradkit.optimizers.momentum.complex_momentum import (
    ScaleByComplexAdamState,
    ScaleByComplexMomentumState,
    complex_adam,
    complex_momentum,
    scale_by_complex_adam,
    scale_by_complex_momentum,
)
from gradkit.optimizers.momentum.correct_momentum import (
    correct_momentum,
)
from gradkit.optimizers.momentum.ema_nesterov import EmaNesterovState, ema_nesterov
from gradkit.optimizers.momentum.gravity import (
    ScaleByGravityState,
    gravity,
    scale_by_gravity,
)
from gradkit.optimizers.momentum.heavy_ball import (
    heavy_ball,
)
from gradkit.optimizers.momentum.msam import MsamState, msam_adamw, msam_sgd
from gradkit.optimizers.momentum.nesterov_large_batch import (
    nesterov_large_batch,
)
from gradkit.optimizers.momentum.pnm import (
    positive_negative_momentum,
)
from gradkit.optimizers.momentum.qhm import (
    qhadam,
    qhm,
    scale_by_qhadam,
    scale_by_qhm,
)
from gradkit.optimizers.momentum.sgd import (
    momentum,
    nag,
    sgd,
)
from gradkit.optimizers.momentum.spike_compensation import (
    ScaleBySpikeCompensationState,
    StaleGradients,
    linear_weight_prediction,
    scale_by_spike_compensation,
    scale_hyperparameters,
    spike_compensation,
    stale_gradients,
)
from gradkit.optimizers.momentum.xgrad import (
    xgrad,
    xgrad_adam,
    xgrad_adamw,
    xgrad_sgd,
)

__all__ = [
    "EmaNesterovState",
    "MsamState",
    "ScaleByComplexAdamState",
    "ScaleByComplexMomentumState",
    "ScaleByGravityState",
    "ScaleBySpikeCompensationState",
    "StaleGradients",
    "complex_adam",
    "complex_momentum",
    "correct_momentum",
    "ema_nesterov",
    "gravity",
    "heavy_ball",
    "linear_weight_prediction",
    "momentum",
    "msam_adamw",
    "msam_sgd",
    "nag",
    "nesterov_large_batch",
    "positive_negative_momentum",
    "qhadam",
    "qhm",
    "scale_by_complex_adam",
    "scale_by_complex_momentum",
    "scale_by_gravity",
    "scale_by_qhadam",
    "scale_by_qhm",
    "scale_by_spike_compensation",
    "scale_hyperparameters",
    "sgd",
    "spike_compensation",
    "stale_gradients",
    "xgrad",
    "xgrad_adam",
    "xgrad_adamw",
    "xgrad_sgd",
]
