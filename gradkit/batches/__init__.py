"""Rules for the batch size: what else changes when it does."""

from gradkit.batches.adadagrad import (
    AdaptiveBatches,
    BatchController,
    BatchState,
    adadagrad,
    norm_test_controller,
)
from gradkit.batches.geometric_batch_size import (
    geometric_batch_size,
)
from gradkit.batches.infobatch import (
    InfoBatch,
    InfoBatchState,
    infobatch,
    infobatch_loss,
)
from gradkit.batches.linear_scaling import (
    linear_scaling,
)
from gradkit.batches.multigrid_schedule import (
    MultigridPlan,
    MultigridRow,
    multigrid_schedule,
)
from gradkit.batches.norm_test import (
    example_variance,
    inner_product_test,
    norm_test,
    orthogonality_test,
)
from gradkit.batches.regime_adaptation import (
    regime_adaptation,
)
from gradkit.batches.reshuffle import (
    reshuffle,
)
from gradkit.batches.select_hard_batches import (
    select_hard_batches,
)
from gradkit.batches.sqrt_scaling import (
    sqrt_scaling,
)
from gradkit.batches.surge import (
    SurgeFit,
    fit_surge,
    optimal_sign_rate,
    sgd_learning_rate,
    surge_learning_rate,
    surge_noise_batch,
)
from gradkit.batches.weight_decay_width_scaling import (
    weight_decay_width_scaling,
)

__all__ = [
    "AdaptiveBatches",
    "BatchController",
    "BatchState",
    "InfoBatch",
    "InfoBatchState",
    "MultigridPlan",
    "MultigridRow",
    "SurgeFit",
    "adadagrad",
    "example_variance",
    "fit_surge",
    "geometric_batch_size",
    "infobatch",
    "infobatch_loss",
    "inner_product_test",
    "linear_scaling",
    "multigrid_schedule",
    "norm_test",
    "norm_test_controller",
    "optimal_sign_rate",
    "orthogonality_test",
    "regime_adaptation",
    "reshuffle",
    "select_hard_batches",
    "sgd_learning_rate",
    "sqrt_scaling",
    "surge_learning_rate",
    "surge_noise_batch",
    "weight_decay_width_scaling",
]
