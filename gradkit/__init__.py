"""gradkit: training methods of the literature as pure, chainable `optax.GradientTransformation`s.

At the top stands what goes into a chain. Everything else is under its room: `gk.schedules`, `gk.gradients`,
`gk.aggregation`, `gk.batches`, `gk.diagnostics`, `gk.leaves`, `gk.linalg`, `gk.parallel`, `gk.training`,
`gk.workloads`, and `gk.catalogue`, which has a card for every method.
"""
# ruff: noqa: I001 - grouped under headings

# Gradient descent and momentum
from gradkit.optimizers.momentum import heavy_ball, momentum, nag, sgd, xgrad, xgrad_adamw, xgrad_sgd

# A second moment per coordinate
from gradkit.optimizers.adaptive import (
    adadelta,
    adagrad,
    adam,
    adamax,
    adamnc,
    adamp,
    adamw,
    amsgrad,
    clip_adagrad,
    clip_adam,
    clip_adamd,
    clip_radagradd,
    grams,
    induced_metric_log,
    induced_metric_rms,
    induced_metric_sgd,
    nadam,
    optimistic_amsgrad,
    rmsprop,
    scale_by_adadelta,
    scale_by_adamax,
    scale_by_adamnc,
    scale_by_amsgrad,
    scale_by_delayed_rms,
    scale_by_induced_metric,
    scale_by_nadam,
    scale_by_rms,
    sgdp,
)

# The norms of a layer
from gradkit.optimizers.layerwise import adaptive_grad_clip, lamb, larc, lars, novograd, scale_by_novograd

# The sign of a direction
from gradkit.optimizers.sign import lion, scale_by_lion

# Filters in front of an optimizer
from gradkit.optimizers.filters import add_noise, clip_by_quantile, grokfast_ema, noisy_sgd, perpgrad

# Primitives: one link of a chain
from gradkit.transforms import (
    add_decayed_weights,
    clip_by_block_norm,
    clip_by_global_norm,
    scale_by_adam,
    scale_by_delayed_rss,
    scale_by_learning_rate,
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
    shifted_parameters,
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
    "aggregation",
    "amsgrad",
    "batches",
    "catalogue",
    "clip_adagrad",
    "clip_adam",
    "clip_adamd",
    "clip_by_block_norm",
    "clip_by_global_norm",
    "clip_by_quantile",
    "clip_radagradd",
    "diagnostics",
    "direction_from_gradient",
    "eval_params",
    "gradients",
    "grams",
    "grokfast_ema",
    "heavy_ball",
    "induced_metric_log",
    "induced_metric_rms",
    "induced_metric_sgd",
    "inject_hyperparams",
    "lamb",
    "larc",
    "lars",
    "leaves",
    "linalg",
    "lion",
    "momentum",
    "nadam",
    "nag",
    "noisy_sgd",
    "novograd",
    "optimistic_amsgrad",
    "parallel",
    "perpgrad",
    "precision",
    "project_scale_invariant",
    "rmsprop",
    "scale_by_adadelta",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_adamnc",
    "scale_by_amsgrad",
    "scale_by_delayed_rms",
    "scale_by_delayed_rss",
    "scale_by_induced_metric",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_nadam",
    "scale_by_novograd",
    "scale_by_rms",
    "scale_by_rss",
    "scale_by_trust_ratio",
    "schedules",
    "sgd",
    "sgdp",
    "shifted_parameters",
    "trace",
    "training",
    "workloads",
    "xgrad",
    "xgrad_adamw",
    "xgrad_sgd",
]
