"""Deep autoencoders of digits: badly conditioned, with much room for better methods."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit.workloads.digits import load_digits
from gradkit.workloads.networks import MLP, apply, initializer, sample
from gradkit.workloads.workload import Workload


def _autoencoder(
    name: str,
    kind: str,
    widths: tuple[int, ...],
    activation: Callable[[jax.Array], jax.Array],
    target: float,
    budget_steps: int,
    batch_size: int,
) -> Workload:
    """Metric: squared error per image over all training images."""
    images = load_digits().train_images
    network = MLP(widths, activation)

    def predictions(images: jax.Array) -> tuple[Callable[[Any], jax.Array], jax.Array]:
        return lambda params: apply(network, params, images), images

    def loss(params: Any, images: jax.Array) -> jax.Array:
        return jnp.sum((apply(network, params, images) - images) ** 2, -1).mean()

    layers = "-".join(map(str, (images.shape[1], *widths)))
    return Workload(
        name=name,
        description=f"digits, {kind} autoencoder {layers}, batch {batch_size}",
        init=initializer(network, images[:1], gain=1.0),
        batch=lambda key: sample(key, images, batch_size),
        loss=loss,
        metric=lambda params: loss(params, images),
        metric_name="squared error per image",
        target=target,
        budget_steps=budget_steps,
        eval_every=25,
        separable=1.3,
        batch_size=batch_size,
        predictions=predictions,
    )


def autoencoder(*, batch_size: int = 256) -> Workload:
    """64-128-64-32-8-32-64-128-64 with tanh."""
    return _autoencoder("autoencoder", "tanh", (128, 64, 32, 8, 32, 64, 128, 64), jnp.tanh, 1.0, 800, batch_size)


def linear_autoencoder(*, batch_size: int = 256) -> Workload:
    """64-64-32-8-32-64-64 without activations: the least error is known, 1.52, that of the first eight principal
    components, and all of the difficulty is in the condition."""
    return _autoencoder("linear_autoencoder", "linear", (64, 32, 8, 32, 64, 64), lambda x: x, 1.55, 800, batch_size)
