"""What a step of Muon, Shampoo and SOAP costs beside other libraries' on the same leaves, on one device.

    pip install torch pytorch_optimizer heavyball
    python experiments/bench/matrix_peers.py [--only=muon,soap,shampoo] [--leaves=mixed,small] [--rounds=5]

Leaves: "mixed", 12 x (4 of 256 x 256, 2 of 256 x 1024), and "small", 224 of 64 x 64. All in float32, but for the
Newton-Schulz products of torch and what is built on it, which are bfloat16 by themselves. Shampoo and SOAP refresh
their roots and bases every tenth step, and a figure is the mean over ten steps. Rounds are interleaved; a ratio is the
median over rounds of (peer / gradkit): 2 means that gradkit is twice as fast. Libraries that are not installed are left
out. Programs of JAX also have the time they take to compile, and their size as StableHLO text. The share is that of the
rate of one large product: the operations of a method's products (not of its decompositions) over its time.
"""

import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from absl import app, flags

import gradkit as gk

METHODS = ("muon", "soap", "shampoo")
LEAVES = {
    "mixed": {f"{i:02d}/kernel": s for i, s in enumerate([*[(256, 256)] * 4, (256, 1024), (1024, 256)] * 12)},
    "small": {f"{i:03d}/kernel": (64, 64) for i in range(224)},
}
ONLY = flags.DEFINE_list("only", list(METHODS), "Which methods.")
WHERE = flags.DEFINE_list("leaves", list(LEAVES), "On which leaves.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Interleaved rounds.", lower_bound=1)
THREADS = flags.DEFINE_integer("threads", os.cpu_count(), "Of torch; JAX takes all processors.", lower_bound=1)

REFRESH = 10
Shapes = dict[str, tuple[int, ...]]


def numbers(shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {k: (0.02 * random.standard_normal(s)).astype(np.float32) for k, s in shapes.items()}


def peak() -> float:
    """Operations per second of a product of 2048 x 2048, the best of ten."""
    n, best = 2048, float("inf")
    x = jnp.ones((n, n))
    product = jax.jit(jnp.matmul)
    for _ in range(10):
        began = time.perf_counter()
        jax.block_until_ready(product(x, x))
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def operations(method: str, shapes: Shapes) -> float:
    """Of the products of one step, on average."""
    total = 0.0
    for n, m in (sorted(shape) for shape in shapes.values()):
        pair = 2 * n * m * (n + m)  # one product along each side
        if method == "muon":  # five steps of Newton-Schulz
            total += 20 * n * n * m + 10 * n**3
        elif method == "soap":  # statistics; into the bases and back; step of the power method, turn of the mean
            total += 3 * pair + 2 * (n**3 + m**3 + pair) / REFRESH
        else:  # statistics, and roots applied
            total += 2 * pair
    return total


def of_jax(tx: optax.GradientTransformation, shapes: Shapes) -> tuple[Callable[[], None], str]:
    """A donated step that is waited for, and what its program took to compile."""

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, grads = (jax.tree.map(jnp.asarray, numbers(shapes, seed)) for seed in (0, 1))
    state = jax.jit(tx.init)(params)
    began = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, grads)
    traced = time.perf_counter() - began
    size = len(lowered.as_text())
    began = time.perf_counter()
    program = lowered.compile()
    note = f"trace {traced:5.2f} s, compile {time.perf_counter() - began:6.2f} s, {size / 1e6:5.2f} MB"
    box = [params, state]

    def run() -> None:
        box[:] = program(*box, grads)
        jax.block_until_ready(box)

    return run, note


def of_torch(make: Callable[[list[Any]], Any], shapes: Shapes) -> tuple[Callable[[], None], str]:
    import torch

    torch.set_num_threads(THREADS.value)
    params = [torch.nn.Parameter(torch.from_numpy(x)) for x in numbers(shapes, 0).values()]
    grads = [torch.from_numpy(x) for x in numbers(shapes, 1).values()]
    optimizer = make(params)

    def run() -> None:
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()  # some write into it
        optimizer.step()

    return run, ""


