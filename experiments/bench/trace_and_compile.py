"""What tracing, lowering and compiling an update costs, and making it eagerly, as ratios against optax.

    python experiments/bench/trace_and_compile.py [--only=adam,lamb] [--rounds=5] [--leaves=200] [--nocompile]
    python experiments/bench/trace_and_compile.py --growth=lamb|soap [--rounds=1]

The tree: `--leaves` float32 arrays of a transformer of width 64, kernels, biases and scales. CPU seconds of this
process, so that other work on the machine counts little; XLA's default pipeline, no cache of compiled programs, and
JAX's own caches cleared before each reading. Rounds of the two libraries alternate; each figure is the median over
the rounds of the ratio (gradkit / optax) within one: 1 means as much as optax, 0.5 half of it.
An eager update runs op by op, after one that has compiled the ops; the median of nine. Sophia's is left out: in both
libraries it compiles the products with the Hessian anew each time.

`--growth`: how it grows with the number of leaves. lamb: leaves of one shape, 250 to 2000, beside optax's. soap:
matrices of as many shapes as there are leaves, 37 to 300; optax has no SOAP.
"""

import gc
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

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
GROWTH = flags.DEFINE_enum("growth", None, ["lamb", "soap"], "How the cost of a method grows, instead of ratios.")
PHASES = ("trace", "lower", "compile", "eager")


class Case(NamedTuple):
    """One method in both libraries, what their updates need besides: parameters -> extra arguments; and whether they
    are made eagerly as well."""

    peer: Callable[[], Any]
    ours: Callable[[], Any]
    peer_extra: Callable[[Any], dict[str, Any]] = lambda params: {}
    extra: Callable[[Any], dict[str, Any]] = lambda params: {}
    eager: bool = True


def quartic(params: Any) -> jax.Array:
    """A loss with a diagonal Hessian."""
    return sum((jnp.sum(x**4) for x in jax.tree.leaves(params)), start=jnp.zeros(()))


def products(params: Any) -> dict[str, Any]:
    """Products with the Hessian of `quartic`, made from the loss, as optax makes them."""
    return {"hvp_fn": lambda v: jax.jvp(jax.grad(quartic), (params,), (v,))[1], "key": jax.random.key(1)}


CASES: dict[str, Case] = {
    "sgd": Case(lambda: optax.sgd(0.1), lambda: gk.sgd(0.1)),
    "momentum": Case(lambda: optax.sgd(0.1, momentum=0.9), lambda: gk.sgd(0.1, momentum=0.9)),
    "nesterov": Case(
        lambda: optax.sgd(0.1, momentum=0.9, nesterov=True), lambda: gk.sgd(0.1, momentum=0.9, nesterov=True)
    ),
    "adam": Case(lambda: optax.adam(0.1), lambda: gk.adam(0.1)),
    "adam scheduled": Case(
        lambda: optax.adam(optax.cosine_decay_schedule(0.1, 100)),
        lambda: gk.adam(optax.cosine_decay_schedule(0.1, 100)),
    ),
    "adamw": Case(lambda: optax.adamw(0.1), lambda: gk.adamw(0.1)),
    "amsgrad": Case(lambda: optax.amsgrad(0.1), lambda: gk.amsgrad(0.1)),
    "nadam": Case(lambda: optax.nadam(0.1), lambda: gk.nadam(0.1)),
    "adamax": Case(lambda: optax.adamax(0.1), lambda: gk.adamax(0.1)),
    "rmsprop": Case(lambda: optax.rmsprop(0.1), lambda: gk.rmsprop(0.1)),
    "rmsprop centered": Case(lambda: optax.rmsprop(0.1, centered=True), lambda: gk.rmsprop(0.1, centered=True)),
    "adagrad": Case(lambda: optax.adagrad(0.1), lambda: gk.adagrad(0.1)),
    "adadelta": Case(lambda: optax.adadelta(0.1), lambda: gk.adadelta(0.1)),
    "ademamix": Case(lambda: optax.contrib.ademamix(0.1), lambda: gk.ademamix(0.1)),
    "lion": Case(lambda: optax.lion(0.1), lambda: gk.lion(0.1)),
    "lamb": Case(lambda: optax.lamb(0.1), lambda: gk.lamb(0.1)),
    "lars": Case(lambda: optax.lars(0.1), lambda: gk.lars(0.1)),
    "novograd": Case(lambda: optax.novograd(0.1), lambda: gk.novograd(0.1)),
    "noisy_sgd": Case(
        lambda: optax.noisy_sgd(0.1, eta=0.1, key=jax.random.key(0)),
        lambda: gk.noisy_sgd(0.1, eta=0.1, key=jax.random.key(0)),
    ),
    "sophia": Case(
        lambda: optax.contrib.sophia(0.1),
        lambda: gk.sophia_h(0.1),
        lambda params: {"obj_fn": quartic},
        products,
        eager=False,
    ),
    "muon": Case(lambda: optax.contrib.muon(0.1), lambda: gk.muon(0.1, adam_learning_rate=0.1)),
    "galore": Case(lambda: optax.contrib.galore(0.1, rank=8), lambda: gk.galore(0.1, rank=8)),
    "clip adamw": Case(
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)),
        lambda: optax.chain(gk.clip_by_global_norm(1.0), gk.adamw(0.1)),
    ),
    "adaptive clip sgd": Case(
        lambda: optax.chain(optax.adaptive_grad_clip(0.01), optax.sgd(0.1)),
        lambda: optax.chain(gk.adaptive_grad_clip(0.01), gk.sgd(0.1)),
    ),
    "centralized sgd": Case(
        lambda: optax.chain(optax.centralize(), optax.sgd(0.1)),
        lambda: optax.chain(gk.centralize_gradients(), gk.sgd(0.1)),
    ),
    "decayed sgd": Case(
        lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)), lambda: gk.sgd(0.1, weight_decay=0.1)
    ),
    "guarded adam": Case(
        lambda: optax.apply_if_finite(optax.adam(0.1), 10), lambda: gk.guard(gk.adam(0.1), max_skips=10)
    ),
}


