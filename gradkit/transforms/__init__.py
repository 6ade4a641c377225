"""Primitives and wrappers that more than one method uses, one idea per file."""

from gradkit.engine.shards import (
    MatrixSharding,
)
from gradkit.transforms.accumulate_value import (
    AccumulateValueState,
    accumulate_value,
)
from gradkit.transforms.accumulate_weighted import (
    AccumulateWeightedState,
    accumulate_weighted,
)
from gradkit.transforms.adagc import adagc
from gradkit.transforms.adam import (
    ScaleByAdamState,
    scale_by_adam,
)
from gradkit.transforms.adaptive_grad_clip import (
    adaptive_grad_clip,
    block_norm,
)
from gradkit.transforms.add_langevin_noise import (
    AddLangevinNoiseState,
    add_langevin_noise,
)
from gradkit.transforms.block_leaves import block_leaves
from gradkit.transforms.cautious import cautious
from gradkit.transforms.cautious_weight_decay import cautious_weight_decay
from gradkit.transforms.centralize_gradients import (
    centralize_gradients,
    normalize_gradients,
)
from gradkit.transforms.clip import (
    ClipByGlobalNormState,
    clip_by_global_norm,
)
from gradkit.transforms.clip_block import clip_by_block_norm
from gradkit.transforms.clip_top_coordinates import clip_top_coordinates
from gradkit.transforms.corrected_weight_decay import corrected_weight_decay
from gradkit.transforms.diag_curvature import (
    ScaleByDiagCurvatureState,
    scale_by_diag_curvature,
)
from gradkit.transforms.direction import direction_from_gradient
from gradkit.transforms.evaluation import (
    eval_params,
)
from gradkit.transforms.factored_rms import (
    ScaleByFactoredRmsState,
    scale_by_factored_rms,
)
from gradkit.transforms.find import (
    find,
)
from gradkit.transforms.graft import (
    GraftState,
    graft,
)
from gradkit.transforms.gsnr import (
    ScaleByGsnrState,
    scale_by_gsnr,
)
from gradkit.transforms.guard import (
    GuardState,
    guard,
)
from gradkit.transforms.hyperball import HyperballState, hyperball, relative_update
from gradkit.transforms.in_basis import (
    Bases,
    InBasisState,
    in_basis,
    kronecker_bases,
)
from gradkit.transforms.inject import (
    inject_hyperparams,
)
from gradkit.transforms.interpolated_averaging import (
    InterpolatedAveragingState,
    interpolated_averaging,
)
from gradkit.transforms.keep_best import (
    keep_best,
)
from gradkit.transforms.kl_statistics import (
    KLStatisticsState,
    kl_statistics,
)
from gradkit.transforms.kron import (
    ScaleByKronState,
    scale_by_kron,
)
from gradkit.transforms.kronecker_statistics import KroneckerStatisticsState, kronecker_statistics
from gradkit.transforms.learning_rate import (
    ScaleByLearningRateState,
    scale_by_learning_rate,
)
from gradkit.transforms.limit_norm_growth import (
    LimitNormGrowthState,
    limit_norm_growth,
)
from gradkit.transforms.lmo import lmo
from gradkit.transforms.lookahead_in_chain import (
    LookaheadInChainState,
    lookahead_in_chain,
)
from gradkit.transforms.mars import (
    ExactMarsCorrectionState,
    MarsCorrectionState,
    mars_correction,
)
from gradkit.transforms.measured import (
    Measure,
    scale_by_measured,
)
from gradkit.transforms.minimise_inner import (
    minimise_inner,
)
from gradkit.transforms.momenta import (
    RootMeanSquareState,
    WeightedMomentaState,
    root_mean_square,
)
from gradkit.transforms.neuron_rms import (
    ScaleByNeuronRmsState,
    scale_by_neuron_rms,
)
from gradkit.transforms.norm_loss import (
    StableWeightDecayState,
    norm_loss,
    stable_weight_decay,
)
from gradkit.transforms.normalize_and_project import (
    NormalizeAndProjectState,
    normalize_and_project,
    project_updates,
)
from gradkit.transforms.normuon import ScaleByNormuonState, scale_by_normuon
from gradkit.transforms.pnm import (
    ScaleByPnmState,
    scale_by_pnm,
)
from gradkit.transforms.precision import (
    PrecisionState,
    precision,
)
from gradkit.transforms.project_low_rank import (
    ProjectLowRankState,
    project_low_rank,
)
from gradkit.transforms.projected import (
    projected,
)
from gradkit.transforms.qk_clip import QKClipState, QKRole, qk_clip
from gradkit.transforms.radius_control import (
    RadiusControlState,
    pin_radius,
    radial_brake,
    radius_control,
    row_floor,
    update_ratio_floor,
)
from gradkit.transforms.record_norms import (
    RecordNormsState,
    record_norms,
)
from gradkit.transforms.reparameterize import (
    ReparameterizeState,
    reparameterize,
)
from gradkit.transforms.rss import (
    ScaleByRssState,
    scale_by_delayed_rss,
    scale_by_rss,
)
from gradkit.transforms.running_average import (
    IterateAverageState,
    averaged_params,
    polynomial_decay_average,
    running_average,
)
from gradkit.transforms.scale_invariant import (
    project_scale_invariant,
)
from gradkit.transforms.schedule_free import (
    schedule_free,
    schedule_free_eval_params,
)
from gradkit.transforms.scheduled_adam import (
    ScaleByScheduledAdamState,
    scale_by_scheduled_adam,
)
from gradkit.transforms.select_slices import (
    SelectSlicesState,
    select_slices,
)
from gradkit.transforms.shard_matrices import (
    shard_matrices,
)
from gradkit.transforms.shifted import (
    ShiftedParametersState,
    shifted_parameters,
)
from gradkit.transforms.skip_step import (
    skip_step,
)
from gradkit.transforms.sophia import (
    ScaleBySophiaState,
    scale_by_sophia,
)
from gradkit.transforms.tensor_rms import (
    clip_by_tensor_rms,
    scale_by_param_rms,
)
from gradkit.transforms.top_magnitude_mask import keep_updates, top_magnitude_mask
from gradkit.transforms.trace import (
    TraceState,
    trace,
)
from gradkit.transforms.trust_gate import (
    TrustGateState,
    trust_gate,
)
from gradkit.transforms.trust_ratio import (
    ScaleByTrustRatioState,
    scale_by_trust_ratio,
)
from gradkit.transforms.update_rms import (
    clip_by_update_rms,
)
from gradkit.transforms.weight_decay import (
    AddDecayedWeightsState,
    add_decayed_weights,
)
from gradkit.transforms.weight_normalized import (
    DirectionAndLength,
    weight_normalized,
)
from gradkit.transforms.width import (
    Multipliers,
    mup_init,
    mup_multipliers,
    scale_by_width,
)
from gradkit.transforms.with_curvature import (
    WithCurvatureState,
    with_curvature,
)
from gradkit.transforms.zclip import (
    zclip,
)

