"""gradkit: training methods of the literature as pure, chainable `optax.GradientTransformation`s.

At the top stands what goes into a chain. Everything else is under its room: `gk.schedules`, `gk.gradients`,
`gk.aggregation`, `gk.batches`, `gk.diagnostics`, `gk.leaves`, `gk.linalg`, `gk.parallel`, `gk.training`,
`gk.workloads`, and `gk.catalogue`, which has a card for every method.
"""
# ruff: noqa: I001 - grouped under headings

# Gradient descent and momentum
from gradkit.optimizers.momentum import (
    correct_momentum,
    gravity,
    heavy_ball,
    momentum,
    nag,
    nesterov_large_batch,
    positive_negative_momentum,
    qhadam,
    qhm,
    scale_by_gravity,
    scale_by_qhadam,
    scale_by_qhm,
    sgd,
    xgrad,
    xgrad_adam,
    xgrad_adamw,
    xgrad_sgd,
)

# A second moment per coordinate
from gradkit.optimizers.adaptive import (
    adadelta,
    adagrad,
    adam,
    adamax,
    adamnc,
    adamp,
    adamw,
    ademamix,
    amsgrad,
    ano,
    anolog,
    clip_adagrad,
    clip_adam,
    clip_adamd,
    clip_radagradd,
    diffgrad,
    grams,
    induced_metric_log,
    induced_metric_rms,
    induced_metric_sgd,
    inna,
    innaprop,
    multi_timescale_adam,
    nadam,
    optimistic_amsgrad,
    ranger21,
    rmsprop,
    scale_by_adadelta,
    scale_by_adagrad_norm,
    scale_by_adamax,
    scale_by_adamnc,
    scale_by_ademamix,
    scale_by_amsgrad,
    scale_by_ano,
    scale_by_delayed_rms,
    scale_by_gradient_change,
    scale_by_induced_metric,
    scale_by_inna,
    scale_by_innaprop,
    scale_by_multi_momentum,
    scale_by_nadam,
    scale_by_rms,
    sgdp,
)

# The norms of a layer
from gradkit.optimizers.layerwise import (
    lamb,
    larc,
    lars,
    novograd,
    scale_by_novograd,
    tvlars,
)

# The sign of a direction
from gradkit.optimizers.sign import (
    lion,
    scale_by_lion,
)

# Filters in front of an optimizer
from gradkit.optimizers.filters import (
    add_noise,
    clip_by_quantile,
    grokfast_ema,
    grokfast_ma,
    noisy_sgd,
    orthogonalize_to_params,
    perpgrad,
)

# The singular values of a matrix
from gradkit.optimizers.matrix import (
    muon,
    scale_by_muon,
    scale_by_shampoo,
    shampoo,
)

# One preconditioner per axis of a tensor
from gradkit.transforms import (
    kronecker_statistics,
)

# Over which devices the work on matrices is spread
from gradkit.transforms import (
    MatrixSharding,
)

# Less variance from what earlier steps have seen
from gradkit.optimizers.variance_reduction import (
    implicit_gradient_transport,
    mars_adamw,
    mars_exact,
    mars_lion,
    mars_shampoo,
    vr_adam,
    vr_lamb,
    vr_lars,
    vr_momentum,
    vr_sgd,
)

# A smooth loss and a penalty that is not
from gradkit.optimizers.proximal import (
    nonconvex_accelerated_gradient,
)

# Averages of the iterates
from gradkit.optimizers.averaging import (
    params_ema,
    polyak_average,
)

# What has converged is frozen
from gradkit.optimizers.freezing import (
    all_frozen,
    freeze_on_convergence,
    frozen_mask,
    grades,
)

# Primitives: one link of a chain
from gradkit.transforms import (
    adaptive_grad_clip,
    add_decayed_weights,
    centralize_gradients,
    clip_by_block_norm,
    clip_by_global_norm,
    lookahead_in_chain,
    mars_correction,
    norm_loss,
    normalize_and_project,
    normalize_gradients,
    project_updates,
    scale_by_adam,
    scale_by_delayed_rss,
    scale_by_gsnr,
    scale_by_learning_rate,
    scale_by_pnm,
    scale_by_rss,
    scale_by_trust_ratio,
    trace,
)

