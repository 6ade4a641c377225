"""Every aggregator of the gradients of tasks on six conflicting tasks, tuned alike: does any beat the plain mean?

    .venv/bin/python experiments/multitask.py [--steps=200] [--seeds=5] [--only=mean,upgrad]

The workload `multitask_six`: six losses of sizes 0.1 to 30 on one narrow trunk. Behind every aggregator stands Adam,
with the same four learning rates, a warm-up and a cosine, and the same five seeds. A run is judged by the mean over the
tasks of the relative loss (that of the best constant prediction is 1) of the test images; the rate is chosen by the
median of that on the training images. A seed counts as better than the mean where its loss is lower by a thousandth or
more. What is printed is in `experiments/results/multitask.txt`.
"""

import inspect
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from gradkit.training.methods import warmup_cosine
from gradkit.workloads.digits import load_digits
from gradkit.workloads.multitask_six import SCALES, SixHeads, constant_losses, six_losses

RATES = (1e-2, 3e-2, 1e-1, 3e-1)
PROBLEM = gk.workloads.load("multitask_six")
M = len(SCALES)
# Those that are built otherwise than by their name; what takes two gradients, or examples, is of other problems.
MADE = {
    "constant": lambda: gk.aggregation.constant(1 / np.asarray(SCALES)),
    "cr_mogm": lambda: gk.aggregation.cr_mogm(gk.aggregation.upgrad(), num_tasks=M),
    "krum": lambda: gk.aggregation.krum(n_byzantine=1, n_selected=3),
}
WITHOUT = ("bloop", "dynamic_barrier", "prograd", "differentially_private_aggregate")


def make(name: str) -> Any:
    if name in MADE:
        return MADE[name]()
    function = gk.catalogue.find(name).function
    return function(**({"num_tasks": M} if "num_tasks" in inspect.signature(function).parameters else {}))


def relative(params: Any, images: jax.Array, labels: jax.Array, trivial: jax.Array) -> jax.Array:
    return six_losses(SixHeads().apply({"params": params}, images), images, labels) / trivial


def runs(name: str, steps: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """(rates, seeds, tasks): the relative losses of the training and of the test images."""
    data = load_digits()
    trivial = jnp.asarray(constant_losses(np.asarray(data.train_images), np.asarray(data.train_labels)))
    batches = gk.catalogue.find(name).tasks.batches
    losses = PROBLEM.losses
    assert losses is not None

    def one(rate: jax.Array, seed: jax.Array) -> tuple[jax.Array, jax.Array]:
        tx = optax.with_extra_args_support(optax.chain(make(name), gk.adam(warmup_cosine(rate, steps))))
        key = jax.random.key(seed)
        params = PROBLEM.init(jax.random.fold_in(key, 0))

        def step(carry: tuple[Any, Any], i: jax.Array) -> tuple[tuple[Any, Any], None]:
            x, state = carry
            own = jax.random.fold_in(jax.random.fold_in(key, 1), i)
            batch = PROBLEM.batch(own)
            # Of an aggregator of two batches each is half of the batch, so that all see as many images.
            parts = [jax.tree.map(lambda b, j=j: b[j::batches], batch) for j in range(batches)]
            all_losses = lambda x: jnp.concatenate([losses(x, part) for part in parts])  # noqa: E731
            values, g = all_losses(x), jax.jacrev(all_losses)(x)
            u, state = tx.update(g, state, x, losses=values, key=jax.random.fold_in(own, 7))
            return (optax.apply_updates(x, u), state), None

        (x, _), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
        return relative(x, data.train_images, data.train_labels, trivial), relative(
            x, data.test_images, data.test_labels, trivial
        )

    every = jax.jit(jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None)))
    train, test = every(jnp.asarray(RATES), jnp.arange(seeds, dtype=jnp.uint32))
    return np.asarray(train), np.asarray(test)


def conflicts() -> float:
    """The part of the pairs of tasks whose gradients conflict at the start, over seeds."""

    def one(seed: jax.Array) -> jax.Array:
        key = jax.random.key(seed)
        g = jax.jacrev(lambda x: PROBLEM.losses(x, PROBLEM.batch(key)))(PROBLEM.init(key))
        # Of the trunk alone: the heads belong to one task each.
        return gk.diagnostics.conflict_incidence(gk.aggregation.gramian(g["trunk"]))

    return float(jnp.mean(jax.jit(jax.vmap(one))(jnp.arange(20, dtype=jnp.uint32))))


def main() -> None:
    given = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    steps, seeds = int(given.get("steps", 200)), int(given.get("seeds", 5))
    names = [name for name in gk.catalogue.cards("aggregator") if name not in WITHOUT]
    names = given["only"].split(",") if "only" in given else ["mean", *(n for n in names if n != "mean")]
    print(f"six tasks, {steps} steps of Adam, rates {RATES}, {seeds} seeds; conflicts at the start: {conflicts():.0%}")
    print(
        f"{'aggregator':<24} {'rate':>6} {'mean relative loss (test)':>28} {'worst task':>11} {'better than mean':>17}"
    )
    baseline = None
    for name in names:
        began = time.perf_counter()
        train, test = runs(name, steps, seeds)
        of_runs = np.where(np.isfinite(train), train, np.inf).mean(-1)
        best = int(np.argmin(np.median(of_runs, axis=1)))
        own = test[best].mean(-1)
        baseline = own if baseline is None else baseline
        low, middle, high = np.min(own), np.median(own), np.max(own)
        worst, wins = np.median(test[best].max(-1)), int(np.sum(own < 0.999 * baseline))
        print(
            f"{name:<24} {RATES[best]:>6} {middle:>12.4f} [{low:.4f}, {high:.4f}] {worst:>11.3f} {wins:>9} of {seeds}"
            f"   ({time.perf_counter() - began:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
