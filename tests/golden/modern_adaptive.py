"""What this library answers to the files of modern adaptive methods."""

from collections.abc import Callable
from typing import Any

import optax

import gradkit as gk
from tests.golden.translate import ARRAYS, direct, known


def _adopt(hyper: dict[str, Any]) -> Any:
    """The bound of a file is a power of the number of earlier steps, or null."""
    own = known(hyper)
    if "clip" in own:
        clip = own.pop("clip")
        assert clip is None or clip.startswith("t**")
        own["clip_exponent"] = None if clip is None else float(clip.removeprefix("t**"))
    return gk.adopt(**own)


def _adamw_with(link: Callable[..., Any], *names: str) -> Callable[[dict[str, Any]], Any]:
    """A file of AdamW with another decay."""

    def build(hyper: dict[str, Any]) -> Any:
        own = known(hyper, "warmup", "total", "peak")
        if "peak" in hyper:
            own["peak_value"] = hyper["peak"]
        rate, adam = own["learning_rate"], {name: own[name] for name in ("b1", "b2", "eps") if name in own}
        decay = link(**{name: own[name] for name in names if name in own})
        return optax.chain(gk.scale_by_adam(**adam), decay, gk.scale_by_learning_rate(rate))

    return build


def _adagc(hyper: dict[str, Any]) -> Any:
    names = ("beta", "relative", "max_norm", "warmup_steps")
    clip = gk.adagc(**{name: hyper[name] for name in names if name in hyper}, layout=ARRAYS)
    return optax.chain(clip, gk.adamw(**known(hyper, *names)))


def _zclip(hyper: dict[str, Any]) -> Any:
    return optax.chain(gk.zclip(**known(hyper, "learning_rate")), gk.sgd(hyper["learning_rate"]))


def _skip_step(hyper: dict[str, Any]) -> Any:
    names = {"interval": "window_size", "threshold": "threshold", "max_norm": "max_norm"}
    own = {ours: hyper[name] for name, ours in names.items() if name in hyper}
    assert hyper["base"] == "adam"
    return gk.skip_step(gk.adam(**known(hyper, "base", *names)), **own)


TRANSFORMATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "adan": direct(gk.adan),
    "adamw after adagc": _adagc,
    "adopt": _adopt,
    "adamw with cautious_weight_decay": _adamw_with(gk.cautious_weight_decay, "weight_decay", "weight_decay_mask"),
    "adamw with corrected_weight_decay": _adamw_with(
        gk.corrected_weight_decay, "weight_decay", "learning_rate", "peak_value", "weight_decay_mask", "corrected_mask"
    ),
    "cautious_adamw": lambda hyper: gk.cautious_adamw(**known(hyper), layout=ARRAYS),
    "cautious_lion": lambda hyper: gk.cautious_lion(**known(hyper), layout=ARRAYS),
    "laprop": direct(gk.laprop),
    "skip_step": _skip_step,
    "spam": direct(gk.spam),
    # The arrays of the file are one tensor each.
    "stable_adamw": lambda hyper: gk.stable_adamw(**known(hyper), layout=ARRAYS),
    "zclip": _zclip,
}
