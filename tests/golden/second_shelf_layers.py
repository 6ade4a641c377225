"""What this library answers to files of arrays about losses, selections, layers and maps between models."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import gradkit as gk
from gradkit.losses.sigmoid_contrastive import pair_losses

Arrays = dict[str, Any]


def _sigmoid(hyper: dict[str, Any], arrays: Arrays) -> Arrays:
    """The loss of a device is the sum over its images, divided by their number."""
    names = ("image", "text", "log_temperature", "bias")
    given = [jnp.asarray(arrays[name]) for name in names]
    loss, grads = jax.jit(jax.value_and_grad(gk.losses.sigmoid_contrastive_loss, (0, 1, 2, 3)))(*given)
    image, text, t, b = given
    devices = hyper["devices"]

    def own(image: jax.Array, text: jax.Array) -> jax.Array:
        def block(s: Any, text: Any, own: bool) -> jax.Array:
            return pair_losses(s[0], text, s[1], s[2], own, None)

        return gk.parallel.ring_reduce(block, (image, t, b), text, axis_name="i") / len(image)

    shards = [x.reshape(devices, -1, x.shape[1]) for x in (image, text)]
    found = jax.jit(jax.vmap(own, axis_name="i"))(*shards)
    return {"loss": loss, "device_loss": found, **{f"grad_{n}": g for n, g in zip(names, grads, strict=True)}}


def _min_snr(hyper: dict[str, Any], arrays: Arrays) -> Arrays:
    """The reference has a weight of 1 wherever there is no signal."""
    snr = jnp.asarray(arrays["alphas_cumprod"]) / (1 - jnp.asarray(arrays["alphas_cumprod"]))
    kinds = {name: {"prediction": name, "zero_terminal": "one"} for name in ("epsilon", "v", "x0")}
    return {"snr": snr, **{name: gk.batches.min_snr_weights(snr, **hyper, **own) for name, own in kinds.items()}}


def _k_centre(hyper: dict[str, Any], arrays: Arrays) -> Arrays:
    """The reference takes row 0 where there is none to begin with."""
    first, budget = arrays["initial"], hyper["budget"]
    start = [] if len(first) else [0]
    found = gk.batches.k_centre_greedy(arrays["features"], first if len(first) else [0], budget - len(start))
    return {"selected": jnp.asarray([*start, *found.indices.tolist()]), "radius": found.radius}


def _ternary(hyper: dict[str, Any], arrays: Arrays) -> Arrays:
    """Both measures; the divisor of the weights, their codes, and the gradients for the cotangent of the output."""
    x, w, c = (jnp.asarray(arrays[name]) for name in ("input", "kernel", "cotangent"))
    out = {}
    for measure in ("mean", "median"):
        own = {"measure": measure, "eps": hyper["eps"], "straight_through": hyper["straight_through"]}
        layer = partial(gk.layers.ternary_linear, activation_bits=hyper["activation_bits"], **own)
        y, back = jax.vjp(layer, x, w)
        dx, dw = back(c)
        codes, scale = gk.layers.ternary_quantize(w, measure=measure, eps=hyper["eps"])
        found = {"output": y, "grad_input": dx, "grad_kernel": dw, "weight_scale": scale, "codes": codes}
        out |= {f"{measure}/{name}": value for name, value in found.items()}
    return out


def _coalesce(hyper: dict[str, Any], arrays: Arrays) -> Arrays:
    """The matrices are what becomes of unit matrices; kernels are (out, in), with 4 hidden units per unit."""
    room = gk.leaves
    groups, layers = (tuple(map(tuple, hyper[name])) for name in ("width_groups", "depth_groups"))
    width, depth = room.Merge(groups, hyper["head_size"]), room.Merge(layers)

    def down(x: Any, *axes: Any) -> Any:
        return room.coalesce({"x": jnp.asarray(x)}, {"x": dict(enumerate(axes))})["x"]

    def up(x: Any, *axes: Any) -> Any:
        return room.decoalesce({"x": jnp.asarray(x)}, {"x": dict(enumerate(axes))})["x"]

    kernel = (width, width._replace(input_side=True))
    hidden = width._replace(block=len(arrays["F_mlp"][0]) // len(arrays["F"][0]) * hyper["head_size"])
    small = down(arrays["linear"], *kernel)
    return {
        "F": down(jnp.eye(hyper["width"]), width),
        "F_mlp": down(jnp.eye(len(arrays["F_mlp"][0])), hidden),
        "T": up(jnp.eye(len(arrays["F"])), width),
        "R": down(jnp.eye(sum(map(len, layers))), depth),
        "G": up(jnp.eye(len(layers)), depth),
        "linear_small": small,
        "linear_back": up(small, *kernel),
        "bias_small": down(arrays["bias"], width),
    }


FUNCTIONS = {
    "coalesce": _coalesce,
    "k_centre_greedy": _k_centre,
    "min_snr_weights": _min_snr,
    "sigmoid_contrastive_loss": _sigmoid,
    "ternary_linear": _ternary,
}
