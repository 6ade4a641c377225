"""Gradient descent and momentum."""

from gradkit.optimizers.momentum.sgd import momentum, sgd
from gradkit.optimizers.momentum.xgrad import xgrad, xgrad_adamw, xgrad_sgd

__all__ = ["momentum", "sgd", "xgrad", "xgrad_adamw", "xgrad_sgd"]
