"""Gradient descent and momentum."""

from gradkit.optimizers.momentum.heavy_ball import heavy_ball
from gradkit.optimizers.momentum.sgd import momentum, nag, sgd
from gradkit.optimizers.momentum.xgrad import xgrad, xgrad_adamw, xgrad_sgd

__all__ = ["heavy_ball", "momentum", "nag", "sgd", "xgrad", "xgrad_adamw", "xgrad_sgd"]
