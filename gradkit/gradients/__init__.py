"""Where the gradient comes from: drop-in replacements of `jax.value_and_grad`, and losses."""

from gradkit.gradients.displaced import displaced_gradient
from gradkit.gradients.microbatch import microbatch
from gradkit.gradients.moments import GradientMoments, gradient_moments
from gradkit.gradients.sam import asam, sam
from gradkit.gradients.stablemax import log_stablemax, stablemax_cross_entropy

__all__ = [
    "GradientMoments",
    "asam",
    "displaced_gradient",
    "gradient_moments",
    "log_stablemax",
    "microbatch",
    "sam",
    "stablemax_cross_entropy",
]
