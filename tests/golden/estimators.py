"""What this library answers to files of arrays about estimators, selections and layers."""

from typing import Any

import jax
import jax.numpy as jnp

import gradkit as gk
from gradkit.layers.reinmax import of_sample
from tests.golden.translate import known

Arrays = dict[str, Any]


def _reinmax(hyper: dict[str, Any], arrays: Arrays) -> Arrays:
    given = {name: jnp.asarray(value) for name, value in arrays.items()}
    tau = jnp.asarray(known(hyper).get("tau", 1.0))
    (_, probs), back = jax.vjp(lambda x: of_sample(x, given["sample"], tau), given["logits"])
    (g,) = back((given["cotangent_sample"], given["cotangent_softmax"]))
    return {"softmax": probs, "output": g}


def _reste(hyper: dict[str, Any], arrays: Arrays) -> Arrays:
    forward, back = jax.vjp(lambda x: gk.layers.reste_sign(x, **known(hyper)), jnp.asarray(arrays["x"]))
    return {"forward": forward, "output": back(jnp.asarray(arrays["cotangent"]))[0]}


FUNCTIONS = {"reinmax": _reinmax, "reste": _reste}
