"""Losses as pure functions of what a model gives."""

from gradkit.losses.flooding import (
    flooding,
)
from gradkit.losses.global_load_balance_loss import RouterCounts, global_load_balance_loss
from gradkit.losses.hessian_alignment import hgp_penalty, hutchinson_penalty
from gradkit.losses.memory_coherence import memory_coherence
from gradkit.losses.output_scaled_loss import output_scaled_loss
from gradkit.losses.ppo_decoupled_loss import (
    ppo_decoupled_kl_loss,
    ppo_decoupled_loss,
)
from gradkit.losses.sigmoid_contrastive import sigmoid_contrastive_loss
from gradkit.losses.spectral_decoupling import spectral_decoupling
from gradkit.losses.stablemax import (
    log_stablemax,
    stablemax_cross_entropy,
)

__all__ = [
    "RouterCounts",
    "flooding",
    "global_load_balance_loss",
    "hgp_penalty",
    "hutchinson_penalty",
    "log_stablemax",
    "memory_coherence",
    "output_scaled_loss",
    "ppo_decoupled_kl_loss",
    "ppo_decoupled_loss",
    "sigmoid_contrastive_loss",
    "spectral_decoupling",
    "stablemax_cross_entropy",
]
