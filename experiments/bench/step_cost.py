"""What one optimizer step costs, as ratios against optax on the same tree in the same rounds.

    python experiments/bench/step_cost.py [--only=lars,lamb] [--rounds=15] [--json]

The tree: a plain transformer of 12 layers, width 512, 41 million float32 parameters in 194 leaves. One step is
update and apply_updates, jitted, parameters and state donated. Rounds are interleaved, so a slow spell of the
machine hits both sides; the ratio is the median over rounds of (optax / gradkit): 2 means twice as fast.
`bf16` compares gradkit with its own float32 moments.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import gradkit as gk

ONLY = flags.DEFINE_list("only", [], "Names of comparisons; all by default.")
ROUNDS = flags.DEFINE_integer("rounds", 15, "Interleaved rounds.", lower_bound=3)
JSON = flags.DEFINE_bool("json", False, "Print JSON lines instead of a table.")


def transformer(
    layers: int = 12, d: int = 512, ff: int = 2048, vocab: int = 4096, length: int = 256
) -> dict[str, tuple]:
    """Name -> shape."""
    shapes: dict[str, tuple] = {"embed": (vocab, d), "position": (length, d)}
    for i in range(layers):
        for name in "qkvo":
            shapes |= {f"{i}/{name}/kernel": (d, d), f"{i}/{name}/bias": (d,)}
        shapes |= {
            f"{i}/up/kernel": (d, ff),
            f"{i}/up/bias": (ff,),
            f"{i}/down/kernel": (ff, d),
            f"{i}/down/bias": (d,),
        }
        for name in ("norm1", "norm2"):
            shapes |= {f"{i}/{name}/scale": (d,), f"{i}/{name}/bias": (d,)}
    return shapes


def runner(tx: optax.GradientTransformation, grads: dict[str, jax.Array]) -> Callable[[], None]:
    """A function that makes one donated step and waits for it."""
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(0.02 * rng.standard_normal(g.shape), jnp.float32) for k, g in grads.items()}
    state = jax.jit(tx.init)(params)

    def step(params: dict, state: object, grads: dict) -> tuple[dict, object]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, grads).compile()
    box = [params, state]

    def run() -> None:
        box[0], box[1] = jax.block_until_ready(compiled(box[0], box[1], grads))

    return run


# name -> (peer, ours, the ratio this library is meant to reach)
CASES: dict[str, tuple[Callable, Callable, float]] = {
    "lars": (lambda: optax.lars(1e-3), lambda: gk.lars(1e-3), 3.0),
    "lion": (lambda: optax.lion(1e-4), lambda: gk.lion(1e-4, weight_decay=1e-3), 2.3),
    "clip_adamw": (
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.01)),
        lambda: optax.chain(gk.clip_by_global_norm(1.0), gk.adamw(1e-4)),
        2.2,
    ),
    "lamb": (lambda: optax.lamb(1e-4), lambda: gk.lamb(1e-4), 1.3),
    "adamw": (lambda: optax.adamw(1e-4, weight_decay=0.01), lambda: gk.adamw(1e-4), 1.0),
    "momentum": (lambda: optax.sgd(1e-3, momentum=0.9), lambda: gk.sgd(1e-3, momentum=0.9), 1.0),
    "adamw bf16": (lambda: gk.adamw(1e-4), lambda: gk.adamw(1e-4, mu_dtype=jnp.bfloat16), 1.0),
    "adamw bf16 optax": (
        lambda: optax.adamw(1e-4, weight_decay=0.01, mu_dtype=jnp.bfloat16),
        lambda: gk.adamw(1e-4, mu_dtype=jnp.bfloat16),
        1.0,
    ),
    "lion bf16": (lambda: gk.lion(1e-4), lambda: gk.lion(1e-4, mu_dtype=jnp.bfloat16), 1.0),
}


def main(argv: list[str]) -> None:
    del argv
    rng = np.random.default_rng(1)
    grads = {k: jnp.asarray(0.01 * rng.standard_normal(s), jnp.float32) for k, s in transformer().items()}
    names = ONLY.value or list(CASES)
    if unknown := sorted(set(names) - set(CASES)):
        sys.exit(f"--only: unknown {', '.join(unknown)}; there are {', '.join(CASES)}")
    if not JSON.value:
        size = sum(g.size for g in grads.values()) / 1e6
        print(f"{size:.1f} M parameters, {len(grads)} leaves, {jax.devices()[0].device_kind}")
        print(f"{'comparison':<18}{'peer ms':>9}{'gradkit ms':>12}{'ratio':>8}{'goal':>7}")
    for name in names:
        peer, ours, goal = CASES[name]
        runs = [runner(peer(), grads), runner(ours(), grads)]
        seconds: list[list[float]] = [[], []]
        for i in range(ROUNDS.value + 2):
            for run, column in zip(runs, seconds, strict=True):
                start = time.perf_counter()
                run()
                if i >= 2:
                    column.append(time.perf_counter() - start)
        ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
        peer_ms, our_ms = (1e3 * statistics.median(column) for column in seconds)
        if JSON.value:
            print(json.dumps({"name": name, "peer_ms": peer_ms, "gradkit_ms": our_ms, "ratio": ratio, "goal": goal}))
        else:
            print(f"{name:<18}{peer_ms:>9.1f}{our_ms:>12.1f}{ratio:>8.2f}{goal:>7.1f}", flush=True)


if __name__ == "__main__":
    app.run(main)
