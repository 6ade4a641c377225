"""From the words of a golden file of an aggregator to the aggregator of this library."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

import gradkit as gk
from tests.golden.translate import known

Build = Callable[[dict[str, Any], dict[str, Any]], Any]


def named(factory: Callable[..., Any]) -> Build:
    """Hyperparameters under their names here."""
    return lambda hyper, arrays: factory(**hyper)


def _graddrop(hyper: dict[str, Any], arrays: dict[str, Any]) -> Any:
    """The uniform numbers of the file, as the two leaves that a Jacobian is split into."""
    u = jnp.asarray(arrays["uniform"])
    half = min(5, len(u))
    return gk.aggregation.graddrop(uniform={"a": u[:half], "b": u[half:, None]}, **hyper)


# method -> (hyper of a case, its other arrays -> aggregator)
AGGREGATORS: dict[str, Build] = {
    "aligned_mtl": named(gk.aggregation.aligned_mtl),
    "aligned_mtl_median": named(gk.aggregation.aligned_mtl),
    "cagrad": named(gk.aggregation.cagrad),
    "config": named(gk.aggregation.config),
    "dualproj": named(gk.aggregation.dualproj),
    "fairgrad": named(gk.aggregation.fairgrad),
    "graddrop": _graddrop,
    "imtl_g": named(gk.aggregation.imtl_g),
    # The reference adds up distances that are not squared.
    "krum": lambda hyper, arrays: gk.aggregation.krum(**{"squared": False, **known(hyper)}),
    "mgda": named(gk.aggregation.mgda),
    "pcgrad": lambda hyper, arrays: gk.aggregation.pcgrad(order=arrays.get("order"), **hyper),
    "trimmed_mean": named(gk.aggregation.trimmed_mean),
    "upgrad": named(gk.aggregation.upgrad),
}
