"""Methods that rescale every coordinate by a second moment."""

from gradkit.optimizers.adaptive.adadelta import (
    ScaleByAdadeltaState,
    adadelta,
    scale_by_adadelta,
)
from gradkit.optimizers.adaptive.adafactor import (
    adafactor,
)
from gradkit.optimizers.adaptive.adagrad import (
    adagrad,
)
from gradkit.optimizers.adaptive.adagrad_norm import (
    scale_by_adagrad_norm,
)
from gradkit.optimizers.adaptive.adam import (
    adam,
)
from gradkit.optimizers.adaptive.adam_mini import (
    ScaleByBlockRmsState,
    adam_mini,
    scale_by_block_rms,
)
from gradkit.optimizers.adaptive.adamax import (
    ScaleByAdamaxState,
    adamax,
    scale_by_adamax,
)
from gradkit.optimizers.adaptive.adamnc import (
    ScaleByAdamncState,
    adamnc,
    scale_by_adamnc,
)
from gradkit.optimizers.adaptive.adamp import (
    adamp,
    sgdp,
)
from gradkit.optimizers.adaptive.adamw import (
    adamw,
)
from gradkit.optimizers.adaptive.adan import (
    ScaleByAdanState,
    adan,
    scale_by_adan,
)
from gradkit.optimizers.adaptive.ademamix import (
    ademamix,
    scale_by_ademamix,
)
from gradkit.optimizers.adaptive.adopt import (
    ScaleByAdoptState,
    adopt,
    scale_by_adopt,
)
from gradkit.optimizers.adaptive.amsgrad import (
    ScaleByAmsgradState,
    amsgrad,
    scale_by_amsgrad,
)
from gradkit.optimizers.adaptive.ano import (
    ScaleByAnoState,
    ano,
    anolog,
    scale_by_ano,
)
from gradkit.optimizers.adaptive.came import (
    came,
)
from gradkit.optimizers.adaptive.cautious_adamw import (
    cautious_adamw,
)
from gradkit.optimizers.adaptive.clip_adagrad import (
    clip_adagrad,
    clip_radagradd,
)
from gradkit.optimizers.adaptive.clip_adam import (
    ScaleByDelayedRmsState,
    clip_adam,
    clip_adamd,
    scale_by_delayed_rms,
)
from gradkit.optimizers.adaptive.diffgrad import (
    ScaleByGradientChangeState,
    diffgrad,
    scale_by_gradient_change,
)
from gradkit.optimizers.adaptive.grams import (
    grams,
)
from gradkit.optimizers.adaptive.induced_metric import (
    ScaleByInducedMetricState,
    induced_metric_log,
    induced_metric_rms,
    induced_metric_sgd,
    scale_by_induced_metric,
)
from gradkit.optimizers.adaptive.innaprop import (
    ScaleByInnaState,
    inna,
    innaprop,
    scale_by_inna,
    scale_by_innaprop,
)
from gradkit.optimizers.adaptive.laprop import (
    ScaleByLapropState,
    laprop,
    scale_by_laprop,
)
from gradkit.optimizers.adaptive.multi_timescale_adam import (
    multi_timescale_adam,
    scale_by_multi_momentum,
)
from gradkit.optimizers.adaptive.nadam import (
    ScaleByNadamState,
    nadam,
    scale_by_nadam,
)
from gradkit.optimizers.adaptive.optimistic_amsgrad import (
    OptimisticAmsgradState,
    optimistic_amsgrad,
)
from gradkit.optimizers.adaptive.ranger21 import (
    ranger21,
)
from gradkit.optimizers.adaptive.rmsprop import (
    ScaleByRmsState,
    rmsprop,
    scale_by_rms,
)
from gradkit.optimizers.adaptive.spam import (
    spam,
)
from gradkit.optimizers.adaptive.stable_adamw import (
    stable_adamw,
)
from gradkit.optimizers.adaptive.stable_spam import (
    adaptive_norm,
    adaptive_spike_clip,
    stable_spam,
)

__all__ = [
    "OptimisticAmsgradState",
    "ScaleByAdadeltaState",
    "ScaleByAdamaxState",
    "ScaleByAdamncState",
    "ScaleByAdanState",
    "ScaleByAdoptState",
    "ScaleByAmsgradState",
    "ScaleByAnoState",
    "ScaleByBlockRmsState",
    "ScaleByDelayedRmsState",
    "ScaleByGradientChangeState",
    "ScaleByInducedMetricState",
    "ScaleByInnaState",
    "ScaleByLapropState",
    "ScaleByNadamState",
    "ScaleByRmsState",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adam_mini",
    "adamax",
    "adamnc",
    "adamp",
    "adamw",
    "adan",
    "adaptive_norm",
    "adaptive_spike_clip",
    "ademamix",
    "adopt",
    "amsgrad",
    "ano",
    "anolog",
    "came",
    "cautious_adamw",
    "clip_adagrad",
    "clip_adam",
    "clip_adamd",
    "clip_radagradd",
    "diffgrad",
    "grams",
    "induced_metric_log",
    "induced_metric_rms",
    "induced_metric_sgd",
    "inna",
    "innaprop",
    "laprop",
    "multi_timescale_adam",
    "nadam",
    "optimistic_amsgrad",
    "ranger21",
    "rmsprop",
    "scale_by_adadelta",
    "scale_by_adagrad_norm",
    "scale_by_adamax",
    "scale_by_adamnc",
    "scale_by_adan",
    "scale_by_ademamix",
    "scale_by_adopt",
    "scale_by_amsgrad",
    "scale_by_ano",
    "scale_by_block_rms",
    "scale_by_delayed_rms",
    "scale_by_gradient_change",
    "scale_by_induced_metric",
    "scale_by_inna",
    "scale_by_innaprop",
    "scale_by_laprop",
    "scale_by_multi_momentum",
    "scale_by_nadam",
    "scale_by_rms",
    "sgdp",
    "spam",
    "stable_adamw",
    "stable_spam",
]
