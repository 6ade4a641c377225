"""What tracing, lowering and compiling an update costs, and making it eagerly, as ratios against optax.

    python experiments/bench/trace_and_compile.py [--only=adam,lamb] [--rounds=5] [--leaves=200] [--json]

The tree: `--leaves` float32 arrays of a transformer of width 64, kernels, biases and scales. CPU seconds of this
process, so that other work on the machine counts little; XLA's default pipeline, no cache of compiled programs, and
JAX's own caches cleared before each reading. Rounds of the two libraries alternate; each figure is the median over
the rounds of the ratio (gradkit / optax) within one: 1 means as much as optax, 0.5 half of it.
An eager update runs op by op, after one that has compiled the ops; the median of nine.
"""

import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import gradkit as gk

ONLY = flags.DEFINE_list("only", [], "Names of comparisons; all by default.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Alternating rounds.", lower_bound=1)
LEAVES = flags.DEFINE_integer("leaves", 200, "Leaves of the tree.", lower_bound=1)
COMPILE = flags.DEFINE_bool(
    "compile", True, "Compile as well; tracing and eager updates alone take a tenth of the time."
)
JSON = flags.DEFINE_bool("json", False, "Print JSON lines instead of a table.")
PHASES = ("trace", "lower", "compile", "eager")

# name -> (optax's, ours)
CASES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "sgd": (lambda: optax.sgd(0.1), lambda: gk.sgd(0.1)),
    "momentum": (lambda: optax.sgd(0.1, momentum=0.9), lambda: gk.sgd(0.1, momentum=0.9)),
    "nesterov": (
        lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
        lambda: gk.sgd(0.1, momentum=0.9, nesterov=True),
    ),
    "adam": (lambda: optax.adam(0.1), lambda: gk.adam(0.1)),
    "adam scheduled": (
        lambda: optax.adam(optax.cosine_decay_schedule(0.1, 100)),
        lambda: gk.adam(optax.cosine_decay_schedule(0.1, 100)),
    ),
    "adamw": (lambda: optax.adamw(0.1), lambda: gk.adamw(0.1)),
    "clip adamw": (
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)),
        lambda: optax.chain(gk.clip_by_global_norm(1.0), gk.adamw(0.1)),
    ),
    "amsgrad": (lambda: optax.amsgrad(0.1), lambda: gk.amsgrad(0.1)),
    "nadam": (lambda: optax.nadam(0.1), lambda: gk.nadam(0.1)),
    "adamax": (lambda: optax.adamax(0.1), lambda: gk.adamax(0.1)),
    "rmsprop": (lambda: optax.rmsprop(0.1), lambda: gk.rmsprop(0.1)),
    "adagrad": (lambda: optax.adagrad(0.1), lambda: gk.adagrad(0.1)),
    "adadelta": (lambda: optax.adadelta(0.1), lambda: gk.adadelta(0.1)),
    "lion": (lambda: optax.lion(0.1), lambda: gk.lion(0.1)),
    "lamb": (lambda: optax.lamb(0.1), lambda: gk.lamb(0.1)),
    "lars": (lambda: optax.lars(0.1), lambda: gk.lars(0.1)),
    "novograd": (lambda: optax.novograd(0.1), lambda: gk.novograd(0.1)),
    "noisy_sgd": (
        lambda: optax.noisy_sgd(0.1, eta=0.1, key=jax.random.key(0)),
        lambda: gk.noisy_sgd(0.1, eta=0.1, key=jax.random.key(0)),
    ),
    "ademamix": (lambda: optax.contrib.ademamix(0.1), lambda: gk.ademamix(0.1)),
    "muon": (lambda: optax.contrib.muon(0.1), lambda: gk.muon(0.1, adam_learning_rate=0.1)),
}


def transformer(leaves: int, d: int = 64) -> dict[str, Any]:
    """The first so many parameters of a transformer, named as Flax names them."""
    block: dict[str, tuple[int, ...]] = {}
    for name in ("query", "key", "value", "out"):
        block[f"attention/{name}"] = (d, d)
    block |= {"norm/scale": (d,), "norm/bias": (d,), "up/kernel": (d, 4 * d), "up/bias": (4 * d,)}
    block |= {"down/kernel": (4 * d, d), "down/bias": (d,)}
    shapes = {f"{i:03}/{name}": shape for i in range(math.ceil(leaves / len(block))) for name, shape in block.items()}
    rng = np.random.default_rng(0)
    return {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in list(shapes.items())[:leaves]}


def seconds(tx: Any, params: Any, compiled: bool) -> dict[str, float]:
    """CPU seconds of each phase of one update."""
    jax.clear_caches()
    gc.collect()
    state = jax.eval_shape(tx.init, params)
    marks = [time.process_time()]
    traced = jax.jit(tx.update).trace(params, state, params)
    marks.append(time.process_time())
    if compiled:
        lowered = traced.lower()
        marks.append(time.process_time())
        lowered.compile()
        marks.append(time.process_time())
    found = dict(zip(PHASES, np.diff(marks).tolist(), strict=False))

    state = tx.init(params)
    jax.block_until_ready(tx.update(params, state, params))
    gc.collect()
    eager = []
    for _ in range(9):
        start = time.process_time()
        jax.block_until_ready(tx.update(params, state, params))
        eager.append(time.process_time() - start)
    return found | {"eager": statistics.median(eager)}


def main(argv: list[str]) -> None:
    del argv
    jax.config.update("jax_enable_compilation_cache", False)
    params = transformer(LEAVES.value)
    chosen = ONLY.value or list(CASES)
    if unknown := sorted(set(chosen) - set(CASES)):
        sys.exit(f"--only: unknown {', '.join(unknown)}; there are {', '.join(CASES)}")
    phases = PHASES if COMPILE.value else ("trace", "eager")
    if not JSON.value:
        print(f"{len(params)} leaves; ratios gradkit / optax of CPU time; eager also in ms per leaf")
        heads = "".join(f"{phase:>9}" for phase in phases)
        print(f"{'method':<16}{heads}{'gradkit ms':>12}{'optax ms':>10}")
    for name in chosen:
        runs: list[list[dict[str, float]]] = [[], []]
        for i in range(ROUNDS.value):
            # Whoever is second in one round is first in the next.
            for side in (0, 1) if i % 2 else (1, 0):
                runs[side].append(seconds(CASES[name][side](), params, COMPILE.value))
        ratios = {p: statistics.median(b[p] / a[p] for a, b in zip(*runs, strict=True)) for p in phases}
        peer, ours = ({p: statistics.median(r[p] for r in side) for p in phases} for side in runs)
        if JSON.value:
            print(json.dumps({"name": name, "ratios": ratios, "optax_s": peer, "gradkit_s": ours}), flush=True)
        else:
            cells = "".join(f"{ratios[p]:>9.2f}" for p in phases)
            per_leaf = [1e3 * side["eager"] / len(params) for side in (ours, peer)]
            print(f"{name:<16}{cells}{per_leaf[0]:>12.3f}{per_leaf[1]:>10.3f}", flush=True)


if __name__ == "__main__":
    app.run(main)
