"""gradkit: training methods of the literature as pure, chainable `optax.GradientTransformation`s.

At the top stands what goes into a chain. Everything else is under its room: `gk.schedules`, `gk.gradients`,
`gk.layers`, `gk.losses`, `gk.aggregation`, `gk.batches`, `gk.diagnostics`, `gk.leaves`, `gk.linalg`, `gk.parallel`,
`gk.training`, `gk.testing`, `gk.workloads`, and `gk.catalogue`, which has a card for every method.
"""
# ruff: noqa: I001, F403 - grouped under headings; the names of methods are listed by their groups
# A page to be read, not a column.
# fmt: off

import importlib.metadata

# First of all, so that Ctrl-C ends the command while all the rest is imported
import gradkit.interrupts

# Gradient descent and momentum
from gradkit.optimizers.momentum import *

# A second moment per coordinate
from gradkit.optimizers.adaptive import *

# The norms of a layer
from gradkit.optimizers.layerwise import *

# The sign of a direction
from gradkit.optimizers.sign import *

# Filters in front of an optimizer
from gradkit.optimizers.filters import *

# The singular values of a matrix
from gradkit.optimizers.matrix import *

# Over which devices the work on matrices is spread
from gradkit.transforms import (
    MatrixSharding, shard_matrices,
)

# Less variance from what earlier steps have seen
from gradkit.optimizers.variance_reduction import *

# A smooth loss and a penalty that is not
from gradkit.optimizers.proximal import *

# A step size that is measured
from gradkit.optimizers.parameter_free import *
from gradkit.transforms import (
    Measure, scale_by_measured,
)

# Games: some leaves descend, others ascend
from gradkit.optimizers.games import *

# The dual of a kernel method
from gradkit.optimizers.kernels import *

# Averages of the iterates
from gradkit.optimizers.averaging import *

# What has converged is frozen
from gradkit.optimizers.freezing import *

# Samples of the posterior
from gradkit.optimizers.langevin import *

# The Hessian, or its diagonal
from gradkit.optimizers.second_order import *

# The curvature of a minibatch, through its predictions
from gradkit.optimizers.gauss_newton import *

# One matrix per axis of a tensor; blocks of leaves; the direction of one method, the length of another's step
from gradkit.transforms import (
    block_leaves, graft, in_basis, kl_statistics, kronecker_bases, kronecker_statistics,
)

# Primitives: one link of a chain
from gradkit.transforms import (
    adagc, adaptive_grad_clip, add_decayed_weights, add_langevin_noise, block_norm, cautious_weight_decay,
    centralize_gradients, clip_by_block_norm, corrected_weight_decay,
    clip_by_global_norm, clip_by_tensor_rms, clip_top_coordinates, limit_norm_growth, lmo, lookahead_in_chain,
    mars_correction, norm_loss, normalize_and_project, normalize_gradients, project_updates, record_norms,
    relative_update, scale_by_adam, scale_by_delayed_rss, scale_by_diag_curvature, scale_by_factored_rms,
    scale_by_gsnr, scale_by_kron, scale_by_learning_rate, scale_by_neuron_rms, scale_by_normuon, scale_by_param_rms,
    scale_by_pnm, scale_by_rss, scale_by_scheduled_adam, scale_by_sophia, scale_by_trust_ratio, select_slices, trace,
    zclip,
)

# In the place of the learning rate: the size of a step relative to the weights, and their norm
from gradkit.transforms import pin_radius, radial_brake, radius_control, row_floor, update_ratio_floor

# Query and key weights, bounded by the attention logits that they make
from gradkit.transforms import QKRole, qk_clip

# Sparse training: a mask, and the link that keeps to it
from gradkit.transforms import keep_updates, top_magnitude_mask

# Wrappers: around any transformation
from gradkit.transforms import (
    accumulate_value, accumulate_weighted, averaged_params, cautious, clip_by_update_rms, direction_from_gradient,
    eval_params, find, guard, hyperball,
    inject_hyperparams, interpolated_averaging, keep_best, minimise_inner, polynomial_decay_average, precision,
    project_low_rank, project_scale_invariant, projected, reparameterize, running_average, schedule_free,
    Multipliers, mup_init, mup_multipliers, scale_by_width, schedule_free_eval_params, shifted_parameters, skip_step,
    stable_weight_decay, trust_gate, weight_normalized, with_curvature,
)

# Rooms
from gradkit import optimizers as _optimizers
from gradkit import (
    aggregation, batches, catalogue, diagnostics, gradients, layers, leaves, linalg, losses, parallel, schedules,
    testing, training, workloads,
)

# Last, so that what the rooms lack is answered with what is near
import gradkit.offers  # noqa: F401

# What the groups of optimizers list, but for types of states; and the names that stand above, which are written out for
# type checkers. tests/test_house.py holds the list against the imports.
__all__ = [  # pyrefly: ignore[unresolvable-dunder-all]
    *(
        name
        for group in vars(_optimizers).values()
        for name in getattr(group, "__all__", ())
        if not isinstance(getattr(group, name), type)
    ),
    "MatrixSharding",
    "Measure",
    "QKRole",
    "Multipliers",
    "accumulate_value",
    "accumulate_weighted",
    "adagc",
    "adaptive_grad_clip",
    "add_decayed_weights",
    "add_langevin_noise",
    "aggregation",
    "averaged_params",
    "batches",
    "block_leaves",
    "block_norm",
    "catalogue",
    "cautious",
    "cautious_weight_decay",
    "centralize_gradients",
    "clip_by_block_norm",
    "clip_by_global_norm",
    "clip_by_tensor_rms",
    "clip_by_update_rms",
    "clip_top_coordinates",
    "corrected_weight_decay",
    "diagnostics",
    "direction_from_gradient",
    "eval_params",
    "find",
    "gradients",
    "graft",
    "guard",
    "hyperball",
    "in_basis",
    "inject_hyperparams",
    "keep_best",
    "keep_updates",
    "top_magnitude_mask",
    "interpolated_averaging",
    "kl_statistics",
    "kronecker_bases",
    "kronecker_statistics",
    "layers",
    "leaves",
    "limit_norm_growth",
    "linalg",
    "lmo",
    "lookahead_in_chain",
    "losses",
    "mars_correction",
    "minimise_inner",
    "norm_loss",
    "mup_init",
    "mup_multipliers",
    "normalize_and_project",
    "normalize_gradients",
    "parallel",
    "pin_radius",
    "polynomial_decay_average",
    "precision",
    "project_low_rank",
    "project_scale_invariant",
    "projected",
    "project_updates",
    "qk_clip",
    "radial_brake",
    "radius_control",
    "record_norms",
    "relative_update",
    "reparameterize",
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
    "schedules",
    "select_slices",
    "shard_matrices",
    "shifted_parameters",
    "skip_step",
    "stable_weight_decay",
    "testing",
    "trace",
    "training",
    "update_ratio_floor",
    "trust_gate",
    "weight_normalized",
    "with_curvature",
    "workloads",
    "zclip",
]

__version__ = importlib.metadata.version("gradkit")


def __dir__() -> list[str]:
    """Methods and rooms, as `__all__` lists them."""
    return sorted([*__all__, "__version__"])
