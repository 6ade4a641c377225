"""Layers as pure functions: what they compute, or how their gradient is computed, is the method."""

from gradkit.layers.attention_logits import (
    collect_attention_logits,
    max_attention_logits,
    recorded_attention,
)
from gradkit.layers.autosparse import (
    sparse_weight,
)
from gradkit.layers.column_row_sampling import (
    crs_linear,
    wta_crs_linear,
)
from gradkit.layers.compress_residuals import ResidualRanges, compress_residuals, running_ranges
from gradkit.layers.condition_weight import (
    condition_weight,
)
from gradkit.layers.ghost_batch_norm import (
    ghost_batch_norm,
)
from gradkit.layers.gradient_boosted_layers import BoostedBlocks, boost, gradient_boosted_layers
from gradkit.layers.matched_affine import AffineStatistics, init_affine_statistics, matched_affine
from gradkit.layers.mip_encode import (
    mip_combine,
    mip_encode,
)
from gradkit.layers.online_norm import (
    OnlineNormControl,
    online_norm,
)
from gradkit.layers.power_norm import (
    PowerNormState,
    power_norm,
)
from gradkit.layers.quantize_cotangent import (
    activation_gradient_pruning,
    quantize_cotangent,
)
from gradkit.layers.randomized_linear import (
    randomized_linear,
)
from gradkit.layers.recompute_batch_stats import (
    recompute_batch_stats,
)
from gradkit.layers.reinmax import (
    reinmax,
    straight_through_categorical,
)
from gradkit.layers.reste import (
    reste_indicators,
    reste_sign,
)
from gradkit.layers.scaled_standardize_weight import (
    nf_gain,
    scaled_standardize_weight,
)
from gradkit.layers.served_by_flax import (
    batch_norm,
    layer_norm,
)
from gradkit.layers.shift_quantize import (
    l1_normalize,
    shift_quantize,
)
from gradkit.layers.standardize_weight import (
    batch_channel_norm,
    standardize_weight,
)
from gradkit.layers.statistics import (
    RunningStatistics,
)
from gradkit.layers.ternary_linear import ternary_linear, ternary_quantize
from gradkit.layers.tract import (
    tract,
    tract_conv,
    tract_linear,
)
from gradkit.layers.unified_norm import (
    UnifiedNormState,
    unified_norm,
)
from gradkit.layers.vector_quantize import (
    CodebookAffine,
    affine_codebook,
    alternate_codebook_update,
    init_affine,
    replace_dead_codes,
    vector_quantize,
)

__all__ = [
    "AffineStatistics",
    "BoostedBlocks",
    "CodebookAffine",
    "OnlineNormControl",
    "PowerNormState",
    "ResidualRanges",
    "RunningStatistics",
    "UnifiedNormState",
    "activation_gradient_pruning",
    "affine_codebook",
    "alternate_codebook_update",
    "batch_channel_norm",
    "batch_norm",
    "boost",
    "collect_attention_logits",
    "compress_residuals",
    "condition_weight",
    "crs_linear",
    "ghost_batch_norm",
    "gradient_boosted_layers",
    "init_affine",
    "init_affine_statistics",
    "l1_normalize",
    "layer_norm",
    "matched_affine",
    "max_attention_logits",
    "mip_combine",
    "mip_encode",
    "nf_gain",
    "online_norm",
    "power_norm",
    "quantize_cotangent",
    "randomized_linear",
    "recompute_batch_stats",
    "recorded_attention",
    "reinmax",
    "replace_dead_codes",
    "reste_indicators",
    "reste_sign",
    "running_ranges",
    "scaled_standardize_weight",
    "shift_quantize",
    "sparse_weight",
    "standardize_weight",
    "straight_through_categorical",
    "ternary_linear",
    "ternary_quantize",
    "tract",
    "tract_conv",
    "tract_linear",
    "unified_norm",
    "vector_quantize",
    "wta_crs_linear",
]
