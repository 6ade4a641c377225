"""What asynchronous servers lose by delay: the loss after so many arrivals, against how many workers there are.

    python experiments/loss_against_delay.py --out=experiments/results/loss_against_delay

W workers of one mean speed, whose rounds take log-normal times, each make some local steps of SGD on minibatches of a
regression, and a server takes their pseudo-gradients as they arrive: the staleness is W - 1 on average. All runs have
the same number of arrivals, so the same number of examples; more workers only take less time. Every rule has the best
of a grid of learning rates, chosen by the mean loss over all seeds.

Writes OUT.txt: the excess loss of every rule, its best rate, and the staleness measured in the tables.
"""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from gradkit import parallel

FLAGS = flags.FLAGS
flags.DEFINE_multi_integer("workers", [1, 2, 4, 8, 16, 32], "numbers of workers")
flags.DEFINE_integer("arrivals", 800, "of a run", lower_bound=4)
flags.DEFINE_integer("local_steps", 4, "of a round", lower_bound=1)
flags.DEFINE_integer("batch", 8, "examples of a minibatch", lower_bound=1)
flags.DEFINE_integer("features", 20, "of the regression; the Hessian has condition 100", lower_bound=2)
flags.DEFINE_float("local_rate", 0.1, "of SGD on a worker", lower_bound=1e-9)
flags.DEFINE_float("spread", 0.5, "of the logarithm of the time of a round", lower_bound=0.0)
flags.DEFINE_integer("seeds", 4, "runs per rate", lower_bound=1)
flags.DEFINE_string("out", "loss_against_delay", "where the numbers (.txt) go")

RATES = 2.0 ** np.arange(-10, 4)
# Name -> (learning rate, workers) -> server.
SERVERS: dict[str, Callable[[Any, int], Any]] = {
    "SGD": lambda rate, W: optax.sgd(rate),
    "Nesterov": lambda rate, W: optax.sgd(rate, 0.9, nesterov=True),
    "delayed Nesterov": lambda rate, W: parallel.delayed_nesterov(rate, buffer_size=W),
    "FedBuff, Nesterov": lambda rate, W: parallel.fedbuff(optax.sgd(rate, 0.9, nesterov=True), buffer_size=W),
    "FedBuff, SGD": lambda rate, W: parallel.fedbuff(optax.sgd(rate), buffer_size=W),
    "dual averaging": lambda rate, W: parallel.delayed_dual_averaging(rate),
}


def scales() -> np.ndarray:
    return np.logspace(0, -1, FLAGS.features)


def value_and_grad(x: jax.Array, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Of half the mean squared error on one minibatch."""
    a, b = batch
    return jax.value_and_grad(lambda x: jnp.mean(jnp.square(a @ x - b)) / 2)(x)


def excess(x: jax.Array, best: jax.Array) -> jax.Array:
    """The expected loss above that of the solution."""
    return jnp.sum(jnp.square(jnp.asarray(scales(), x.dtype) * (x - best))) / 2


def run(server: Callable[[Any, int], Any], W: int) -> tuple[np.ndarray, float]:
    """(excess loss at the end by (rate, seed), mean staleness)."""
    tables = [
        parallel.arrival_schedule(np.ones(W), FLAGS.local_steps, FLAGS.arrivals, spread=FLAGS.spread, seed=s)
        for s in range(FLAGS.seeds)
    ]
    if server in (SERVERS["FedBuff, Nesterov"], SERVERS["FedBuff, SGD"]):
        tables = [table.published_every(W) for table in tables]
    phase = parallel.async_local_sgd(value_and_grad, optax.sgd(FLAGS.local_rate), keep_state=False)
    shape = (FLAGS.arrivals, FLAGS.local_steps, FLAGS.batch)

    def ends(table: Any, seed: int) -> np.ndarray:
        random = np.random.default_rng(seed)
        best = jnp.asarray(random.standard_normal(FLAGS.features), jnp.float32)
        a = jnp.asarray(scales() * random.standard_normal((*shape, FLAGS.features)), jnp.float32)
        b = a @ best + jnp.asarray(0.5 * random.standard_normal(shape), jnp.float32)

        def one(rate: jax.Array) -> jax.Array:
            tx = server(rate, W)
            start = parallel.start_simulation(jnp.zeros(FLAGS.features), tx, W)
            _, path = parallel.simulate_events(table, phase, tx, start, data=(a, b), record=lambda x: excess(x, best))
            # Of the last tenth: a server with a buffer moves once in W arrivals.
            return jnp.mean(path[-FLAGS.arrivals // 10 :])

        return np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(RATES, jnp.float32)))

    losses = np.stack([ends(table, seed) for seed, table in enumerate(tables)], axis=1)
    return losses, float(np.mean([table.staleness.mean() for table in tables]))


def main(argv: list[str]) -> None:
    del argv
    began, rows = time.perf_counter(), []
    for name, server in SERVERS.items():
        cells = []
        for W in FLAGS.workers:
            losses, staleness = run(server, W)
            mean = np.nan_to_num(losses.mean(1), nan=np.inf)
            best = int(np.argmin(mean))
            error = losses[best].std() / np.sqrt(FLAGS.seeds)
            cells.append(f"{mean[best]:.4f} +- {error:.4f} ({RATES[best]:g})")
            print(f"{name}, {W} workers, staleness {staleness:.1f}: {cells[-1]}", flush=True)
        rows.append(f"{name:<20}" + "".join(f"{cell:>30}" for cell in cells))
    lines = [
        f"excess loss after {FLAGS.arrivals} arrivals of {FLAGS.local_steps} local steps; in brackets the best rate of "
        f"{RATES[0]:g} to {RATES[-1]:g}; mean and standard error of {FLAGS.seeds} runs",
        "",
        f"{'workers':<20}" + "".join(f"{W:>30}" for W in FLAGS.workers),
        *rows,
        "",
        f"{time.perf_counter() - began:.0f} s on {jax.default_backend()}",
    ]
    path = pathlib.Path(f"{FLAGS.out}.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    app.run(main)
