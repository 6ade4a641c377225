"""What this library answers to the files of modern adaptive methods."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.golden import fixture
from tests.golden.fixture import Golden
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


def _adafactor(golden: Golden) -> Any:
    """The last two axes are factored; the stacked leaf is one tensor, unless the notes of the file say otherwise."""
    axes = 1 if "layout stack=1" in golden.meta["notes"] else 0
    stacked = gk.leaves.layout((gk.leaves.by_path("stack"), {"stack": axes}), default=ARRAYS)
    return gk.adafactor(**known(golden.hyper()), layout=stacked)


def _adam_mini(hyper: dict[str, Any]) -> Any:
    """The matrices of the file are of an MLP, of an embedding in the code's order, and of a query of three heads."""
    heads = gk.leaves.layout((gk.leaves.by_path("wide"), {"splits": (3, 3, 3)}), default=ARRAYS)
    blocks = {"bias": "entry", "wide": "head"}
    return gk.adam_mini(**known(hyper), blocks=lambda path, axes: blocks.get(path, "unit"), layout=heads)


def _apollo(golden: Golden) -> Any:
    """The projections are those of the file: of each shape, of the first step that uses it."""
    own = {"update_proj_gap": "update_interval", "max_growth": "growth_limit"}
    hyper = {own.get(name, name): value for name, value in golden.hyper().items()}
    known_shapes, arrays = fixture.params(golden), golden.extra()
    every = hyper["update_interval"]

    def projection(number: Any, dims: tuple[int, int], rank: int) -> Any:
        (leaf,) = (name for name, x in known_shapes.items() if x.ndim == 2 and sorted(x.shape) == [*dims])
        rows = [arrays[f"projection_t{t + 1}/{leaf}"] for t in range(0, len(golden.steps), every)]
        made = [P if P.shape == (dims[0], rank) else P.T for P in rows]
        return jnp.asarray(np.stack(made))[number]

    return gk.apollo(**known(hyper), projection=projection)


def _leaf(name: str) -> tuple[str, str]:
    """A name of the file, `up.weight`, in our tree."""
    layer, _, own = name.rpartition(".")
    if own == "weight":
        own = "embedding" if "embed" in layer else "scale" if "norm" in layer else "kernel"
    return layer, own


def _mup(golden: Golden) -> dict[str, Any]:
    """Rates and decays of both optimizers, and factors of initial values drawn by fan-in."""
    hyper = golden.meta["hyper"]

    def tree(shapes: dict[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, shape in shapes.items():
            layer, own = _leaf(name)
            out.setdefault(layer, {})[own] = tuple(shape)
        return out

    got = {}
    for optimizer in ("adam", "sgd"):
        found = gk.mup_multipliers(
            tree(hyper["base_shapes"]), tree(hyper["shapes"]), optimizer=optimizer, form=hyper["form"]
        )
        for name in hyper["shapes"]:
            layer, own = _leaf(name)
            m = found[layer][own]
            got |= {f"{optimizer}_rate/{name}": m.rate, f"{optimizer}_decay/{name}": m.decay}
            got[f"init_scale/{name}"] = m.init
    return got


# method -> (file -> name of an array -> what this library answers)
ANSWERS: dict[str, Callable[[Golden], dict[str, Any]]] = {"mup_multipliers": _mup}

TRANSFORMATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "adam_mini": _adam_mini,
    "adan": direct(gk.adan),
    "adamw after adagc": _adagc,
    "adopt": _adopt,
    "adamw with cautious_weight_decay": _adamw_with(gk.cautious_weight_decay, "weight_decay", "weight_decay_mask"),
    "adamw with corrected_weight_decay": _adamw_with(
        gk.corrected_weight_decay, "weight_decay", "learning_rate", "peak_value", "weight_decay_mask", "corrected_mask"
    ),
    # The last two axes are factored; the stacked leaf is one tensor.
    "came": lambda hyper: gk.came(**known(hyper), layout=ARRAYS),
    "cautious_adamw": lambda hyper: gk.cautious_adamw(**known(hyper), layout=ARRAYS),
    "cautious_lion": lambda hyper: gk.cautious_lion(**known(hyper), layout=ARRAYS),
    "laprop": direct(gk.laprop),
    "skip_step": _skip_step,
    "spam": direct(gk.spam),
    # The arrays of the file are one tensor each.
    "stable_spam": lambda hyper: gk.stable_spam(**known(hyper), layout=ARRAYS),
    "stable_adamw": lambda hyper: gk.stable_adamw(**known(hyper), layout=ARRAYS),
    "zclip": _zclip,
}

# method -> transformation of a file that says more than its hyperparameters
OF_FILES: dict[str, Callable[[Golden], Any]] = {"adafactor": _adafactor, "apollo": _apollo}
