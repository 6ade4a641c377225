"""big_vision: `config.optax_name = "gradkit.muon"`, `config.optax = dict(adam_learning_rate=0.015)`.

Plugs into `make(config, params, sched_kw=...)` of `big_vision/optax.py`, which looks up
`operator.attrgetter(config.optax_name)(optax)` and calls it with `config.optax`. What it gets must be a direction: rate
(`config.lr`), schedule, decay (`config.wd`) and the sign come behind it. So every optimizer of gradkit is put there at
the rate 1 (a rate in `config.optax` is a factor of `config.lr`), its sign taken back and with no decay of its own, as
`optax.gradkit.NAME`; a primitive, such as `optax.gradkit.scale_by_lion`, is a direction already. Import this file
before `make` is called.
"""

import inspect
import types

import optax

import gradkit as gk


def direction(optimizer):
    still = {"weight_decay": 0.0} if "weight_decay" in inspect.signature(optimizer).parameters else {}

    def make(**arguments):
        return optax.chain(optimizer(**{"learning_rate": 1.0} | still | arguments), optax.scale(-1.0))

    return make


METHODS = {name: direction(card.function) for name, card in gk.catalogue.cards("optimizer").items()}
METHODS |= {name: card.function for name, card in gk.catalogue.cards("primitive").items()}
optax.gradkit = types.SimpleNamespace(**METHODS)
