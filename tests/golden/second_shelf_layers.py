"""What this library answers to files of arrays about losses, selections, layers and maps between models."""

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
            return pair_losses(*s[:1], text, *s[1:], own, None)

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
    found = gk.batches.k_centre_greedy(arrays["features"], arrays["initial"], hyper["budget"])
    return {"selected": found.indices, "radius": found.radius}


FUNCTIONS = {
    "k_centre_greedy": _k_centre,
    "min_snr_weights": _min_snr,
    "sigmoid_contrastive_loss": _sigmoid,
}
