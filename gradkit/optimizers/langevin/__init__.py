"""Samplers: gradient steps with the noise of Langevin dynamics."""

from gradkit.optimizers.langevin.fsgld import (
    ConduciveGradientState,
    conducive_gradient,
    fsgld,
)
from gradkit.optimizers.langevin.sgld import (
    sgld,
)

__all__ = [
    "ConduciveGradientState",
    "conducive_gradient",
    "fsgld",
    "sgld",
]
