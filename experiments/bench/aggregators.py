"""Aggregators beside TorchJD's on the same Jacobians: how far the results are apart, what a call takes, and memory.

    pip install torchjd quadprog cvxpy
    python experiments/bench/aggregators.py [--only=upgrad,mgda] [--tasks=2,8,32] [--parameters=1e4,1e6,1e7]

Gradients are one float32 array (tasks, parameters) on one CPU: those of the tasks share a direction and conflict in
the others. Hyperparameters are the same on both sides. The deviation is that from the result of TorchJD in float64,
relative to its norm; of gradkit and of TorchJD, both in float32. Rounds alternate, and the ratio is the median over the
rounds of (TorchJD / gradkit): 2 means that gradkit takes half the time.
TorchJD runs eagerly, as it is used; gradkit is compiled. Both have all processors.

The last table has the bytes beside arguments and results of a compiled gradient step of a network with m tasks, through
`gk.gradients.task_gradients`, which hands out gradients as far as they are asked for.
"""

import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import gradkit as gk

ONLY = flags.DEFINE_list("only", [], "Names of aggregators; all by default.")
TASKS = flags.DEFINE_list("tasks", ["2", "8", "32"], "Numbers of tasks.")
PARAMETERS = flags.DEFINE_list("parameters", ["1e4", "1e6", "1e7"], "Numbers of parameters.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Alternating rounds.", lower_bound=1)
LARGEST = flags.DEFINE_float("largest", 1e8, "Pairs with more entries of a Jacobian than this are left out.")


class Case(NamedTuple):
    """An aggregator in both libraries, for m tasks, why results are apart where they are, and the least m."""

    peer: Callable[[Any, int], Any]
    ours: Callable[[int], Any]
    why: str = ""
    least: int = 1


CASES: dict[str, Case] = {
    "mean": Case(lambda a, m: a.Mean(), lambda m: gk.aggregation.mean()),
    "upgrad": Case(lambda a, m: a.UPGrad(), lambda m: gk.aggregation.upgrad(norm_eps=1e-4, reg_eps=1e-4)),
    "dualproj": Case(lambda a, m: a.DualProj(), lambda m: gk.aggregation.dualproj(norm_eps=1e-4, reg_eps=1e-4)),
    "mgda": Case(lambda a, m: a.MGDA(), lambda m: gk.aggregation.mgda()),
    "imtl_g": Case(lambda a, m: a.IMTLG(), lambda m: gk.aggregation.imtl_g()),
    "cagrad": Case(
        lambda a, m: a.CAGrad(c=0.5),
        lambda m: gk.aggregation.cagrad(c=0.5),
        "TorchJD's general solver is good to about 3e-4",
    ),
    "config": Case(lambda a, m: a.ConFIG(), lambda m: gk.aggregation.config()),
    "aligned_mtl": Case(lambda a, m: a.AlignedMTL(), lambda m: gk.aggregation.aligned_mtl()),
    "fairgrad": Case(lambda a, m: a.FairGrad(alpha=1.0), lambda m: gk.aggregation.fairgrad(alpha=1.0)),
    "nash_mtl": Case(
        lambda a, m: a.NashMTL(n_tasks=m),
        lambda m: gk.aggregation.nash_mtl(),
        "TorchJD's 20 steps do not reach the bargaining point",
    ),
    "krum": Case(
        lambda a, m: a.Krum(n_byzantine=0, n_selected=1),
        lambda m: gk.aggregation.krum(n_byzantine=0, n_selected=1, squared=False),
        least=3,
    ),
    "trimmed_mean": Case(
        lambda a, m: a.TrimmedMean(trim_number=0 if m == 2 else 1),
        lambda m: gk.aggregation.trimmed_mean(trim_number=0 if m == 2 else 1),
    ),
    "pcgrad": Case(
        lambda a, m: a.PCGrad(), lambda m: gk.aggregation.pcgrad(key=0), "for more than two tasks the order is random"
    ),
}


