"""Levanter: `optimizer: {type: gradkit, method: lamb, arguments: {b2: 0.98}}` in a configuration.

Plugs into `OptimizerConfig.register_subclass(name)` of `levanter/optim/config.py`; the trainer then calls
`build(num_train_steps)`, and reads the rate it logs from `state.hyperparams` of `optax.inject_hyperparams`. Schedule,
warm-up and decay are the trainer's: `lr_scheduler` and `weight_decay` of the base class. Import this file before the
configuration is read.

Leaves are haliax's named arrays, whose axis names (`layers`, `heads`, `embed`) say what every axis is.
"""

import dataclasses
from dataclasses import dataclass

import optax
from levanter.optim.config import OptimizerConfig

import gradkit as gk


@OptimizerConfig.register_subclass("gradkit")
@dataclass(frozen=True)
class GradkitConfig(OptimizerConfig):
    """Any optimizer of gradkit that takes `learning_rate`, `weight_decay` and `weight_decay_mask`."""

    method: str = "muon"
    arguments: dict = dataclasses.field(default_factory=dict)
    max_grad_norm: float | None = 1.0

    def build(self, num_train_steps):
        decay = {"weight_decay": self.weight_decay, "weight_decay_mask": gk.leaves.no_decay()}

        def optimizer(learning_rate):
            clip = [gk.clip_by_global_norm(self.max_grad_norm)] if self.max_grad_norm else []
            return optax.chain(*clip, getattr(gk, self.method)(learning_rate, **decay, **self.arguments))

        return optax.inject_hyperparams(optimizer)(learning_rate=self.lr_scheduler(num_train_steps))
