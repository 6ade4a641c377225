"""Pure measurements of a training run."""

from gradkit.diagnostics.convex_schedule_bound import (
    BaseRate,
    Terms,
    bound_curve,
    convex_schedule_bound,
    optimal_base_rate,
)
from gradkit.diagnostics.directional_sharpness import (
    directional_sharpness,
)
from gradkit.diagnostics.extend_schedule import (
    extend_cooldown,
    extend_second_stage,
    transfer_base_rate,
)
from gradkit.diagnostics.gradient_noise_scale import (
    NoiseScale,
    NoiseScaleEstimate,
    NoiseScaleState,
    StepsExamples,
    critical_batch_size,
    fit_steps_examples,
    from_moments,
    gradient_noise_scale,
    optimal_rate,
)
from gradkit.diagnostics.lanczos import (
    HeavyBallPair,
    Ritz,
    batch_hessian_edge,
    lanczos,
    lanczos_hyperparameters,
    ritz,
)
from gradkit.diagnostics.metrics import (
    metrics,
)
from gradkit.diagnostics.moreau_gradient import (
    moreau_gradient,
)
from gradkit.diagnostics.optimal_kronecker import (
    kronecker_cosine,
    optimal_kronecker,
)
from gradkit.diagnostics.project_out_subspace import (
    layer_importance,
    retained_rank,
)
from gradkit.diagnostics.range_test import (
    Suggestion,
    suggest_learning_rate,
)
from gradkit.diagnostics.stability_ratio import (
    stability_ratio,
    top_hessian_eigenvalue,
)
from gradkit.diagnostics.state_table import (
    state_table,
)
from gradkit.diagnostics.steps_to_target import (
    BatchScaling,
    batch_scaling,
    steps_to_target,
)
from gradkit.diagnostics.sublayer_gain import (
    sublayer_gain,
)
from gradkit.diagnostics.welore import (
    welore_factorize,
    welore_labels,
    welore_ranks,
    welore_threshold,
)

__all__ = [
    "BaseRate",
    "BatchScaling",
    "HeavyBallPair",
    "NoiseScale",
    "NoiseScaleEstimate",
    "NoiseScaleState",
    "Ritz",
    "StepsExamples",
    "Suggestion",
    "Terms",
    "batch_hessian_edge",
    "batch_scaling",
    "bound_curve",
    "convex_schedule_bound",
    "critical_batch_size",
    "directional_sharpness",
    "extend_cooldown",
    "extend_second_stage",
    "fit_steps_examples",
    "from_moments",
    "gradient_noise_scale",
    "kronecker_cosine",
    "lanczos",
    "lanczos_hyperparameters",
    "layer_importance",
    "metrics",
    "moreau_gradient",
    "optimal_base_rate",
    "optimal_kronecker",
    "optimal_rate",
    "retained_rank",
    "ritz",
    "stability_ratio",
    "state_table",
    "steps_to_target",
    "sublayer_gain",
    "suggest_learning_rate",
    "top_hessian_eigenvalue",
    "transfer_base_rate",
    "welore_factorize",
    "welore_labels",
    "welore_ranks",
    "welore_threshold",
]