# Wrappers: around any transformation
from gradkit.transforms import (
    direction_from_gradient,
    eval_params,
    inject_hyperparams,
    precision,
    project_scale_invariant,
    reparameterize,
    shifted_parameters,
    stable_weight_decay,
    weight_normalized,
)

# Rooms
from gradkit import (
    aggregation,
    batches,
    catalogue,
    diagnostics,
    gradients,
    leaves,
    linalg,
    parallel,
    schedules,
    training,
    workloads,
)

__all__ = [
    "MatrixSharding",
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "adamnc",
    "adamp",
    "adamw",
    "adaptive_grad_clip",
    "add_decayed_weights",
    "add_noise",
    "ademamix",
    "aggregation",
    "all_frozen",
    "amsgrad",
    "ano",
    "anolog",
    "batches",
    "catalogue",
    "centralize_gradients",
    "clip_adagrad",
    "clip_adam",
    "clip_adamd",
    "clip_by_block_norm",
    "clip_by_global_norm",
    "clip_by_quantile",
    "clip_radagradd",
    "correct_momentum",
    "diagnostics",
    "diffgrad",
    "direction_from_gradient",
    "eval_params",
    "freeze_on_convergence",
    "frozen_mask",
    "grades",
    "gradients",
    "grams",
    "gravity",
    "grokfast_ema",
    "grokfast_ma",
    "heavy_ball",
    "implicit_gradient_transport",
    "induced_metric_log",
    "induced_metric_rms",
    "induced_metric_sgd",
    "inject_hyperparams",
    "inna",
    "innaprop",
    "kronecker_statistics",
    "lamb",
    "larc",
    "lars",
    "leaves",
    "linalg",
    "lion",
    "lookahead_in_chain",
    "mars_adamw",
    "mars_correction",
    "mars_exact",
    "mars_lion",
    "mars_shampoo",
    "momentum",
    "multi_timescale_adam",
    "muon",
    "nadam",
    "nag",
    "nesterov_large_batch",
    "noisy_sgd",
    "nonconvex_accelerated_gradient",
    "norm_loss",
    "normalize_and_project",
    "normalize_gradients",
    "novograd",
    "optimistic_amsgrad",
    "orthogonalize_to_params",
    "parallel",
    "params_ema",
    "perpgrad",
    "polyak_average",
    "positive_negative_momentum",
    "precision",
    "project_scale_invariant",
    "project_updates",
    "qhadam",
    "qhm",
    "ranger21",
    "reparameterize",
    "rmsprop",
    "scale_by_adadelta",
    "scale_by_adagrad_norm",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_adamnc",
    "scale_by_ademamix",
    "scale_by_amsgrad",
    "scale_by_ano",
    "scale_by_delayed_rms",
    "scale_by_delayed_rss",
    "scale_by_gradient_change",
    "scale_by_gravity",
    "scale_by_gsnr",
    "scale_by_induced_metric",
    "scale_by_inna",
    "scale_by_innaprop",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_multi_momentum",
    "scale_by_muon",
    "scale_by_nadam",
    "scale_by_novograd",
    "scale_by_pnm",
    "scale_by_qhadam",
    "scale_by_qhm",
    "scale_by_rms",
    "scale_by_rss",
    "scale_by_shampoo",
    "scale_by_trust_ratio",
    "schedules",
    "sgd",
    "sgdp",
    "shampoo",
    "shifted_parameters",
    "stable_weight_decay",
    "trace",
    "training",
    "tvlars",
    "vr_adam",
    "vr_lamb",
    "vr_lars",
    "vr_momentum",
    "vr_sgd",
    "weight_normalized",
    "workloads",
    "xgrad",
    "xgrad_adam",
    "xgrad_adamw",
    "xgrad_sgd",
]
