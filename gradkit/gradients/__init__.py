"""Where the gradient comes from: drop-in replacements of `jax.value_and_grad`."""

from gradkit.gradients.displaced import displaced_gradient
from gradkit.gradients.microbatch import microbatch
from gradkit.gradients.moments import GradientMoments, gradient_moments
from gradkit.gradients.sam import asam, sam

__all__ = ["GradientMoments", "asam", "displaced_gradient", "gradient_moments", "microbatch", "sam"]
