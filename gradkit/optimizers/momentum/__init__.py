"""Gradient descent and momentum."""

from gradkit.optimizers.momentum.correct_momentum import (
    correct_momentum,
)
from gradkit.optimizers.momentum.gravity import (
    ScaleByGravityState,
    gravity,
    scale_by_gravity,
)
from gradkit.optimizers.momentum.heavy_ball import (
    heavy_ball,
)
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
from gradkit.optimizers.momentum.xgrad import (
    xgrad,
    xgrad_adam,
    xgrad_adamw,
    xgrad_sgd,
)

__all__ = [
    "ScaleByGravityState",
    "correct_momentum",
    "gravity",
    "heavy_ball",
    "momentum",
    "nag",
    "nesterov_large_batch",
    "positive_negative_momentum",
    "qhadam",
    "qhm",
    "scale_by_gravity",
    "scale_by_qhadam",
    "scale_by_qhm",
    "sgd",
    "xgrad",
    "xgrad_adam",
    "xgrad_adamw",
    "xgrad_sgd",
]