def transformer(leaves: int, d: int = 64) -> dict[str, Any]:
    """The first so many parameters of a transformer, named as Flax names them."""
    block: dict[str, tuple[int, ...]] = {}
    for name in ("query", "key", "value", "out"):
        block[f"attention/{name}"] = (d, d)
    block |= {"norm/scale": (d,), "norm/bias": (d,), "up/kernel": (d, 4 * d), "up/bias": (4 * d,)}
    block |= {"down/kernel": (4 * d, d), "down/bias": (d,)}
    shapes = {f"{i:03}/{name}": shape for i in range(math.ceil(leaves / len(block))) for name, shape in block.items()}
    return arrays(dict([*shapes.items()][:leaves]))


def arrays(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Normal numbers of these shapes."""
    rng = np.random.default_rng(0)
    return {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in shapes.items()}


def seconds(tx: Any, params: Any, extra: Callable[[Any], dict[str, Any]], phases: tuple[str, ...]) -> dict[str, float]:
    """CPU seconds of each phase of one update."""
    jax.clear_caches()
    gc.collect()
    state = jax.eval_shape(tx.init, params)

    def update(updates: Any, state: Any, params: Any) -> Any:
        return tx.update(updates, state, params, **extra(params))

    marks = [time.process_time()]
    traced = jax.jit(update).trace(params, state, params)
    marks.append(time.process_time())
    if "compile" in phases:
        lowered = traced.lower()
        marks.append(time.process_time())
        lowered.compile()
        marks.append(time.process_time())
    found = dict(zip(PHASES, np.diff(marks).tolist(), strict=False))
    if "eager" not in phases:
        return found

    state = tx.init(params)
    jax.block_until_ready(update(params, state, params))
    gc.collect()
    eager = []
    for _ in range(9):
        start = time.process_time()
        jax.block_until_ready(update(params, state, params))
        eager.append(time.process_time() - start)
    return found | {"eager": statistics.median(eager)}


def ratios(chosen: list[str]) -> None:
    """A line per method."""
    params, phases = transformer(LEAVES.value), PHASES if COMPILE.value else ("trace", "eager")
    print(
        f"{len(params)} leaves, {ROUNDS.value} rounds; ratios gradkit / optax of CPU time; then gradkit's and optax's"
    )
    print("seconds to trace, lower and compile, and milliseconds per leaf of an eager update")
    heads = "".join(f"{phase:>9}" for phase in phases)
    print(f"{'method':<18}{heads}{'gradkit s':>12}{'optax s':>9}{'gradkit ms':>12}{'optax ms':>10}")
    for name in chosen:
        case, runs = CASES[name], ([], [])
        asked = tuple(p for p in phases if case.eager or p != "eager")
        sides = ((case.peer, case.peer_extra), (case.ours, case.extra))
        for i in range(ROUNDS.value):
            # Whoever is second in one round is first in the next.
            for side in (0, 1) if i % 2 else (1, 0):
                made, extra = sides[side]
                runs[side].append(seconds(made(), params, extra, asked))
        found = {p: statistics.median(b[p] / a[p] for a, b in zip(*runs, strict=True)) for p in asked}
        peer, ours = ({p: statistics.median(r[p] for r in side) for p in asked} for side in runs)
        cells = "".join(f"{found.get(p, math.nan):>9.2f}" for p in phases)
        total = [sum(side[p] for p in asked if p != "eager") for side in (ours, peer)]
        per_leaf = [1e3 * side.get("eager", math.nan) / len(params) for side in (ours, peer)]
        print(f"{name:<18}{cells}{total[0]:>12.2f}{total[1]:>9.2f}{per_leaf[0]:>12.3f}{per_leaf[1]:>10.3f}", flush=True)


def growth(name: str) -> None:
    """A line per number of leaves."""
    phases = ("trace", "lower", "compile")
    many = {"lamb": (250, 500, 1000, 2000), "soap": (37, 75, 150, 300)}[name]
    print(f"{name}: CPU seconds to trace, lower and compile; ms a leaf")
    for n in many:
        if name == "lamb":
            params = arrays({f"{i:04}/kernel": (64, 64) for i in range(n)})
            sides = {"gradkit": gk.lamb(0.1), "optax": optax.lamb(0.1)}
        else:
            params = arrays({f"{i:03}/kernel": (16 + i % 20, 16 + i // 20) for i in range(n)})
            sides = {"gradkit": gk.soap(0.1)}
        for side, tx in sides.items():
            rows = [seconds(tx, params, lambda params: {}, phases) for _ in range(ROUNDS.value)]
            own = [statistics.median(row[p] for row in rows) for p in phases]
            cells = "".join(f"{x:>9.2f}" for x in own)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(
                f"{n:>5} leaves  {side:<8}{cells}   {1e3 * sum(own) / n:8.2f} ms a leaf, {peak:.1f} GiB at most",
                flush=True,
            )


def main(argv: list[str]) -> None:
    del argv
    jax.config.update("jax_enable_compilation_cache", False)
    chosen = ONLY.value or list(CASES)
    if unknown := sorted(set(chosen) - set(CASES)):
        sys.exit(f"--only: unknown {', '.join(unknown)}; there are {', '.join(CASES)}")
    if GROWTH.value:
        growth(GROWTH.value)
    else:
        ratios(chosen)


if __name__ == "__main__":
    app.run(main)
