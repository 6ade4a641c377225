"""Levanter: `optimizer: {type: gradkit, method: lamb, arguments: {b2: 0.98}}` in a configuration.

Plugs into `OptimizerConfig.register_subclass(name)` of `levanter/optim/config.py`; the trainer then calls
`build(num_train_steps)`, and reads the rate it logs from `state.hyperparams` of `optax.inject_hyperparams`. Schedule,
warm-up and decay are the trainer's: `lr_scheduler`, `weight_decay`, `weight_decay_modules` of the base class. Import
this file before the configuration is read.

Leaves are haliax's named arrays, whose axis names (`layers`, `heads`, `embed`) say what every axis is. Every update is
given `loss` and `obj_fn`, parameters -> loss (`take_train_step` of `levanter/trainer_state.py`): `with_arguments` makes
of them what line searches, Polyak steps and methods with curvature ask for.
"""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import optax
from levanter.optim.config import OptimizerConfig

import gradkit as gk


def with_arguments(tx):
    def update(updates, state, params=None, *, loss=None, obj_fn=None, **extra):
        if obj_fn is not None:
            gradient = jax.grad(obj_fn)
            extra |= {"value_fn": obj_fn, "grad_fn": gradient}
            extra["hvp_fn"] = lambda vector: jax.jvp(gradient, (params,), (vector,))[1]
        return tx.update(updates, state, params, **extra, **({} if loss is None else {"value": loss}))

    return optax.GradientTransformationExtraArgs(tx.init, update)


@OptimizerConfig.register_subclass("gradkit")
@dataclasses.dataclass(frozen=True)
class GradkitConfig(OptimizerConfig):
    """Any optimizer of gradkit, with `arguments` of its own."""

    method: str = "adamw"
    arguments: dict = dataclasses.field(default_factory=dict)
    max_grad_norm: float | None = 1.0

    def build(self, num_train_steps):
        method = getattr(gk, self.method)
        decays = "weight_decay" in inspect.signature(method).parameters
        if self.weight_decay and not decays:
            given = f"weight_decay={self.weight_decay}"
            raise ValueError(
                f"gk.{self.method} has no weight decay, and the configuration {given}: write weight_decay: 0"
            )
        declared = self.weight_decay_modules is not None or self.default_weight_decay_mask is not None
        mask = self.build_weight_decay_mask() if declared else gk.leaves.no_decay()
        decay = {"weight_decay": self.weight_decay, "weight_decay_mask": mask} if decays else {}

        def optimizer(learning_rate):
            clip = [gk.clip_by_global_norm(self.max_grad_norm)] if self.max_grad_norm else []
            tx = method(learning_rate, **decay, **self.arguments)
            curved = "curvature" in gk.catalogue.find(self.method).needs
            return optax.chain(*clip, gk.with_curvature(tx, key=0) if curved else tx)

        injected = optax.inject_hyperparams(optimizer, hyperparam_dtype=jnp.float32)
        return with_arguments(injected(learning_rate=self.lr_scheduler(num_train_steps)))
