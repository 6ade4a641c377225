"""gradkit: training methods of the literature as pure, chainable `optax.GradientTransformation`s.

At the top stands what goes into a chain. Everything else is under its room: `gk.schedules`, `gk.gradients`,
`gk.layers`, `gk.losses`, `gk.aggregation`, `gk.batches`, `gk.diagnostics`, `gk.leaves`, `gk.linalg`, `gk.parallel`,
`gk.training`, `gk.workloads`, and `gk.catalogue`, which has a card for every method.
"""
# ruff: noqa: I001 - grouped under headings
# A page to be read, not a column.
# fmt: off

# Gradient descent and momentum
from gradkit.optimizers.momentum import (
    correct_momentum, gravity, heavy_ball, momentum, nag, nesterov_large_batch, positive_negative_momentum, qhadam,
    qhm, scale_by_gravity, scale_by_qhadam, scale_by_qhm, sgd, xgrad, xgrad_adam, xgrad_adamw, xgrad_sgd,
)

# A second moment per coordinate
from gradkit.optimizers.adaptive import (
    adadelta, adagrad, adam, adamax, adamnc, adamp, adamw, ademamix, amsgrad, ano, anolog, clip_adagrad, clip_adam,
    clip_adamd, clip_radagradd, diffgrad, grams, induced_metric_log, induced_metric_rms, induced_metric_sgd, inna,
    innaprop, multi_timescale_adam, nadam, optimistic_amsgrad, ranger21, rmsprop, scale_by_adadelta,
    scale_by_adagrad_norm, scale_by_adamax, scale_by_adamnc, scale_by_ademamix, scale_by_amsgrad, scale_by_ano,
    scale_by_delayed_rms, scale_by_gradient_change, scale_by_induced_metric, scale_by_inna, scale_by_innaprop,
    scale_by_multi_momentum, scale_by_nadam, scale_by_rms, sgdp,
)

# The norms of a layer
from gradkit.optimizers.layerwise import (
    agvm, agvm_adamw, lamb, lambc, larc, lars, nlamb, novograd, scale_by_agvm, scale_by_novograd, tvlars,
)

# The sign of a direction
from gradkit.optimizers.sign import (
    lion, scale_by_lion,
)

# Filters in front of an optimizer
from gradkit.optimizers.filters import (
    add_noise, clip_by_quantile, grokfast_ema, grokfast_ma, noisy_sgd, orthogonalize_to_params, perpgrad,
)

# The singular values of a matrix
from gradkit.optimizers.matrix import (
    adjust_lora_gradients, auon, conda, dion, distributed_shampoo, fira, galore, hybrid_auon, kron, lora_pro,
    lora_pro_adam, muon, precondition_by_input_moment, project_out_subspace, psgd_kron, scale_by_auon, scale_by_conda,
    scale_by_cosh_rms, scale_by_dion, scale_by_factor_gram, scale_by_hybrid_auon, scale_by_muon, scale_by_shampoo,
    scale_by_soap, scaled_gd, shampoo, soap,
)

# Over which devices the work on matrices is spread
from gradkit.transforms import (
    MatrixSharding, shard_matrices,
)

# Less variance from what earlier steps have seen
from gradkit.optimizers.variance_reduction import (
    cluster_momentum, implicit_gradient_transport, mars_adamw, mars_exact, mars_lion, mars_shampoo, sag_estimator,
    saga_estimator, svrg_estimator, vr_adam, vr_lamb, vr_lars, vr_momentum, vr_sgd,
)

# A smooth loss and a penalty that is not
from gradkit.optimizers.proximal import (
    nonconvex_accelerated_gradient,
)

# Averages of the iterates
from gradkit.optimizers.averaging import (
    params_ema, polyak_average, proximal_ewma,
)

# What has converged is frozen
from gradkit.optimizers.freezing import (
    all_frozen, freeze_on_convergence, frozen_mask, grades,
)

# The Hessian, or its diagonal
from gradkit.optimizers.second_order import (
    adahessian, gradient_regularized_newton, oasis, sania, sania_adagrad_sqr, sania_adam_sqr, scale_by_adahessian,
    scale_by_local_lipschitz, scale_by_oasis, scale_by_preconditioned_polyak, sophia, sophia_g, sophia_h,
)

# The curvature of a minibatch, through its predictions
from gradkit.optimizers.gauss_newton import (
    egn, from_kfac, kfac_preconditioner, ngd, thermodynamic_ngd,
)

# One matrix per axis of a tensor; blocks of leaves; the direction of one method, the length of another's step
from gradkit.transforms import (
    block_leaves, graft, in_basis, kronecker_bases, kronecker_statistics,
)

# Primitives: one link of a chain
from gradkit.transforms import (
    adaptive_grad_clip, add_decayed_weights, block_norm, centralize_gradients, clip_by_block_norm, clip_by_global_norm,
    limit_norm_growth, lookahead_in_chain, mars_correction, norm_loss, normalize_and_project, normalize_gradients,
    project_updates, scale_by_adam, scale_by_delayed_rss, scale_by_diag_curvature, scale_by_gsnr, scale_by_kron,
    scale_by_learning_rate, scale_by_pnm, scale_by_rss, scale_by_sophia, scale_by_trust_ratio, trace,
)

