"""EasyDeL: `TrainingArguments(optimizer="gradkit_muon", extra_optimizer_kwargs={"momentum": 0.9})`.

Plugs into `register_optimizer(name)` of eformer (`eformer/optimizers/_base.py`), from which EasyDeL makes its
optimizers: `OptimizerFactory.create` finds the builder by its name, makes its `config` (the class that annotates the
field, without arguments), sets the fields it is given values of, and calls `build(scheduler)`. Clipping, weight decay
and gradient accumulation are put around it by the factory, so nothing decays here. Import this file before
the trainer is made.

EasyDeL shards by regular expressions on the paths of parameters and state. The state of every method stands under the
names of its parameters, so the rules of the model find it.
"""

import dataclasses
from typing import Any

from eformer.optimizers import OptimizerBuilder, register_optimizer

import gradkit as gk


@dataclasses.dataclass
class MuonConfig:
    """What `extra_optimizer_kwargs` may name."""

    momentum: float = 0.95
    scale: str = "match_rms_adamw"
    ns_steps: int = 5
    mu_dtype: Any = None


@register_optimizer("gradkit_muon")
@dataclasses.dataclass
class Muon(OptimizerBuilder):
    """Any other method is registered the same way: a configuration with its arguments, and this class."""

    config: MuonConfig

    def build(self, scheduler):
        return gk.muon(scheduler, **dataclasses.asdict(self.config))
