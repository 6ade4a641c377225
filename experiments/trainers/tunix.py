"""Tunix, and every trainer with `nnx.Optimizer(model, tx, wrt=nnx.Param)`.

In Python, plugs into `PeftTrainer(model, optimizer, training_config)` of `tunix/sft/peft_trainer.py`, which makes
`nnx.Optimizer(model, optimizer, wrt=nnx.Param)`, or `wrt=nnx.LoRAParam` where the model has adapters, and logs the rate
of `optax.inject_hyperparams`:

    PeftTrainer(model, optimizer("muon", learning_rate=schedule, scale="match_rms_adamw", ns_steps=5), training_config)

In a configuration, plugs into `create_optimizer` of `tunix/cli/config.py`, which looks up `opt_type` in optax, hands it
the keys of the configuration that its signature has, and puts `optax.inject_hyperparams` around it. After
`add_to_optax()`:

    optimizer_config: {opt_type: "gradkit_muon", learning_rate: 0.001, scale: "match_rms_adamw"}

Numbers that decide the program (`ns_steps`) stay what they are under `optax.inject_hyperparams`.
"""

import optax

import gradkit as gk


def optimizer(method, **arguments):
    return gk.inject_hyperparams(getattr(gk, method))(**arguments)


def add_to_optax():
    for name, card in gk.catalogue.cards("optimizer").items():
        setattr(optax, f"gradkit_{name}", card.function)
