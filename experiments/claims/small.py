"""Small problems that several claims use."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from gradkit.workloads import Workload
from gradkit.workloads.digits import load_digits
from gradkit.workloads.networks import MLP, apply, initializer


def digits(
    *,
    widths: Sequence[int] = (128, 128),
    batch_size: int | None = 64,
    examples: int | None = None,
    label_noise: float = 0.0,
    judged: str = "training loss",
    network: Any = None,
    gain: float = 2.0,
) -> Workload:
    """A perceptron on handwritten digits.

    Args:
      widths: of the hidden layers.
      batch_size: images per step, drawn with replacement; None for all of them.
      examples: how many training images there are. Default all, 1437.
      label_noise: share of the training labels that are drawn anew at random, the same for every seed.
      judged: "training loss", "test loss" or "test error".
      network: another network than the perceptron.
      gain: of the initial kernels.
    """
    data = load_digits()
    count = len(data.train_labels) if examples is None else examples
    random = np.random.default_rng(0)
    labels = np.array(data.train_labels[:count])
    wrong = random.random(count) < label_noise
    labels[wrong] = random.integers(0, 10, int(wrong.sum()))
    train = (data.train_images[:count], jnp.asarray(labels))
    test = (data.test_images, data.test_labels)
    model = MLP((*widths, 10)) if network is None else network

    def loss(params: Any, batch: Any) -> jax.Array:
        images, labels = batch
        return optax.softmax_cross_entropy_with_integer_labels(apply(model, params, images), labels).mean()

    def error(params: Any) -> jax.Array:
        logits = apply(model, params, test[0])
        wrong = (logits.argmax(-1).astype(jnp.int32) != test[1]).mean(dtype=jnp.float32)
        return jnp.where(jnp.isfinite(logits).all(), wrong, jnp.float32(jnp.nan))

    metrics: dict[str, Callable[[Any], jax.Array]] = {
        "training loss": lambda params: loss(params, train),
        "test loss": lambda params: loss(params, test),
        "test error": error,
    }
    return gk.workloads.problem(
        initializer(model, train[0][:1], gain=gain),
        loss,
        train,
        metrics[judged],
        0.0,
        batch_size=batch_size,
        metric_name=judged,
        name="digits",
    )


def linear(rate: Any, steps: int, warmup: int = 0) -> Callable[[jax.Array], jax.Array]:
    """A linear warm-up over so many steps, then a linear decay to 0; the rate may be traced."""

    def at(count: jax.Array) -> jax.Array:
        t = count.astype(jnp.float32)
        down = (steps - t) / (steps - warmup)
        return rate * jnp.clip(jnp.minimum((t + 1) / warmup, down) if warmup else down, 0.0, 1.0)

    return at


def cosine(rate: Any, steps: int) -> Callable[[jax.Array], jax.Array]:
    """A cosine to 0; the rate may be traced."""
    return lambda count: rate * (0.5 + 0.5 * jnp.cos(jnp.pi * count.astype(jnp.float32) / steps))


# loss -> fn(params, batch) -> (value, gradient), as `jax.value_and_grad`
Source = Callable[[Callable[..., jax.Array]], Callable[..., tuple[jax.Array, Any]]]


def looped(
    problem: Workload, build: Callable[..., tuple[optax.GradientTransformation, Source]], steps: int, evaluations: int
) -> Callable[[dict[str, np.ndarray], Sequence[int]], tuple[np.ndarray, np.ndarray]]:
    """Training with a source of gradients that depends on the hyperparameters, for `protocol.tuned`.

    Args:
      problem: what is trained on.
      build: (**hyperparameters, traced) -> (transformation, source).
      steps: of a run.
      evaluations: readings of the metric.
    """
    every = steps // evaluations

    def one(point: dict[str, jax.Array], seed: jax.Array) -> jax.Array:
        start, key = jax.random.split(jax.random.key(seed))
        tx, source = build(**point)
        gradient = source(problem.loss)
        params = problem.init(start)

        def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
            params, state = carry
            _, grads = gradient(params, problem.batch(jax.random.fold_in(key, t)))
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        def evaluation(carry: Any, t: jax.Array) -> tuple[Any, jax.Array]:
            carry, _ = jax.lax.scan(step, carry, t * every + jnp.arange(every))
            return carry, problem.metric(carry[0])

        return jax.lax.scan(evaluation, (params, tx.init(params)), jnp.arange(evaluations))[1]

    program = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))

    def train(grid: dict[str, np.ndarray], seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        points = {name: jnp.asarray(column, jnp.float32) for name, column in grid.items()}
        curves = program(points, jnp.asarray(list(seeds), jnp.uint32))
        return every * np.arange(1, evaluations + 1), np.asarray(curves)

    return train
