"""Two tasks on one small trunk: which digit, and whether it is even, the second ten times as loud."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from gradkit.workloads.digits import load_digits
from gradkit.workloads.networks import MLP, initializer, sample
from gradkit.workloads.workload import Workload

SCALES = (1.0, 10.0)


class TwoHeads(nn.Module):
    """A trunk 64-32-16, and a linear head for each task."""

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = nn.relu(MLP((32, 16), name="trunk")(images))
        return nn.Dense(10, name="digit")(h), nn.Dense(1, name="parity")(h)[:, 0]


def multitask(*, batch_size: int = 256) -> Workload:
    """Both tasks; metric: the worse of the two unscaled losses over all training images."""
    data = load_digits()
    train = (data.train_images, data.train_labels)
    network = TwoHeads()

    def losses(params: Any, batch: Any) -> jax.Array:
        images, labels = batch
        digit, parity = network.apply({"params": params}, images)
        first = optax.softmax_cross_entropy_with_integer_labels(digit, labels).mean()
        second = optax.sigmoid_binary_cross_entropy(parity, (labels % 2).astype(jnp.float32)).mean()
        return jnp.stack([SCALES[0] * first, SCALES[1] * second])

    return Workload(
        name="multitask",
        description=f"digits and their parity on one trunk 64-32-16, batch {batch_size}",
        init=initializer(network, data.train_images[:1], gain=2.0),
        batch=lambda key: sample(key, train, batch_size),
        loss=lambda params, batch: losses(params, batch).sum(),
        metric=lambda params: jnp.max(losses(params, train) / jnp.asarray(SCALES, jnp.float32)),
        metric_name="worse of the two losses (nats)",
        target=0.02,
        budget_steps=1500,
        eval_every=10,
        separable=2.0,
        losses=losses,
        batch_size=batch_size,
    )