def jacobian(m: int, n: int) -> np.ndarray:
    """A common part, and parts of which every two tasks have one of opposite signs."""
    random = np.random.default_rng([m, n])
    J = random.standard_normal((m, n), np.float32)
    J -= (0.7 / m) * J.sum(0)
    return J + 0.1 * random.standard_normal(n, np.float32)


def seconds(run: Callable[[], Any]) -> float:
    """Per call, of as many as take 50 ms."""
    calls, took = 1, 0.0
    while True:
        began = time.perf_counter()
        for _ in range(calls):
            run()
        took = time.perf_counter() - began
        if took > 0.05 or calls > 1000:
            return took / calls
        calls *= 4


def compare(name: str, m: int, n: int) -> str:
    import torch
    from torchjd import aggregation

    case, J = CASES[name], jacobian(m, n)
    peer, theirs, ours = case.peer(aggregation, m), torch.from_numpy(J), jnp.asarray(J)
    tx = case.ours(m)
    state = tx.init(ours[0])
    update = jax.jit(lambda J: tx.update(J, state)[0])
    run_ours, run_theirs = lambda: jax.block_until_ready(update(ours)), lambda: peer(theirs)
    exact = peer(theirs.double()).numpy()
    apart = [
        np.linalg.norm(np.asarray(x, np.float64) - exact) / np.linalg.norm(exact) for x in (run_ours(), run_theirs())
    ]
    times = [(seconds(run_ours), seconds(run_theirs)) for _ in range(ROUNDS.value)]
    ratio = statistics.median(b / a for a, b in times)
    median = [1e3 * statistics.median(t) for t in zip(*times, strict=True)]
    return (
        f"{name:14}{m:4d} {n:10.0e}{apart[0]:11.1e}{apart[1]:11.1e}{median[0]:12.3f}{median[1]:12.3f}{ratio:9.2f}"
        f"  {case.why}"
    )


def memory(name: str, m: int, width: int = 512, depth: int = 4) -> int:
    """Bytes beside arguments and results of a step of a network with m heads."""
    params = {f"{i}": jax.ShapeDtypeStruct((width, width), jnp.float32) for i in range(depth)}
    heads = jax.ShapeDtypeStruct((m, width), jnp.float32)
    x = jax.ShapeDtypeStruct((8, width), jnp.float32)
    tx = CASES[name].ours(m)

    def losses(params: Any, heads: jax.Array, x: jax.Array) -> jax.Array:
        for kernel in params.values():
            x = jnp.tanh(x @ kernel)
        return jnp.mean(jnp.square(x @ heads.T), axis=0)

    def step(params: Any, heads: jax.Array, x: jax.Array) -> Any:
        values, gradients = gk.gradients.task_gradients(losses)(params, heads, x)
        del values
        return tx.update(gradients, tx.init(params), params)[0]

    return jax.jit(step).lower(params, heads, x).compile().memory_analysis().temp_size_in_bytes


def main(argv: list[str]) -> None:
    del argv
    names = ONLY.value or list(CASES)
    for name in names:
        if name not in CASES:
            raise app.UsageError(f"--only must be names of {', '.join(CASES)}, got {name!r}")
    import torch

    print(f"python {' '.join(sys.argv)}")
    versions = f"jax {jax.__version__}, torch {torch.__version__}, torchjd {version('torchjd')}"
    print(f"{versions}, {torch.get_num_threads()} threads")
    print(f"{'':14}{'m':>4} {'n':>10}{'gradkit':>11}{'torchjd':>11}{'gradkit ms':>12}{'torchjd ms':>12}{'ratio':>9}")
    for name in names:
        for m in map(int, TASKS.value):
            for n in (int(float(n)) for n in PARAMETERS.value):
                if m * n <= LARGEST.value and m >= CASES[name].least:
                    print(compare(name, m, n), flush=True)
    counts = [*map(int, TASKS.value)]
    print("\nMiB beside arguments and results of a step; the parameters are 4 MiB")
    print(f"{'':14}" + "".join(f"{f'm = {m}':>10}" for m in counts))
    for name in names:
        print(
            f"{name:14}" + "".join(f"{memory(name, max(m, CASES[name].least)) / 2**20:10.1f}" for m in counts),
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
