"""Six tasks on one narrow trunk, of different kinds and sizes: they share twelve numbers per image, and conflict."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from gradkit.workloads.digits import load_digits
from gradkit.workloads.networks import MLP, initializer, sample
from gradkit.workloads.workload import Workload

# The sizes of the losses, as tasks come with theirs: two are loud, and two are quiet.
SCALES = (1.0, 10.0, 0.1, 1.0, 30.0, 0.3)
TASKS = ("digit", "parity", "at least five", "remainder by three", "image", "mirrored digit")


class SixHeads(nn.Module):
    """A trunk 64-24-12, and a linear head for each task; the last sees the mirrored image through the same trunk."""

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        trunk = MLP((24, 12), activation=nn.tanh, name="trunk")
        mirrored = images.reshape(-1, 8, 8)[:, :, ::-1].reshape(-1, 64)
        h, other = (jnp.tanh(trunk(x)) for x in (images, mirrored))
        return {
            "digit": nn.Dense(10, name="digit")(h),
            "parity": nn.Dense(1, name="parity")(h)[:, 0],
            "large": nn.Dense(1, name="large")(h)[:, 0],
            "third": nn.Dense(3, name="third")(h),
            "image": nn.Dense(64, name="image")(h),
            "mirrored": nn.Dense(10, name="mirrored")(other),
        }


def six_losses(out: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean loss of every task, unscaled."""
    classes = optax.softmax_cross_entropy_with_integer_labels
    yes = optax.sigmoid_binary_cross_entropy
    return jnp.stack(
        [
            classes(out["digit"], labels).mean(),
            yes(out["parity"], (labels % 2).astype(jnp.float32)).mean(),
            yes(out["large"], (labels >= 5).astype(jnp.float32)).mean(),
            classes(out["third"], labels % 3).mean(),
            jnp.square(out["image"] - images).mean(),
            classes(out["mirrored"], labels).mean(),
        ]
    )


def constant_losses(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The losses of the best constant prediction of each task: entropies, and the variance of the pixels."""

    def entropy(classes: np.ndarray) -> float:
        p = np.bincount(classes) / len(classes)
        return float(-np.sum(p * np.log(p)))

    variance = float(np.mean(np.var(images, axis=0)))
    parts = (labels, labels % 2, (labels >= 5).astype(np.int32), labels % 3)
    return np.array([*map(entropy, parts), variance, entropy(labels)], np.float32)


def multitask_six(*, batch_size: int = 256) -> Workload:
    """Six tasks; metric: the worst of the six losses over all training images, each relative to that of the best
    constant prediction."""
    data = load_digits()
    train = (data.train_images, data.train_labels)
    network = SixHeads()
    scales = jnp.asarray(SCALES, jnp.float32)
    trivial = jnp.asarray(constant_losses(*map(np.asarray, train)))

    def losses(params: Any, batch: Any) -> jax.Array:
        images, labels = batch
        return scales * six_losses(network.apply({"params": params}, images), images, labels)

    return Workload(
        name="multitask_six",
        description=f"six conflicting tasks on one trunk 64-24-12, batch {batch_size}",
        init=initializer(network, data.train_images[:1], gain=1.0),
        batch=lambda key: sample(key, train, batch_size),
        loss=lambda params, batch: losses(params, batch).sum(),
        metric=lambda params: jnp.max(losses(params, train) / (scales * trivial)),
        metric_name="worst of the six relative losses",
        target=0.3,
        budget_steps=1500,
        eval_every=10,
        separable=1.5,
        losses=losses,
        batch_size=batch_size,
    )