def contestants(method: str, shapes: Shapes) -> dict[str, tuple[Callable[[], None], str]]:
    """What steps, by name; gradkit first."""
    found: dict[str, tuple[Callable[[], None], str]] = {}
    if method == "muon":
        found["gradkit"] = of_jax(gk.muon(0.02), shapes)
        found["gradkit, gram"] = of_jax(gk.muon(0.02, method="gram"), shapes)
        found["optax"] = of_jax(optax.contrib.muon(0.02), shapes)
    elif method == "soap":
        found["gradkit"] = of_jax(gk.soap(3e-3, update_interval=REFRESH), shapes)
    else:
        found["gradkit"] = of_jax(gk.shampoo(0.1, update_interval=REFRESH), shapes)
    there = {name for name in ("torch", "pytorch_optimizer", "heavyball") if importlib.util.find_spec(name)}
    if "torch" in there and method == "muon":
        import torch

        found["torch (bf16)"] = of_torch(lambda p: torch.optim.Muon(p, lr=0.02), shapes)
    if {"torch", "pytorch_optimizer"} <= there:
        import pytorch_optimizer as peer

        makers = {
            "muon": lambda p: peer.Muon([{"params": p, "use_muon": True}], lr=0.02),
            "soap": lambda p: peer.SOAP(p, lr=3e-3, update_interval=REFRESH),
            "shampoo": lambda p: peer.Shampoo(p, lr=0.1, preconditioning_compute_steps=REFRESH),
        }
        name = "pytorch_optimizer" + (" (bf16)" if method == "muon" else "")
        found[name] = of_torch(makers[method], shapes)
    if {"torch", "heavyball"} <= there and method != "shampoo":
        import heavyball

        heavyball.utils.compile_mode = None  # no compiler is asked for
        heavyball.utils.set_torch()
        options: dict[str, Any] = {"compile_step": False}
        if method == "soap":
            options |= {"update_interval": REFRESH, "use_precond_schedule": False}
        kind = heavyball.Muon if method == "muon" else heavyball.SOAP
        name = "heavyball" + (" (bf16)" if method == "muon" else "")
        found[name] = of_torch(lambda p: kind(p, lr=3e-3, **options), shapes)
    return found


def compare(method: str, where: str, fastest: float) -> None:
    shapes, steps = LEAVES[where], 1 if method == "muon" else REFRESH
    runs = contestants(method, shapes)
    for run, _ in runs.values():
        for _ in range(steps + 1):  # the first steps initialise
            run()
    wall: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS.value):
        for name, (run, _) in runs.items():
            began = time.perf_counter()
            for _ in range(steps):
                run()
            wall[name].append((time.perf_counter() - began) / steps)
    for name, (_, note) in runs.items():
        ratio = statistics.median(a / b for a, b in zip(wall[name], wall["gradkit"], strict=True))
        seconds = statistics.median(wall[name])
        share = f"{operations(method, shapes) / seconds / fastest:4.0%} of the peak   " if name == "gradkit" else ""
        line = f"{where:6s} {method:8s} {name:26s} {1e3 * seconds:8.1f} ms   ratio {ratio:5.2f}   {share}{note}"
        print(line.rstrip(), flush=True)


def main(argv: list[str]) -> None:
    """Prints one line per method, leaves and library."""
    del argv
    load, fastest = f"load {os.getloadavg()[0]:.1f} at the start", peak()
    print(f"{os.cpu_count()} processors, {load}, jax {jax.__version__}, optax {optax.__version__}")
    print(f"peak {fastest / 1e9:.0f} GFLOP/s: one product of 2048 x 2048 in float32")
    for where in WHERE.value:
        for method in ONLY.value:
            compare(method, where, fastest)


if __name__ == "__main__":
    app.run(main)
