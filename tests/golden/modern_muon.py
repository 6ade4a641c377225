"""What this library answers to the files of Muon's successors, and of those of Shampoo and SOAP."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import gradkit as gk
from tests.golden import extras, fixture
from tests.golden.translate import direct, known

# The leaf `stack` is two matrices.
STACKED = gk.leaves.layout((gk.leaves.by_path("stack"), {"stack": 1}))

TRANSFORMATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "adamuon": direct(gk.adamuon),
    "contra_muon": direct(gk.contra_muon),
    "polargrad": direct(gk.polargrad),
    "psgd_pro": lambda hyper: gk.psgd_pro(**known(hyper), layout=STACKED),
    "soap_muon": direct(gk.soap_muon),
    "splus": lambda hyper: gk.splus(**known(hyper), layout=STACKED),
    "kl_shampoo": lambda hyper: gk.kl_shampoo(**known(hyper), layout=STACKED),
    "kl_soap": lambda hyper: gk.kl_soap(**known(hyper), layout=STACKED),
    "dion2": direct(gk.dion2),
    "nordion2": direct(gk.nordion2),
    "normuon": direct(gk.normuon),
}


def _kl_bases(state: Any, reader: extras.Reader) -> Any:
    """The bases that the reference had after its first call, which are arbitrary in null spaces."""
    bases = {name.removeprefix("q1/"): reader.take(name) for name in reader.arrays if name.startswith("q1/")}

    def one(path: Any, x: jax.Array) -> jax.Array:
        keys = [str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in path]
        if "Q" not in keys:
            return x
        leaf, axis = keys[-2], ("in", "out")[int(keys[-1])]
        own = [bases[f"{leaf}/{axis}/{i}"] for i in range(2) if f"{leaf}/{axis}/{i}" in bases]
        return jnp.asarray(own).reshape(x.shape)

    return jax.tree_util.tree_map_with_path(one, state)


def _splus_mean(golden: fixture.Golden, state: Any, x: Any, before: Any) -> dict[str, Any]:
    """The mean of the parameters after the last step."""
    del golden, before
    return {"ema": gk.eval_params(state, x)}


MEASURED: dict[str, Callable[[fixture.Golden, Any, Any, Any], dict[str, Any]]] = {"splus": _splus_mean}
SECOND_STARTS: dict[str, Callable[[Any, extras.Reader], Any]] = dict.fromkeys(("kl_shampoo", "kl_soap"), _kl_bases)
