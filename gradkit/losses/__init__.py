"""Losses as pure functions of what a model gives."""

from gradkit.losses.flooding import (
    flooding,
)
from gradkit.losses.ppo_decoupled_loss import (
    ppo_decoupled_kl_loss,
    ppo_decoupled_loss,
)
from gradkit.losses.stablemax import (
    log_stablemax,
    stablemax_cross_entropy,
)

__all__ = [
    "flooding",
    "log_stablemax",
    "ppo_decoupled_kl_loss",
    "ppo_decoupled_loss",
    "stablemax_cross_entropy",
]
