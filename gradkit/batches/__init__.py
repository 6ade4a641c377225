"""Rules for the batch size: what else changes when it does."""

from gradkit.batches.geometric_batch_size import geometric_batch_size
from gradkit.batches.linear_scaling import linear_scaling
from gradkit.batches.sqrt_scaling import sqrt_scaling

__all__ = ["geometric_batch_size", "linear_scaling", "sqrt_scaling"]
