"""A deep tanh autoencoder of digits: badly conditioned, with much room for better methods."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit.workloads.digits import load_digits
from gradkit.workloads.networks import MLP, apply, initializer, sample
from gradkit.workloads.workload import Workload


def autoencoder(*, batch_size: int = 256) -> Workload:
    """64-128-64-32-8-32-64-128-64; metric: squared error per image over all training images."""
    images = load_digits().train_images
    network = MLP((128, 64, 32, 8, 32, 64, 128, 64), jnp.tanh)

    def loss(params: Any, images: jax.Array) -> jax.Array:
        return jnp.sum((apply(network, params, images) - images) ** 2, -1).mean()

    return Workload(
        name="autoencoder",
        description=f"digits, tanh autoencoder 64-128-64-32-8-32-64-128-64, batch {batch_size}",
        init=initializer(network, images[:1], gain=1.0),
        batch=lambda key: sample(key, images, batch_size),
        loss=loss,
        metric=lambda params: loss(params, images),
        metric_name="squared error per image",
        target=1.0,
        budget_steps=800,
        eval_every=25,
        separable=1.3,
        batch_size=batch_size,
    )
