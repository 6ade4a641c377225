"""MaxText: `opt_type: "muon"` and `opt_type: "adamw"` are those of gradkit.

Plugs into `get_optimizer(config, learning_rate_schedule, model)` of `maxtext/optimizers/optimizers.py`, which
`create_training_optimizer` of `maxtext/utils/train_utils.py` looks up in its module whenever a run starts: import this
file before the trainer does. `config.opt_type` is checked against a list of names, so the two of them that are
matched here are taken over; any other method of gradkit is put in their place with one more entry of `METHODS`.

Parameters are scanned along axis 1 (`param_scan_axis`), in boxes with logical names where the state is made and
without them later. `muon_weight_dimension_numbers` is not needed: layers, experts and heads are read from the tree.
"""

from maxtext.optimizers import optimizers

import gradkit as gk

get_own_optimizer = optimizers.get_optimizer


def muon(config, learning_rate):
    return gk.muon(
        learning_rate,
        momentum=config.muon_beta,
        scale="match_rms_adamw" if config.muon_consistent_rms else "spectral",
        weight_decay=config.muon_weight_decay,
        weight_decay_mask=gk.leaves.no_decay(),
        adam_b1=config.adam_b1,
        adam_b2=config.adam_b2,
        adam_eps=config.adam_eps,
        adam_weight_decay=config.adam_weight_decay,
        mu_dtype=config.mu_dtype,
    )


def adamw(config, learning_rate):
    betas = {"b1": config.adam_b1, "b2": config.adam_b2, "eps": config.adam_eps, "eps_root": config.adam_eps_root}
    decay = {"weight_decay": config.adam_weight_decay, "weight_decay_mask": gk.leaves.no_decay()}
    return gk.adamw(learning_rate, **betas, **decay, mu_dtype=config.mu_dtype)


METHODS = {"muon": muon, "adamw": adamw}


def get_optimizer(config, learning_rate_schedule, model=None):
    if config.opt_type in METHODS:
        return METHODS[config.opt_type](config, learning_rate_schedule)
    return get_own_optimizer(config, learning_rate_schedule, model)


optimizers.get_optimizer = get_optimizer
