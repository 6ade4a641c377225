"""What this library answers to the files of modern methods of norms: of updates, of weights, of attention logits."""

from collections.abc import Callable
from typing import Any

import optax

import gradkit as gk
from tests.golden.translate import direct, known


def _adamh(hyper: dict[str, Any]) -> optax.GradientTransformation:
    """A weight decay inside would only mix the weights into a direction; a file has none."""
    assert hyper.get("weight_decay", 0.0) == 0.0
    return gk.adamh(**known(hyper, "weight_decay"))


def _relative_update(hyper: dict[str, Any]) -> optax.GradientTransformation:
    return optax.chain(gk.relative_update(**known(hyper, "learning_rate")), gk.sgd(hyper["learning_rate"]))


def _qk_clip(hyper: dict[str, Any]) -> optax.GradientTransformation:
    return optax.chain(gk.sgd(hyper["learning_rate"]), gk.qk_clip(**known(hyper, "learning_rate")))


def _radius_control(hyper: dict[str, Any]) -> optax.GradientTransformation:
    """An output of a file is a unit here."""
    blocks = {"output": "unit", "tensor": "tensor"}
    own = known(hyper)
    return gk.radius_control(**{**own, "block": blocks[own.get("block", "tensor")]})


TRANSFORMATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "adago": direct(gk.adago),
    "adamh": _adamh,
    "aurora": direct(gk.aurora),
    "muonh": direct(gk.muonh),
    "muown": direct(gk.muown),
    "namo": direct(gk.namo),
    "newton_muon": direct(gk.newton_muon),
    "namo_d": direct(gk.namo_d),
    "qk_clip": _qk_clip,
    "radius_control": _radius_control,
    "relative_update": _relative_update,
    "scion": direct(gk.scion),
}
