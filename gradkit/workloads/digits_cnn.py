"""Digits with a small convolutional network, judged on images it has not seen. Slow on a CPU."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from gradkit.workloads.digits import load_digits
from gradkit.workloads.networks import apply, initializer, sample
from gradkit.workloads.workload import Workload


class CNN(nn.Module):
    """Two 3 x 3 convolutions (16 and 32 channels), each with relu and 2 x 2 pooling, and a linear head."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.reshape(-1, 8, 8, 1)
        for channels in (16, 32):
            x = nn.relu(nn.Conv(channels, (3, 3))(x))
            n, height, width, _ = x.shape
            # Windows do not overlap, so pooling is a reshape; its gradient is far cheaper than max_pool's.
            x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


def digits_cnn(*, batch_size: int = 256) -> Workload:
    """The convolutional network on digits; metric: share of test images named wrongly."""
    data = load_digits()
    train = (data.train_images, data.train_labels)
    network = CNN()

    def predictions(batch: Any) -> tuple[Callable[[Any], jax.Array], jax.Array]:
        images, labels = batch
        return lambda params: apply(network, params, images), labels

    def loss(params: Any, batch: Any) -> jax.Array:
        images, labels = batch
        logits = apply(network, params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def metric(params: Any) -> jax.Array:
        logits = apply(network, params, data.test_images)
        # A network that holds NaN names some class all the same; it must not be judged on that.
        wrong = (logits.argmax(-1).astype(jnp.int32) != data.test_labels).mean(dtype=jnp.float32)
        return jnp.where(jnp.isfinite(logits).all(), wrong, jnp.float32(jnp.nan))

    return Workload(
        name="digits_cnn",
        description=f"digits, CNN 16-32 with 3 x 3 kernels, batch {batch_size}",
        init=initializer(network, data.train_images[:1], gain=2.0),
        batch=lambda key: sample(key, train, batch_size),
        loss=loss,
        metric=metric,
        metric_name="test error",
        target=0.02,
        budget_steps=200,
        eval_every=10,
        separable=1.3,
        batch_size=batch_size,
        predictions=predictions,
    )
