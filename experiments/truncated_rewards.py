"""A diffusion model fine-tuned on a reward, with gradients through the last K of its 50 sampling steps (DRaFT-K).

    python experiments/truncated_rewards.py --out=experiments/results/truncated_rewards

A perceptron is trained to denoise handwritten digits, and sampled by DDIM in 50 steps. The reward of a sample is the
log probability that a classifier, trained apart, gives the digit 7. The weights of the denoiser are then trained with
Adam on the gradient of the mean reward, through `gk.gradients.truncated_backprop`, for K from 1 to all 50 steps; of
several rates every K has the one that makes 90% of the samples a 7 in the fewest updates.

The paper (2309.17400) claims that a few steps, K = 1 the cheapest, reach the reward of a full backward pass with less
memory and time. Recorded are the reward on 512 fixed samples against updates and seconds; seconds per update; and the
temporary bytes of the compiled gradient (`memory_analysis`), with every step of the sampler computed again in the
backward pass (`checkpoint`, as the paper does) and without. How far samples are from the digits is the distance to
the nearest training image of a 7. The claim holds here: all K need as many updates, and K = 1 about a third of the
seconds of K = 50, a quarter of its memory, and a hundredth where all activations are kept. Writes OUT.txt, OUT.png,
and OUT.jsonl with a line per reading.
"""

import json
import pathlib
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from absl import app, flags

import gradkit as gk
from gradkit.training.report import style
from gradkit.workloads.digits import load_digits
from gradkit.workloads.networks import MLP, apply, indices, initializer

FLAGS = flags.FLAGS
PIXELS, WIDTH, FREQUENCIES, WANTED = 64, 256, 8, 7
LEVEL = 0.9  # of the samples are the digit: the reward is reached


class Model(NamedTuple):
    """The start of the fine-tuning.

    Attributes:
      params: of the denoiser.
      sample: (params, noise (n, 64), K, checkpoint) -> images, in which gradients reach K steps.
      reward: images -> the log probability of the digit, per image.
    """

    params: Any
    sample: Callable[[Any, jax.Array, int, bool], jax.Array]
    reward: Callable[[jax.Array], jax.Array]


class Run(NamedTuple):
    """One fine-tuning: seconds per update, and per reading: updates made, mean reward, share of the digit, distance."""

    seconds: float
    readings: list[tuple[int, float, float, float]]


def trained(
    tx: optax.GradientTransformation, params: Any, loss: Callable[[Any, jax.Array], jax.Array], steps: int
) -> Any:
    """The parameters after so many steps, each with a key of its own."""

    def one(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, key), state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(2), steps)
    return jax.jit(lambda carry, keys: jax.lax.scan(one, carry, keys)[0][0])((params, tx.init(params)), keys)


def model() -> Model:
    """The denoiser, its sampler, and the classifier behind the reward."""
    data = load_digits()
    images = 2 * data.train_images - 1
    network = MLP((WIDTH, WIDTH, WIDTH, PIXELS), jax.nn.gelu)
    # The cosine schedule: alpha_t and sigma_t at t in [0, 1], alpha^2 + sigma^2 = 1.
    alpha, sigma = (lambda t: jnp.cos(0.5 * jnp.pi * t)), (lambda t: jnp.sin(0.5 * jnp.pi * t))

    def denoise(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        """The predicted image of noisy ones at times (n,)."""
        angles = jnp.pi * t[:, None] * 2.0 ** jnp.arange(FREQUENCIES)[None] / 4
        return apply(network, params, jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)], axis=1))

    def loss(params: Any, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 3)
        x0 = images[indices(keys[0], 128, len(images))]
        t = jax.random.uniform(keys[1], (128,), minval=0.01, maxval=0.99)
        noisy = alpha(t)[:, None] * x0 + sigma(t)[:, None] * jax.random.normal(keys[2], x0.shape)
        # The error of the velocity: that of the image over sigma squared, which trains all times alike.
        return jnp.mean(jnp.square(denoise(params, noisy, t) - x0) / jnp.square(sigma(t)[:, None]).clip(0.05))

    example = jnp.zeros((1, PIXELS + 2 * FREQUENCIES))
    tx = gk.adam(optax.cosine_decay_schedule(2e-3, FLAGS.pretraining))
    params = trained(tx, initializer(network, example, gain=2.0)(jax.random.key(0)), loss, FLAGS.pretraining)

    times = jnp.linspace(0.99, 0.0, FLAGS.sampling_steps + 1)
    pairs = jnp.stack([times[:-1], times[1:]], axis=1)

    def step(params: Any, x: jax.Array, pair: jax.Array) -> jax.Array:
        t, s = pair
        image = denoise(params, x, jnp.broadcast_to(t, x.shape[:1]))
        noise = (x - alpha(t) * image) / sigma(t)
        return alpha(s) * image + sigma(s) * noise

    def sample(params: Any, noise: jax.Array, keep_last: int, checkpoint: bool) -> jax.Array:
        return gk.gradients.truncated_backprop(step, params, noise, pairs, keep_last=keep_last, checkpoint=checkpoint)

    judge = MLP((WIDTH, 10), jax.nn.gelu)

    def cross_entropy(weights: Any, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 3)
        rows = indices(keys[0], 128, len(images))
        # With noise, so that the reward is smooth around the images.
        x = images[rows] + 0.5 * jax.random.uniform(keys[1], (128, 1)) * jax.random.normal(keys[2], (128, PIXELS))
        return optax.softmax_cross_entropy_with_integer_labels(apply(judge, weights, x), data.train_labels[rows]).mean()

    weights = initializer(judge, images[:1], gain=2.0)(jax.random.key(1))
    weights = trained(gk.adam(1e-3), weights, cross_entropy, 1500)
    found = apply(judge, weights, 2 * data.test_images - 1).argmax(-1).astype(jnp.int32)
    print(f"classifier: {float((found == data.test_labels).mean()):.3f} of test images", flush=True)
    return Model(params, sample, lambda x: jax.nn.log_softmax(apply(judge, weights, x))[:, WANTED])


