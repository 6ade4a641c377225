"""Pure measurements of a training run."""

from gradkit.diagnostics.algoperf_score import (
    algoperf_score,
    performance_profile,
    time_to_result,
)
from gradkit.diagnostics.central_flow import (
    FlowStep,
    central_flow_step,
    stable_flow_step,
)
from gradkit.diagnostics.coherence import (
    coherence,
    m_coherence,
)
from gradkit.diagnostics.conflict_incidence import conflict_incidence
from gradkit.diagnostics.convex_schedule_bound import (
    BaseRate,
    Terms,
    bound_curve,
    convex_schedule_bound,
    optimal_base_rate,
)
from gradkit.diagnostics.curvature_stability import (
    CurvatureStability,
    Sharpness,
    curvature_stability,
    sharpness,
)
from gradkit.diagnostics.directional_sharpness import (
    directional_sharpness,
)
from gradkit.diagnostics.effective_learning_rate import effective_learning_rate, settled_learning_rate
from gradkit.diagnostics.extend_schedule import (
    extend_cooldown,
    extend_second_stage,
    transfer_base_rate,
)
from gradkit.diagnostics.farms_eigs import (
    PowerLaw,
    farms_eigs,
    layer_alphas,
    powerlaw_alpha,
    tempbalance_rates,
)
from gradkit.diagnostics.fit_capacity import FitCapacity, FitRun, fit_capacity
from gradkit.diagnostics.gauss_newton_split import (
    GaussNewtonSplit,
    accumulated_hvp,
    gauss_newton_split,
    hvp,
)
from gradkit.diagnostics.gfs_sharpness import (
    GfsSharpness,
    gfs_sharpness,
    scalar_gfs_sharpness,
)
from gradkit.diagnostics.gradient_features import gradient_features
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
from gradkit.diagnostics.gradient_subspace_fraction import (
    Eigenpairs,
    gradient_subspace_fraction,
    subspace_overlap,
    top_eigenpairs,
)
from gradkit.diagnostics.lanczos import (
    HeavyBallPair,
    Ritz,
    batch_hessian_edge,
    lanczos,
    lanczos_hyperparameters,
    ritz,
)
from gradkit.diagnostics.layer_gradient_profile import (
    LayerGradientProfile,
    layer_gradient_profile,
    profile_difference,
)
from gradkit.diagnostics.linear_mode_strength import (
    linear_mode_strength,
)
from gradkit.diagnostics.local_complexity import LocalComplexity, local_complexity
from gradkit.diagnostics.metrics import (
    metrics,
)
from gradkit.diagnostics.moreau_gradient import (
    moreau_gradient,
)
from gradkit.diagnostics.opposing_signals import (
    OpposingSignals,
    opposing_signals,
)
from gradkit.diagnostics.optimal_kronecker import (
    kronecker_cosine,
    optimal_kronecker,
)
from gradkit.diagnostics.policy_gradient_subspace import (
    PolicyGradientSubspace,
    policy_gradient_subspace,
)
from gradkit.diagnostics.project_out_subspace import (
    layer_importance,
    retained_rank,
)
from gradkit.diagnostics.range_test import (
    Suggestion,
    suggest_learning_rate,
)
from gradkit.diagnostics.signal_propagation import SignalPropagation, signal_propagation
from gradkit.diagnostics.spectral_density import (
    HessianCriteria,
    SpectralDensity,
    Trace,
    hessian_criteria,
    hessian_trace,
    lanczos_tridiagonal,
    spectral_density,
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
    "CurvatureStability",
    "Eigenpairs",
    "FitCapacity",
    "FitRun",
    "FlowStep",
    "GaussNewtonSplit",
    "GfsSharpness",
    "HeavyBallPair",
    "HessianCriteria",
    "LayerGradientProfile",
    "LocalComplexity",
    "NoiseScale",
    "NoiseScaleEstimate",
    "NoiseScaleState",
    "OpposingSignals",
    "PolicyGradientSubspace",
    "PowerLaw",
    "Ritz",
    "Sharpness",
    "SignalPropagation",
    "SpectralDensity",
    "StepsExamples",
    "Suggestion",
    "Terms",
    "Trace",
    "accumulated_hvp",
    "algoperf_score",
    "batch_hessian_edge",
    "batch_scaling",
    "bound_curve",
    "central_flow_step",
    "coherence",
    "conflict_incidence",
    "convex_schedule_bound",
    "critical_batch_size",
    "curvature_stability",
    "directional_sharpness",
    "effective_learning_rate",
    "extend_cooldown",
    "extend_second_stage",
    "farms_eigs",
    "fit_capacity",
    "fit_steps_examples",
    "from_moments",
    "gauss_newton_split",
    "gfs_sharpness",
    "gradient_features",
    "gradient_noise_scale",
    "gradient_subspace_fraction",
    "hessian_criteria",
    "hessian_trace",
    "hvp",
    "kronecker_cosine",
    "lanczos",
    "lanczos_hyperparameters",
    "lanczos_tridiagonal",
    "layer_alphas",
    "layer_gradient_profile",
    "layer_importance",
    "linear_mode_strength",
    "local_complexity",
    "m_coherence",
    "metrics",
    "moreau_gradient",
    "opposing_signals",
    "optimal_base_rate",
    "optimal_kronecker",
    "optimal_rate",
    "performance_profile",
    "policy_gradient_subspace",
    "powerlaw_alpha",
    "profile_difference",
    "retained_rank",
    "ritz",
    "scalar_gfs_sharpness",
    "settled_learning_rate",
    "sharpness",
    "signal_propagation",
    "spectral_density",
    "stability_ratio",
    "stable_flow_step",
    "state_table",
    "steps_to_target",
    "sublayer_gain",
    "subspace_overlap",
    "suggest_learning_rate",
    "tempbalance_rates",
    "time_to_result",
    "top_eigenpairs",
    "top_hessian_eigenvalue",
    "transfer_base_rate",
    "welore_factorize",
    "welore_labels",
    "welore_ranks",
    "welore_threshold",
]
