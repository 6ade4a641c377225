"""Where the gradient comes from: drop-in replacements of `jax.value_and_grad`."""

from gradkit.engine.lazy_gradients import (
    LazyGradients,
)
from gradkit.gradients.aggregate_inner_gradients import (
    Sga,
    SgaState,
    aggregate_inner_gradients,
    sga,
)
from gradkit.gradients.bilevel_directions import (
    Bilevel,
    BilevelState,
    bilevel_directions,
)
from gradkit.gradients.bo_rep import (
    bo_rep,
)
from gradkit.gradients.bsvrb import (
    BsvrbMemory,
    bsvrb,
    storm_blocks,
)
from gradkit.gradients.concurrent_adversarial import (
    ConcurrentAdversarial,
    ConcurrentAdversarialState,
    concurrent_adversarial,
)
from gradkit.gradients.direct_feedback_alignment import (
    direct_feedback_alignment,
    feedback_alignment,
    init_feedback,
)
from gradkit.gradients.displaced import (
    displaced_gradient,
)
from gradkit.gradients.example_gradients import (
    example_gradients,
)
from gradkit.gradients.flat_multi_task import (
    FlatMultiTask,
    flat_multi_task,
)
from gradkit.gradients.forward_gradient import (
    forward_gradient,
)
from gradkit.gradients.friendly_sam import (
    FriendlySamState,
    friendly_sam,
)
from gradkit.gradients.gauss_newton_bartlett_diag import (
    gauss_newton_bartlett_diag,
)
from gradkit.gradients.grad_cache import (
    grad_cache,
)
from gradkit.gradients.gradient_regularization import (
    gradient_regularization,
)
from gradkit.gradients.gsam import (
    gsam,
)
from gradkit.gradients.guided_forward_gradient import (
    guided_forward_gradient,
    project_onto_guess,
)
from gradkit.gradients.hutchinson_diag import (
    hutchinson_diag,
)
from gradkit.gradients.ift_hypergradient import (
    ift_hypergradient,
    neumann_ihvp,
)
from gradkit.gradients.likelihood_ratio_gradient import (
    LikelihoodRatioGradients,
    LikelihoodRatioTape,
    likelihood_ratio_gradient,
    lr_dense,
)
from gradkit.gradients.local_spsa import local_spsa
from gradkit.gradients.looksam import (
    LooksamState,
    looksam,
)
from gradkit.gradients.lora_ga_init import (
    lora_ga_init,
)
from gradkit.gradients.map_cotangent import (
    clip_pixels,
    clip_pixelwise,
    map_cotangent,
)
from gradkit.gradients.microbatch import (
    microbatch,
)
from gradkit.gradients.moments import (
    GradientMoments,
    gradient_moments,
)
from gradkit.gradients.multiply_by_noise import (
    multiply_by_noise,
)
from gradkit.gradients.partial_set_gradient import (
    partial_set_gradient,
    replace_forward,
)
from gradkit.gradients.path_gradient_kl import (
    path_gradient_kl,
)
from gradkit.gradients.per_class_gradients import (
    per_class_gradients,
)
from gradkit.gradients.replay_grad import (
    metagradient_descent,
    metasmoothness,
    replay_grad,
)
from gradkit.gradients.sam import (
    asam,
    sam,
)
from gradkit.gradients.sandwich_gradient import (
    sandwich_gradient,
)
from gradkit.gradients.scale_by_return import (
    ScaleByReturn,
    ScaleByReturnState,
    scale_by_return,
)
from gradkit.gradients.sl_bamm import (
    sl_bamm,
)
from gradkit.gradients.smoothgrad import (
    smoothgrad,
)
from gradkit.gradients.stateful import (
    StatefulGradient,
)
from gradkit.gradients.svag import (
    svag,
)
from gradkit.gradients.task_gradients import (
    task_gradients,
)
from gradkit.gradients.truncated_backprop import low_variance_last_step, random_truncated_backprop, truncated_backprop
from gradkit.gradients.vanishing_gradient_penalty import (
    vanishing_gradient_penalty,
)
from gradkit.gradients.zeroth_order_gradient import (
    directional_difference,
    zeroth_order_gradient,
)
from gradkit.gradients.zo_history import (
    ZoHistoryState,
    zo_history,
)
from gradkit.gradients.zo_sgd import (
    ZerothOrder,
    zo_adam,
    zo_adamm,
    zo_conservative,
    zo_sgd,
    zo_sign_sgd,
)

__all__ = [
    "Bilevel",
    "BilevelState",
    "BsvrbMemory",
    "ConcurrentAdversarial",
    "ConcurrentAdversarialState",
    "FlatMultiTask",
    "FriendlySamState",
    "GradientMoments",
    "LazyGradients",
    "LikelihoodRatioGradients",
    "LikelihoodRatioTape",
    "LooksamState",
    "ScaleByReturn",
    "ScaleByReturnState",
    "Sga",
    "SgaState",
    "StatefulGradient",
    "ZerothOrder",
    "ZoHistoryState",
    "aggregate_inner_gradients",
    "asam",
    "bilevel_directions",
    "bo_rep",
    "bsvrb",
    "clip_pixels",
    "clip_pixelwise",
    "concurrent_adversarial",
    "direct_feedback_alignment",
    "directional_difference",
    "displaced_gradient",
    "example_gradients",
    "feedback_alignment",
    "flat_multi_task",
    "forward_gradient",
    "friendly_sam",
    "gauss_newton_bartlett_diag",
    "grad_cache",
    "gradient_moments",
    "gradient_regularization",
    "gsam",
    "guided_forward_gradient",
    "hutchinson_diag",
    "ift_hypergradient",
    "init_feedback",
    "likelihood_ratio_gradient",
    "local_spsa",
    "looksam",
    "lora_ga_init",
    "low_variance_last_step",
    "lr_dense",
    "map_cotangent",
    "metagradient_descent",
    "metasmoothness",
    "microbatch",
    "multiply_by_noise",
    "neumann_ihvp",
    "partial_set_gradient",
    "path_gradient_kl",
    "per_class_gradients",
    "project_onto_guess",
    "random_truncated_backprop",
    "replace_forward",
    "replay_grad",
    "sam",
    "sandwich_gradient",
    "scale_by_return",
    "sga",
    "sl_bamm",
    "smoothgrad",
    "storm_blocks",
    "svag",
    "task_gradients",
    "truncated_backprop",
    "vanishing_gradient_penalty",
    "zeroth_order_gradient",
    "zo_adam",
    "zo_adamm",
    "zo_conservative",
    "zo_history",
    "zo_sgd",
    "zo_sign_sgd",
]