def fine_tuned(start: Model, keep_last: int, rate: float, updates: int) -> Run:
    """Adam on minus the mean reward, through the last K steps, with fresh noise in every update."""
    data = load_digits()
    sevens = 2 * data.train_images[data.train_labels == WANTED] - 1
    fixed = jax.random.normal(jax.random.key(99), (512, PIXELS))
    tx = gk.adam(rate)

    @jax.jit
    def many(carry: Any, keys: jax.Array) -> Any:
        def one(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, state = carry
            noise = jax.random.normal(key, (FLAGS.batch, PIXELS))
            gradient = jax.grad(lambda p: -jnp.mean(start.reward(start.sample(p, noise, keep_last, True))))(params)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(one, carry, keys)[0]

    @jax.jit
    def read(params: Any) -> jax.Array:
        x = start.sample(params, fixed, 1, True)
        rewards = start.reward(x)
        square = jnp.sum(x**2, axis=1)[:, None] - 2 * x @ sevens.T + jnp.sum(sevens**2, axis=1)[None]
        distance = jnp.sqrt(jnp.maximum(square.min(axis=1), 0)).mean()
        return jnp.stack([rewards.mean(), (rewards > jnp.log(0.5)).mean(), distance])

    carry = (start.params, tx.init(start.params))
    every = max(1, updates // 50)
    jax.block_until_ready(many(carry, jax.random.split(jax.random.key(0), every)))  # compiled
    readings, seconds = [], 0.0
    for at in range(0, updates + 1, every):
        readings.append((at, *(float(x) for x in read(carry[0]))))
        if at < updates:
            begin = time.perf_counter()
            carry = jax.block_until_ready(many(carry, jax.random.split(jax.random.key(1000 + at), every)))
            seconds += time.perf_counter() - begin
    return Run(seconds / updates, readings)


def temporary(start: Model, keep_last: int, checkpoint: bool) -> int:
    """Temporary bytes of the compiled gradient."""
    noise = jax.ShapeDtypeStruct((FLAGS.batch, PIXELS), jnp.float32)
    gradient = jax.grad(lambda p, x: -jnp.mean(start.reward(start.sample(p, x, keep_last, checkpoint))))
    used: Any = jax.jit(gradient).lower(start.params, noise).compile().memory_analysis()
    return used.temp_size_in_bytes


def arrival(run: Run) -> tuple[float, float]:
    """The first reading with the share that is asked for: its updates, and how far samples are from the digits."""
    return next(((r[0], r[3]) for r in run.readings if r[2] >= LEVEL), (np.inf, np.nan))


def table(runs: dict[int, tuple[float, Run]], memory: dict[int, tuple[int, int]]) -> list[str]:
    first = next(iter(runs.values()))[1].readings[0]
    share = f"{LEVEL:.0%} of {WANTED}s"
    lines = [
        f"the start: reward {first[1]:.2f}, {first[2]:.1%} of the samples are a {WANTED}, distance {first[3]:.2f}",
        f"{'':<4}{'':>8}{'ms per':>9}{'--- to ' + share + ' ---':>28}{'--- at the end ---':>20}{'KiB, steps':>12}"
        f"{'KiB, all':>10}",
        f"{'K':<4}{'rate':>8}{'update':>9}{'updates':>9}{'seconds':>9}{'distance':>10}{'reward':>10}{'distance':>10}"
        f"{'again':>12}{'kept':>10}",
    ]
    for k, (rate, run) in runs.items():
        to, distance = arrival(run)
        none = f"{'-':>9}{'-':>9}{'-':>10}"
        reached = f"{to:>9.0f}{to * run.seconds:>9.2f}{distance:>10.2f}" if np.isfinite(to) else none
        again, kept = (x / 1024 for x in memory[k])
        end = run.readings[-1]
        lines.append(
            f"{k:<4}{rate:>8.1g}{1000 * run.seconds:>9.1f}{reached}{end[1]:>10.3f}{end[3]:>10.2f}"
            f"{again:>12.0f}{kept:>10.0f}"
        )
    return lines


def draw(runs: dict[int, tuple[float, Run]], memory: dict[int, tuple[int, int]], path: str) -> None:
    with matplotlib.rc_context(style.RC):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(14.5, 3.8), layout="constrained", facecolor=style.PAPER)
        panels = figure.subplots(1, 3, squeeze=False)[0]
        for i, (k, (_, run)) in enumerate(runs.items()):
            at = np.array([r[0] for r in run.readings])
            shares = [r[2] for r in run.readings]
            panels[0].plot(at, shares, color=style.colour(i), label=f"K = {k}")
            panels[1].plot(at * run.seconds, shares, color=style.colour(i), label=f"K = {k}")
        panels[0].set(xlabel="updates", ylabel=f"share of samples that are a {WANTED}", title="against updates")
        panels[1].set(xlabel="seconds", ylabel=f"share of samples that are a {WANTED}", title="against time")
        panels[1].legend(frameon=False)
        ks = list(memory)
        for i, name in enumerate(("steps computed again", "all activations kept")):
            panels[2].plot(ks, [memory[k][i] / 2**20 for k in ks], marker="o", color=style.colour(i), label=name)
        panels[2].set(xscale="log", yscale="log", xlabel="K", ylabel="MiB, temporary", title="memory of the gradient")
        panels[2].legend(frameon=False)
        figure.savefig(path, dpi=130)


def define_flags() -> None:
    """The flags of this script; a test that imports it has none of them."""
    flags.DEFINE_integer("pretraining", 6000, "steps of the denoiser", lower_bound=1)
    flags.DEFINE_integer("sampling_steps", 50, "of DDIM", lower_bound=2)
    flags.DEFINE_list("keep_last", ["1", "2", "5", "10", "25", "50"], "K")
    flags.DEFINE_list("rates", ["3e-5"], "of Adam, of which the best is taken for every K")
    flags.DEFINE_integer("updates", 60, "of a fine-tuning", lower_bound=1)
    flags.DEFINE_integer("batch", 32, "samples per update", lower_bound=1)
    flags.DEFINE_string("out", "truncated_rewards", "where table (.txt), figure (.png) and lines (.jsonl) go")


def main(argv: list[str]) -> None:
    """Fine-tunes with every K, and writes the table and the figure."""
    if argv[1:]:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    start, runs, memory = model(), {}, {}
    with pathlib.Path(f"{FLAGS.out}.jsonl").open("w") as lines:
        for k in map(int, FLAGS.keep_last):
            memory[k] = temporary(start, k, True), temporary(start, k, False)
            found = {rate: fine_tuned(start, k, rate, FLAGS.updates) for rate in map(float, FLAGS.rates)}
            print(k, {rate: [round(x, 3) for x in run.readings[-1][1:]] for rate, run in found.items()}, flush=True)
            best = min(found, key=lambda rate: (arrival(found[rate])[0], -found[rate].readings[-1][1]))
            runs[k] = best, found[best]
            for at, reward, share, distance in found[best].readings:
                row = {"K": k, "rate": best, "update": at, "seconds": at * found[best].seconds}
                row |= {"reward": reward, "share": share, "distance": distance}
                lines.write(json.dumps(row) + "\n")
            lines.flush()
    text = table(runs, memory)
    command = shlex.join(["python", "experiments/truncated_rewards.py", *sys.argv[1:]])
    words = sum(x.size for x in jax.tree.leaves(start.params))
    head = [
        f"$ {command}",
        f"denoiser of {words:,} parameters, {FLAGS.sampling_steps} steps of DDIM, {FLAGS.batch} samples per update, "
        f"{FLAGS.updates} updates;",
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}",
    ]
    pathlib.Path(f"{FLAGS.out}.txt").write_text("\n\n".join("\n".join(part) for part in (head, text)) + "\n")
    print("\n".join(text))
    draw(runs, memory, f"{FLAGS.out}.png")


if __name__ == "__main__":
    define_flags()
    app.run(main)
