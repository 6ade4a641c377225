"""EasyDeL: `TrainingArguments(optimizer="gradkit_muon", extra_optimizer_kwargs={"scale": "match_rms_adamw"})`.

Plugs into `register_optimizer(name)` of eformer (`eformer/optimizers/_base.py`), from which EasyDeL makes its
optimizers: `OptimizerFactory.create` (`eformer/optimizers/_factory.py`) finds the builder by its name, makes its
`config` (the class that annotates the field, without arguments), sets the fields it is given values of, and calls
`build(scheduler)`. Clipping, weight decay and gradient accumulation are put around it by the factory, so nothing decays
here; `extra_optimizer_kwargs={"weight_decay_mask": gk.leaves.no_decay()}` spares biases and scales. The factory drops
without a word what the method has no argument for. Import this file before the trainer is made.

EasyDeL shards by regular expressions on the paths of parameters and state. The state of every method stands under the
names of its parameters, so the rules of the model find it.
"""

import dataclasses
import inspect
from typing import Any

from eformer.optimizers import OptimizerBuilder, register_optimizer

import gradkit as gk

OF_THE_FACTORY = ("learning_rate", "weight_decay", "weight_decay_mask")


def register(name, method):
    known = inspect.signature(method).parameters
    default = {
        key: None if p.default is p.empty else p.default for key, p in known.items() if key not in OF_THE_FACTORY
    }
    fields = [(key, Any, dataclasses.field(default=value)) for key, value in default.items()]
    config = dataclasses.make_dataclass(f"{name}_config", fields)
    still = {"weight_decay": 0.0} if "weight_decay" in known else {}

    def build(self, scheduler):
        return method(scheduler, **still, **vars(self.config))

    builder = dataclasses.make_dataclass(
        name, [("config", config)], bases=(OptimizerBuilder,), namespace={"build": build}
    )
    register_optimizer(f"gradkit_{name}")(builder)


for name, card in gk.catalogue.cards("optimizer").items():
    register(name, card.function)