# Wrappers: around any transformation
from gradkit.transforms import (
    accumulate_weighted, direction_from_gradient, eval_params, find, guard, inject_hyperparams, precision,
    project_low_rank, project_scale_invariant, reparameterize, shifted_parameters, stable_weight_decay,
    weight_normalized, with_curvature,
)

# Rooms
from gradkit import (
    aggregation, batches, catalogue, diagnostics, gradients, layers, leaves, linalg, losses, parallel, schedules,
    training, workloads,
)

__all__ = [
    "MatrixSharding",
    "accumulate_weighted",
    "adadelta",
    "adagrad",
    "adahessian",
    "adam",
    "adamax",
    "adamnc",
    "adamp",
    "adamw",
    "adaptive_grad_clip",
    "add_decayed_weights",
    "add_noise",
    "ademamix",
    "adjust_lora_gradients",
    "aggregation",
    "agvm",
    "agvm_adamw",
    "all_frozen",
    "amsgrad",
    "ano",
    "anolog",
    "auon",
    "batches",
    "block_leaves",
    "block_norm",
    "catalogue",
    "centralize_gradients",
    "clip_adagrad",
    "clip_adam",
    "clip_adamd",
    "clip_by_block_norm",
    "clip_by_global_norm",
    "clip_by_quantile",
    "clip_radagradd",
    "cluster_momentum",
    "conda",
    "correct_momentum",
    "diagnostics",
    "diffgrad",
    "dion",
    "direction_from_gradient",
    "distributed_shampoo",
    "egn",
    "eval_params",
    "find",
    "fira",
    "freeze_on_convergence",
    "from_kfac",
    "frozen_mask",
    "galore",
    "grades",
    "gradient_regularized_newton",
    "gradients",
    "graft",
    "grams",
    "gravity",
    "grokfast_ema",
    "grokfast_ma",
    "guard",
    "heavy_ball",
    "hybrid_auon",
    "implicit_gradient_transport",
    "in_basis",
    "induced_metric_log",
    "induced_metric_rms",
    "induced_metric_sgd",
    "inject_hyperparams",
    "inna",
    "innaprop",
    "kfac_preconditioner",
    "kron",
    "kronecker_bases",
    "kronecker_statistics",
    "lamb",
    "lambc",
    "larc",
    "lars",
    "layers",
    "leaves",
    "limit_norm_growth",
    "linalg",
    "lion",
    "lookahead_in_chain",
    "lora_pro",
    "lora_pro_adam",
    "losses",
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
    "ngd",
    "nlamb",
    "noisy_sgd",
    "nonconvex_accelerated_gradient",
    "norm_loss",
    "normalize_and_project",
    "normalize_gradients",
    "novograd",
    "oasis",
    "optimistic_amsgrad",
    "orthogonalize_to_params",
    "parallel",
    "params_ema",
    "perpgrad",
    "polyak_average",
    "positive_negative_momentum",
    "precision",
    "precondition_by_input_moment",
    "project_low_rank",
    "project_out_subspace",
    "project_scale_invariant",
    "project_updates",
    "proximal_ewma",
    "psgd_kron",
    "qhadam",
    "qhm",
    "ranger21",
    "reparameterize",
    "rmsprop",
    "sag_estimator",
    "saga_estimator",
    "sania",
    "sania_adagrad_sqr",
    "sania_adam_sqr",
    "scale_by_adadelta",
    "scale_by_adagrad_norm",
    "scale_by_adahessian",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_adamnc",
    "scale_by_ademamix",
    "scale_by_agvm",
    "scale_by_amsgrad",
    "scale_by_ano",
    "scale_by_auon",
    "scale_by_conda",
    "scale_by_cosh_rms",
    "scale_by_delayed_rms",
    "scale_by_delayed_rss",
    "scale_by_diag_curvature",
    "scale_by_dion",
    "scale_by_factor_gram",
    "scale_by_gradient_change",
    "scale_by_gravity",
    "scale_by_gsnr",
    "scale_by_hybrid_auon",
    "scale_by_induced_metric",
    "scale_by_inna",
    "scale_by_innaprop",
    "scale_by_kron",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_local_lipschitz",
    "scale_by_multi_momentum",
    "scale_by_muon",
    "scale_by_nadam",
    "scale_by_novograd",
    "scale_by_oasis",
    "scale_by_pnm",
    "scale_by_preconditioned_polyak",
    "scale_by_qhadam",
    "scale_by_qhm",
    "scale_by_rms",
    "scale_by_rss",
    "scale_by_shampoo",
    "scale_by_soap",
    "scale_by_sophia",
    "scale_by_trust_ratio",
    "scaled_gd",
    "schedules",
    "sgd",
    "sgdp",
    "shampoo",
    "shard_matrices",
    "shifted_parameters",
    "soap",
    "sophia",
    "sophia_g",
    "sophia_h",
    "stable_weight_decay",
    "svrg_estimator",
    "thermodynamic_ngd",
    "trace",
    "training",
    "tvlars",
    "vr_adam",
    "vr_lamb",
    "vr_lars",
    "vr_momentum",
    "vr_sgd",
    "weight_normalized",
    "with_curvature",
    "workloads",
    "xgrad",
    "xgrad_adam",
    "xgrad_adamw",
    "xgrad_sgd",
]
