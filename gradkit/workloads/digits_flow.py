"""A generative model of digits, trained by flow matching: a regression whose targets are mostly noise.

x_t = (1 - t) n + t x,     n ~ N(0, I),  t uniform on [0, 1],  x an image in [-1, 1]^64
min over v of  E mean_j (v(x_t, t) - (x - n))_j^2
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gradkit.workloads.digits import load_digits
from gradkit.workloads.networks import MLP, apply, initializer, sample
from gradkit.workloads.workload import Workload

WIDTHS = (256, 256, 64)
FREQUENCIES = 4
HELD_OUT_DRAWS = 4


def flow_inputs(images: jax.Array, noise: jax.Array, time: jax.Array) -> jax.Array:
    """What the network sees: the point x_t between noise and image, and t as cosines and sines, (n, 64 + 8)."""
    t = time[:, None]
    angles = jnp.pi * t * jnp.arange(1, FREQUENCIES + 1, dtype=jnp.float32)[None]
    return jnp.concatenate([(1 - t) * noise + t * images, jnp.cos(angles), jnp.sin(angles)], 1)


def _held_out(images: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Every held-out image with several draws of noise, at times that are spread evenly over [0, 1]."""
    random = np.random.default_rng(0)
    images = np.tile(images, (HELD_OUT_DRAWS, 1))
    time = random.permutation((np.arange(len(images)) + 0.5) / len(images))
    noise = random.standard_normal(images.shape)
    return jnp.asarray(images, jnp.float32), jnp.asarray(noise, jnp.float32), jnp.asarray(time, jnp.float32)


def digits_flow(*, batch_size: int = 128) -> Workload:
    """The velocity field, an MLP 72-256-256-64 with gelu; metric: its error on held-out images, at fixed draws of noise
    and time. A minibatch holds its noise and its times, so that its loss is a function of the parameters."""
    data = load_digits()
    images, held_out = 2 * data.train_images - 1, _held_out(2 * np.asarray(data.test_images) - 1)
    network = MLP(WIDTHS, nn.gelu)

    def batch(key: jax.Array) -> Any:
        for_noise, for_time = jax.random.split(jax.random.fold_in(key, 1))
        noise = jax.random.normal(for_noise, (batch_size, images.shape[1]), jnp.float32)
        return sample(key, images, batch_size), noise, jax.random.uniform(for_time, (batch_size,), jnp.float32)

    def loss(params: Any, batch: Any) -> jax.Array:
        return jnp.mean((apply(network, params, flow_inputs(*batch)) - (batch[0] - batch[1])) ** 2)

    def predictions(batch: Any) -> tuple[Callable[[Any], jax.Array], jax.Array]:
        return lambda params: apply(network, params, flow_inputs(*batch)), batch[0] - batch[1]

    return Workload(
        name="digits_flow",
        description=f"digits, flow matching with an MLP 72-256-256-64, batch {batch_size}",
        init=initializer(network, flow_inputs(*held_out)[:1], gain=2.0),
        batch=batch,
        loss=loss,
        metric=lambda params: loss(params, held_out),
        metric_name="held-out squared error per pixel",
        target=0.7,
        budget_steps=400,
        eval_every=10,
        separable=1.3,
        batch_size=batch_size,
        predictions=predictions,
    )
