"""MaxText: `opt_type: "muon"` and `opt_type: "adamw"` are those of gradkit.

Plugs into `get_optimizer(config, learning_rate_schedule, model)` of `maxtext/optimizers/optimizers.py`, which the
trainers (`create_training_optimizer` of `maxtext/utils/train_utils.py`, SFT, DPO, distillation) look up in its module
whenever a run starts: import this file before the trainer does. `config.opt_type` is checked against a list of names,
so the two of them that are matched here are taken over; any other method of gradkit is put in their place with one
more function in `METHODS`.

Parameters are scanned along axis 1 (`param_scan_axis`), in boxes with logical names where the state is made and
without them later. `muon_weight_dimension_numbers` is not needed: layers, experts and heads are read from the tree.
Without `adamw_mask`, biases and scales do not decay.
"""

import optax
from maxtext.optimizers import optimizers

import gradkit as gk

get_own_optimizer = optimizers.get_optimizer
DEEPSEEK4 = [(3.4445, -4.7750, 2.0315)] * 8 + [(2.0, -1.5, 0.5)] * 2


def matching(patterns):
    return gk.leaves.by_path(".*(?:" + "|".join(patterns) + ").*")


def decay_mask(config):
    return ~matching(config.adamw_mask) if config.adamw_mask else gk.leaves.no_decay()


def muon(config, learning_rate):
    if config.adam_eps_root or config.muon_consistent_rms not in (None, 0.2):
        given = f"adam_eps_root={config.adam_eps_root}, muon_consistent_rms={config.muon_consistent_rms}"
        raise ValueError(f"gk.muon has adam_eps_root=0 and muon_consistent_rms=None or 0.2, got {given}: write these")
    deepseek4 = config.decoder_block == "deepseek4"
    return gk.muon(
        learning_rate,
        adam_learning_rate=learning_rate,
        momentum=config.muon_beta,
        scale="match_rms_adamw" if config.muon_consistent_rms else "spectral",
        coefficients=DEEPSEEK4 if deepseek4 else "muon",
        ns_steps=10 if deepseek4 else 5,
        weight_decay=config.muon_weight_decay,
        weight_decay_mask=decay_mask(config),
        adam_b1=config.adam_b1,
        adam_b2=config.adam_b2,
        adam_eps=config.adam_eps,
        adam_weight_decay=config.adam_weight_decay,
        mu_dtype=config.mu_dtype,
    )


def adamw(config, learning_rate):
    betas = {"b1": config.adam_b1, "b2": config.adam_b2, "eps": config.adam_eps, "eps_root": config.adam_eps_root}
    decay = {"weight_decay": config.adam_weight_decay, "weight_decay_mask": decay_mask(config)}
    return gk.adamw(learning_rate, **betas, **decay, mu_dtype=config.mu_dtype)


METHODS = {"muon": muon, "adamw": adamw}


def get_optimizer(config, learning_rate_schedule, model=None):
    if config.opt_type not in METHODS:
        return get_own_optimizer(config, learning_rate_schedule, model)
    tx = METHODS[config.opt_type](config, learning_rate_schedule)
    if config.skip_step_on_spikes:
        tx = optimizers.skip_step_on_spikes(tx, config.skip_step_interval, config.skip_step_scaling_factor)
    if config.trainable_parameters_mask:
        tx = gk.leaves.groups([(matching(config.trainable_parameters_mask), tx)], default=optax.set_to_zero())
    return tx


optimizers.get_optimizer = get_optimizer
