"""Filters of the gradient that go in front of any optimizer."""

from gradkit.optimizers.filters.add_noise import (
    AddNoiseState,
    add_noise,
    noisy_sgd,
)
from gradkit.optimizers.filters.add_norm_prior import (
    add_norm_prior,
)
from gradkit.optimizers.filters.clip_by_quantile import (
    clip_by_quantile,
)
from gradkit.optimizers.filters.downweight_parallel import (
    DownweightParallelState,
    downweight_parallel,
)
from gradkit.optimizers.filters.flood import (
    flood,
)
from gradkit.optimizers.filters.grokfast import (
    GrokfastEmaState,
    GrokfastMaState,
    grokfast_ema,
    grokfast_ma,
)
from gradkit.optimizers.filters.perpgrad import (
    orthogonalize_to_params,
    perpgrad,
)
from gradkit.optimizers.filters.project_out_history import (
    ProjectOutHistoryState,
    project_out_history,
)
from gradkit.optimizers.filters.quantization_aware_scaling import (
    SparsePlan,
    plan_sparse_update,
    quantization_aware_scaling,
    sparse_update,
)

__all__ = [
    "AddNoiseState",
    "DownweightParallelState",
    "GrokfastEmaState",
    "GrokfastMaState",
    "ProjectOutHistoryState",
    "SparsePlan",
    "add_noise",
    "add_norm_prior",
    "clip_by_quantile",
    "downweight_parallel",
    "flood",
    "grokfast_ema",
    "grokfast_ma",
    "noisy_sgd",
    "orthogonalize_to_params",
    "perpgrad",
    "plan_sparse_update",
    "project_out_history",
    "quantization_aware_scaling",
    "sparse_update",
]