__all__ = [
    "AccumulateValueState",
    "AccumulateWeightedState",
    "AddDecayedWeightsState",
    "AddLangevinNoiseState",
    "Bases",
    "ClipByGlobalNormState",
    "DirectionAndLength",
    "ExactMarsCorrectionState",
    "GraftState",
    "GuardState",
    "HyperballState",
    "InBasisState",
    "InterpolatedAveragingState",
    "IterateAverageState",
    "KLStatisticsState",
    "KroneckerStatisticsState",
    "LimitNormGrowthState",
    "LookaheadInChainState",
    "MarsCorrectionState",
    "MatrixSharding",
    "Measure",
    "Multipliers",
    "NormalizeAndProjectState",
    "PrecisionState",
    "ProjectLowRankState",
    "QKClipState",
    "QKRole",
    "RadiusControlState",
    "RecordNormsState",
    "ReparameterizeState",
    "RootMeanSquareState",
    "ScaleByAdamState",
    "ScaleByDiagCurvatureState",
    "ScaleByFactoredRmsState",
    "ScaleByGsnrState",
    "ScaleByKronState",
    "ScaleByLearningRateState",
    "ScaleByNeuronRmsState",
    "ScaleByNormuonState",
    "ScaleByPnmState",
    "ScaleByRssState",
    "ScaleByScheduledAdamState",
    "ScaleBySophiaState",
    "ScaleByTrustRatioState",
    "SelectSlicesState",
    "ShiftedParametersState",
    "StableWeightDecayState",
    "TraceState",
    "TrustGateState",
    "WeightedMomentaState",
    "WithCurvatureState",
    "accumulate_value",
    "accumulate_weighted",
    "adagc",
    "adaptive_grad_clip",
    "add_decayed_weights",
    "add_langevin_noise",
    "averaged_params",
    "block_leaves",
    "block_norm",
    "cautious",
    "cautious_weight_decay",
    "centralize_gradients",
    "clip_by_block_norm",
    "clip_by_global_norm",
    "clip_by_tensor_rms",
    "clip_by_update_rms",
    "clip_top_coordinates",
    "corrected_weight_decay",
    "direction_from_gradient",
    "eval_params",
    "find",
    "graft",
    "guard",
    "hyperball",
    "in_basis",
    "inject_hyperparams",
    "interpolated_averaging",
    "keep_best",
    "keep_updates",
    "kl_statistics",
    "kronecker_bases",
    "kronecker_statistics",
    "limit_norm_growth",
    "lmo",
    "lookahead_in_chain",
    "mars_correction",
    "minimise_inner",
    "mup_init",
    "mup_multipliers",
    "norm_loss",
    "normalize_and_project",
    "normalize_gradients",
    "pin_radius",
    "polynomial_decay_average",
    "precision",
    "project_low_rank",
    "project_scale_invariant",
    "project_updates",
    "projected",
    "qk_clip",
    "radial_brake",
    "radius_control",
    "record_norms",
    "relative_update",
    "reparameterize",
    "root_mean_square",
    "row_floor",
    "running_average",
    "scale_by_adam",
    "scale_by_delayed_rss",
    "scale_by_diag_curvature",
    "scale_by_factored_rms",
    "scale_by_gsnr",
    "scale_by_kron",
    "scale_by_learning_rate",
    "scale_by_measured",
    "scale_by_neuron_rms",
    "scale_by_normuon",
    "scale_by_param_rms",
    "scale_by_pnm",
    "scale_by_rss",
    "scale_by_scheduled_adam",
    "scale_by_sophia",
    "scale_by_trust_ratio",
    "scale_by_width",
    "schedule_free",
    "schedule_free_eval_params",
    "select_slices",
    "shard_matrices",
    "shifted_parameters",
    "skip_step",
    "stable_weight_decay",
    "top_magnitude_mask",
    "trace",
    "trust_gate",
    "update_ratio_floor",
    "weight_normalized",
    "with_curvature",
    "zclip",
]
