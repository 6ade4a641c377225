"""Pure measurements of a training run."""

from gradkit.diagnostics.directional_sharpness import (
    directional_sharpness,
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
from gradkit.diagnostics.optimal_kronecker import (
    kronecker_cosine,
    optimal_kronecker,
)
from gradkit.diagnostics.project_out_subspace import (
    layer_importance,
    retained_rank,
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
    "BatchScaling",
    "HeavyBallPair",
    "NoiseScale",
    "NoiseScaleEstimate",
    "NoiseScaleState",
    "Ritz",
    "StepsExamples",
    "batch_hessian_edge",
    "batch_scaling",
    "critical_batch_size",
    "directional_sharpness",
    "fit_steps_examples",
    "from_moments",
    "gradient_noise_scale",
    "kronecker_cosine",
    "lanczos",
    "lanczos_hyperparameters",
    "layer_importance",
    "metrics",
    "optimal_kronecker",
    "optimal_rate",
    "retained_rank",
    "ritz",
    "state_table",
    "steps_to_target",
    "sublayer_gain",
    "welore_factorize",
    "welore_labels",
    "welore_ranks",
    "welore_threshold",
]
