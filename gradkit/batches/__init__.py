"""Rules for the batch size: what else changes when it does."""

from gradkit.batches.adadagrad import (
    AdaptiveBatches,
    BatchController,
    BatchState,
    adadagrad,
    norm_test_controller,
)
from gradkit.batches.batch_order import batch_order
from gradkit.batches.class_balanced_batches import (
    class_balanced_batches,
)
from gradkit.batches.cluster_batches import cluster_batches
from gradkit.batches.colm_select import (
    ColmState,
    colm_select,
    facility_location,
    init_colm,
    similarity_matrix,
    spsa_features,
)
from gradkit.batches.cooldown import (
    scalarization_weights,
    temperature_probs,
)
from gradkit.batches.dataset_bins import dataset_bins, sample_bins
from gradkit.batches.duration_weights import duration_weights
from gradkit.batches.geometric_batch_size import (
    geometric_batch_size,
)
from gradkit.batches.gibbs_pair_weights import effective_sample_size, gibbs_pair_weights
from gradkit.batches.gio_select import (
    GioSelection,
    gio_kl,
    gio_select,
)
from gradkit.batches.greedy_select import greedy_select
from gradkit.batches.high_entropy_mask import high_entropy_mask, high_entropy_mean, token_entropy
from gradkit.batches.infobatch import (
    InfoBatch,
    InfoBatchState,
    infobatch,
    infobatch_loss,
)
from gradkit.batches.jest_select import jest_select, learnability
from gradkit.batches.k_centre_greedy import KCentres, k_centre_greedy
from gradkit.batches.linear_scaling import (
    linear_scaling,
)
from gradkit.batches.min_snr_weights import min_snr_weights
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
from gradkit.batches.partial_uniform import (
    partial_uniform,
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
from gradkit.batches.stochastic_acquisition import gumbel_top_k, stochastic_acquisition
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
    "ColmState",
    "GioSelection",
    "InfoBatch",
    "InfoBatchState",
    "KCentres",
    "MultigridPlan",
    "MultigridRow",
    "SurgeFit",
    "adadagrad",
    "batch_order",
    "class_balanced_batches",
    "cluster_batches",
    "colm_select",
    "dataset_bins",
    "duration_weights",
    "effective_sample_size",
    "example_variance",
    "facility_location",
    "fit_surge",
    "geometric_batch_size",
    "gibbs_pair_weights",
    "gio_kl",
    "gio_select",
    "greedy_select",
    "gumbel_top_k",
    "high_entropy_mask",
    "high_entropy_mean",
    "infobatch",
    "infobatch_loss",
    "init_colm",
    "inner_product_test",
    "jest_select",
    "k_centre_greedy",
    "learnability",
    "linear_scaling",
    "min_snr_weights",
    "multigrid_schedule",
    "norm_test",
    "norm_test_controller",
    "optimal_sign_rate",
    "orthogonality_test",
    "partial_uniform",
    "regime_adaptation",
    "reshuffle",
    "sample_bins",
    "scalarization_weights",
    "select_hard_batches",
    "sgd_learning_rate",
    "similarity_matrix",
    "spsa_features",
    "sqrt_scaling",
    "stochastic_acquisition",
    "surge_learning_rate",
    "surge_noise_batch",
    "temperature_probs",
    "token_entropy",
    "weight_decay_width_scaling",
]
