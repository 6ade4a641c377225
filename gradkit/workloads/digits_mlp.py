"""Digits with a multilayer perceptron, at three batch sizes: the batch-size curve of a method.

64-256-256-10 with relu, cross-entropy. The metric is the loss on all 1,437 training images, so the race is
one of optimization alone; generalisation is judged by `digits_cnn`.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from gradkit.workloads.digits import load_digits
from gradkit.workloads.networks import MLP, apply, initializer, sample
from gradkit.workloads.workload import Workload


def digits_mlp(name: str, budget_steps: int, eval_every: int, *, batch_size: int | None) -> Workload:
    """The perceptron on digits.

    Args:
      name: its name in the registry.
      budget_steps: steps a run may take.
      eval_every: steps between two readings of the metric.
      batch_size: images per step; None for all of them, the same at every step.
    """
    data = load_digits()
    train = (data.train_images, data.train_labels)
    network = MLP((256, 256, 10))

    def batch(key: jax.Array) -> Any:
        return train if batch_size is None else sample(key, train, batch_size)

    def predictions(batch: Any) -> tuple[Callable[[Any], jax.Array], jax.Array]:
        images, labels = batch
        return lambda params: apply(network, params, images), labels

    def loss(params: Any, batch: Any) -> jax.Array:
        images, labels = batch
        logits = apply(network, params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return Workload(
        name=name,
        description=f"digits, MLP 64-256-256-10, {f'batch {batch_size}' if batch_size else 'full batch'}",
        init=initializer(network, data.train_images[:1], gain=2.0),
        batch=batch,
        loss=loss,
        metric=lambda params: loss(params, train),
        metric_name="training loss (nats)",
        target=0.01,
        budget_steps=budget_steps,
        eval_every=eval_every,
        separable=1.3,
        batch_size=batch_size or len(data.train_labels),
        predictions=predictions,
    )
