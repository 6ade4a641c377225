"""gradkit: training methods of the literature as pure, chainable `optax.GradientTransformation`s.

At the top stands what goes into a chain; everything else is under its room: `gk.schedules`,
`gk.gradients`, `gk.aggregation`, `gk.batches`, `gk.diagnostics`, `gk.leaves`, `gk.training`, `gk.workloads`.
"""

import importlib
from typing import Any

# Rooms
from gradkit import (
    aggregation,
    batches,
    catalogue,
    diagnostics,
    gradients,
    leaves,
    linalg,
    schedules,
)

# A second moment per coordinate
from gradkit.optimizers.adaptive import adam, adamp, adamw, grams, sgdp

# Filters in front of an optimizer
from gradkit.optimizers.filters import grokfast_ema, perpgrad

# Norms of a layer
from gradkit.optimizers.layerwise import (
    adaptive_grad_clip,
    lamb,
    larc,
    lars,
    novograd,
    scale_by_novograd,
)

# Gradient descent and momentum
from gradkit.optimizers.momentum import momentum, sgd, xgrad, xgrad_adamw, xgrad_sgd

# The sign of a direction
from gradkit.optimizers.sign import lion, scale_by_lion

# Primitives and wrappers
from gradkit.transforms import (
    add_decayed_weights,
    clip_by_global_norm,
    direction_from_gradient,
    eval_params,
    inject_hyperparams,
    project_scale_invariant,
    scale_by_adam,
    scale_by_learning_rate,
    scale_by_trust_ratio,
    shifted_parameters,
    trace,
)
