"""What optimizers cost on a GPU, as shares of what the same device can do.

    pip install torch
    python experiments/bench/gpu.py [--only=elementwise,newton_schulz,refresh,model] [--rounds=5] [--small]

It takes less than ten minutes on a GPU. `--small` has small sizes and runs anywhere: it shows that the program works,
and its figures mean nothing.

elementwise    One donated step of 370 million float32 parameters in 50 leaves, beside optax and the fused optimizers of
               torch. The share is that of the memory bandwidth: the words that the method cannot do without (AdamW
               reads four and writes three) over the time, against those of a copy of 1 GiB on the same device.
newton_schulz  One step of Muon with products in bfloat16, plain and in the Gram form, beside optax and torch. The share
               is that of the rate of one large product in bfloat16: the operations of the plain form over the time.
refresh        One refresh of a batch of eigenbases, per matrix: eigenvalue decomposition, QR, and Cholesky-QR with one
               correction; and the largest entry of Q^T Q - I. Cholesky-QR is for columns of a bounded condition, here
               about 10, and stays without a result where that is exceeded.
model          Tokens per second of the byte-level language model at width 512 with AdamW, Muon and SOAP; the forward
               and backward passes are part of it.

Rounds are interleaved, and a figure is the median over them. Torch is left out where it is not installed or sees no
GPU.
"""

import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory of the device too

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from absl import app, flags

import gradkit as gk
from gradkit.workloads.bytelm import CONTEXT, bytelm

SECTIONS = ("elementwise", "newton_schulz", "refresh", "model")
ONLY = flags.DEFINE_list("only", list(SECTIONS), "Which sections.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Interleaved rounds.", lower_bound=1)
SMALL = flags.DEFINE_bool("small", False, "Whether sizes are small, so that it runs anywhere.")

Run = Callable[[], None]
# name -> (words that must be moved per parameter, gradkit, optax, (class of torch.optim, options))
ELEMENTWISE: dict[str, tuple[int, Callable[[], Any], Callable[[], Any] | None, tuple[str, dict[str, Any]] | None]] = {
    "momentum": (
        5,
        lambda: gk.sgd(1e-3, momentum=0.9),
        lambda: optax.sgd(1e-3, momentum=0.9),
        ("SGD", {"lr": 1e-3, "momentum": 0.9}),
    ),
    "adamw": (
        7,
        lambda: gk.adamw(1e-4, weight_decay=0.01),
        lambda: optax.adamw(1e-4, weight_decay=0.01),
        ("AdamW", {"lr": 1e-4, "weight_decay": 0.01}),
    ),
    "clip+adamw": (
        8,
        lambda: optax.chain(gk.clip_by_global_norm(1.0), gk.adamw(1e-4)),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4)),
        None,
    ),
    "lion": (5, lambda: gk.lion(1e-4, weight_decay=1e-3), lambda: optax.lion(1e-4), None),
    "lars": (5, lambda: gk.lars(1e-3), lambda: optax.lars(1e-3), None),
    "lamb": (7, lambda: gk.lamb(1e-4), lambda: optax.lamb(1e-4), None),
    "ademamix": (9, lambda: gk.ademamix(1e-4), lambda: optax.contrib.ademamix(1e-4), None),
    "cautious_adamw": (7, lambda: gk.cautious_adamw(1e-4), None, None),
    "prodigy": (9, lambda: gk.prodigy(1.0), lambda: optax.contrib.prodigy(1.0), None),
}


def timed(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """The median seconds of each, over interleaved rounds after one that is not counted."""
    wall: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if i:
                wall[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in wall.items()}


def best(run: Run, times: int = 10) -> float:
    """The least seconds of several."""
    run()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def bandwidth() -> float:
    """Bytes per second of a copy on the device, read and written."""
    x = jnp.ones((1 << (20 if SMALL.value else 28),), jnp.float32)
    copy = jax.jit(jnp.negative)
    return 2 * x.nbytes / best(lambda: jax.block_until_ready(copy(x)))


def product_rate(dtype: Any) -> float:
    """Operations per second of one large product."""
    n = 256 if SMALL.value else 8192
    x = jnp.ones((n, n), dtype)
    product = jax.jit(jnp.matmul)
    return 2 * n**3 / best(lambda: jax.block_until_ready(product(x, x)))


def transformer() -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    layers, d, vocabulary = (1, 64, 256) if SMALL.value else (6, 2048, 32768)
    shapes: dict[str, tuple[int, ...]] = {"embed": (vocabulary, d)}
    for i in range(layers):
        shapes |= {f"{i}/{name}/kernel": (d, d) for name in ("query", "key", "value", "out")}
        shapes |= {f"{i}/up/kernel": (d, 4 * d), f"{i}/down/kernel": (4 * d, d)}
        shapes |= {f"{i}/norm{j}/scale": (d,) for j in (1, 2)}
    return shapes | {"norm/scale": (d,)}


def matrices() -> dict[str, tuple[int, ...]]:
    """Those of a transformer, name -> shape."""
    return {k: s for k, s in transformer().items() if k.endswith("kernel")}


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, jax.Array]:
    """Normal numbers of standard deviation 0.02, made on the device."""
    make = jax.jit(lambda key, shape: 0.02 * jax.random.normal(key, shape), static_argnums=1)
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {name: make(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}


def of_jax(tx: optax.GradientTransformation, shapes: dict[str, tuple[int, ...]], steps: int) -> Run:
    """So many donated steps; the last one is waited for."""

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, grads = drawn(shapes, 0), drawn(shapes, 1)
    state = jax.jit(tx.init)(params)
    program = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, grads).compile()
    box = [params, state]

    def run() -> None:
        for _ in range(steps):
            box[:] = program(*box, grads)
        jax.block_until_ready(box)

    return run


def torch_there() -> str:
    """Why torch is left out; empty where it is not."""
    if not importlib.util.find_spec("torch"):
        return "torch is not installed and left out"
    import torch

    if jax.default_backend() != "cpu" and not torch.cuda.is_available():
        return "torch sees no GPU and is left out"
    return ""


def of_torch(kind: str, options: dict[str, Any], shapes: dict[str, tuple[int, ...]], steps: int) -> Run:
    """The same with an optimizer of torch."""
    import torch

    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    params = [torch.nn.Parameter(0.02 * torch.randn(shape, device=device)) for shape in shapes.values()]
    for p in params:
        p.grad = 0.02 * torch.randn_like(p)
    optimizer = getattr(torch.optim, kind)(params, **options)

    def run() -> None:
        for _ in range(steps):
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def row(section: str, what: str, name: str, seconds: float, *, ratio: float | None = None, share: str = "") -> None:
    compared = "" if ratio is None else f"   ratio {ratio:5.2f}"
    print(f"{section:14s} {what:15s} {name:22s} {1e3 * seconds:10.3f} ms{compared}   {share}".rstrip(), flush=True)


def elementwise() -> None:
    shapes, steps = transformer(), 1 if SMALL.value else 10
    size, fastest = sum(int(np.prod(s)) for s in shapes.values()), bandwidth()
    print(f"\n{size / 1e6:.1f} M parameters in {len(shapes)} leaves; a copy moves {fastest / 1e9:.0f} GB/s")
    for method, (words, ours, optaxs, torchs) in ELEMENTWISE.items():
        runs = {"gradkit": of_jax(ours(), shapes, steps)}
        if optaxs is not None:
            runs["optax"] = of_jax(optaxs(), shapes, steps)
        if torchs is not None and not torch_there():
            kind, options = torchs
            runs["torch (fused)"] = of_torch(kind, {**options, "fused": True}, shapes, steps)
        seconds = {name: t / steps for name, t in timed(runs, ROUNDS.value).items()}
        for name, t in seconds.items():
            share = f"{4 * words * size / t / fastest:5.0%} of the bandwidth with {words} words per parameter"
            row("elementwise", method, name, t, ratio=t / seconds["gradkit"], share=share)
        runs.clear()


def newton_schulz() -> None:
    shapes, steps, low = matrices(), 1 if SMALL.value else 5, jnp.bfloat16
    fastest = product_rate(low)
    # Five iterations of two products n x n x m and one n x n x n.
    total = sum(20 * n * n * m + 10 * n**3 for n, m in (sorted(s) for s in shapes.values()))
    print(f"\n{len(shapes)} matrices, {total / 1e12:.3f} Tflop; one product in bfloat16: {fastest / 1e12:.2f} Tflop/s")
    runs = {
        "gradkit": of_jax(gk.muon(0.02, ns_dtype=low), shapes, steps),
        "gradkit, gram, float16": of_jax(gk.muon(0.02, ns_dtype=jnp.float16, method="gram"), shapes, steps),
        "gradkit, float32": of_jax(gk.muon(0.02), shapes, steps),
        "optax (float32)": of_jax(optax.contrib.muon(0.02), shapes, steps),
    }
    if not torch_there():
        runs["torch (bfloat16)"] = of_torch("Muon", {"lr": 0.02}, shapes, steps)
    seconds = {name: t / steps for name, t in timed(runs, ROUNDS.value).items()}
    for name, t in seconds.items():
        share = f"{total / t / fastest:5.0%} of the rate of one product"
        row("newton_schulz", "muon", name, t, ratio=t / seconds["gradkit"], share=share)


def cholesky_qr(Y: jax.Array) -> jax.Array:
    """The orthogonal factor of every matrix, by products, Cholesky decompositions and triangular systems."""
    for _ in range(2):
        R = jnp.linalg.cholesky(jnp.matmul(jnp.swapaxes(Y, 1, 2), Y, precision="highest"), upper=True)
        Y = jax.lax.linalg.triangular_solve(R, Y, left_side=False, lower=False)
    return Y


def refresh() -> None:
    sizes = ((4, 16), (2, 64)) if SMALL.value else ((64, 128), (16, 512), (8, 1024), (2, 4096))
    print("\nper matrix of float32; without products S Q, which QR and Cholesky-QR need besides")
    for batch, n in sizes:
        noise = jax.random.normal(jax.random.key(n), (batch, n, n))
        Q = jnp.linalg.qr(noise)[0]
        # Columns at angles to one another, as after one step of the power method from an eigenbasis of before.
        Y = Q @ (jnp.eye(n) + (0.4 / n**0.5) * noise)
        S = jnp.matmul(Y, jnp.swapaxes(Y, 1, 2), precision="highest")
        ways: dict[str, tuple[Callable[[jax.Array], jax.Array], jax.Array]] = {
            "eigh": (lambda x: jnp.linalg.eigh(x)[1], S),
            "qr": (lambda x: jnp.linalg.qr(x)[0], Y),
            "cholesky-qr": (cholesky_qr, Y),
        }
        programs = {name: jax.jit(way).lower(x).compile() for name, (way, x) in ways.items()}

        def of(name: str, programs: Any = programs, ways: Any = ways) -> Run:
            return lambda: jax.block_until_ready(programs[name](ways[name][1]))

        seconds = timed({name: of(name) for name in ways}, min(3, ROUNDS.value))
        for name, t in seconds.items():
            made = programs[name](ways[name][1])
            gram = jnp.matmul(jnp.swapaxes(made, 1, 2), made, precision="highest")
            apart = float(jnp.max(jnp.abs(gram - jnp.eye(n))))
            share = f"Q^T Q - I at most {apart:.1e}"
            row("refresh", f"{batch} x {n}^2", name, t / batch, ratio=t / seconds["qr"], share=share)


def model() -> None:
    width, batch, steps = (64, 4, 3) if SMALL.value else (512, 512, 20)
    problem = bytelm(batch_size=batch, width=width)
    keys = jax.random.split(jax.random.key(1), steps)

    def of(tx: optax.GradientTransformation) -> Run:
        def step(carry: Any, key: jax.Array) -> Any:
            params, state = carry
            value, grads = jax.value_and_grad(problem.loss)(params, problem.batch(key))
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        params = jax.jit(problem.init)(jax.random.key(0))
        carry = (params, jax.jit(tx.init)(params))
        several = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys), donate_argnums=0)
        program = several.lower(carry, keys).compile()
        box = [carry]

        def run() -> None:
            box[0], losses = program(box[0], keys)
            jax.block_until_ready(losses)

        return run

    makers: dict[str, Callable[[], optax.GradientTransformation]] = {
        "adamw": lambda: gk.adamw(1e-3),
        "optax adamw": lambda: optax.adamw(1e-3),
        "muon": lambda: gk.muon(0.02, adam_learning_rate=1e-3, ns_dtype=jnp.bfloat16),
        "soap": lambda: gk.soap(1e-3),
        "soap, staggered": lambda: gk.soap(1e-3, stagger=True),
    }
    print(f"\n{problem.description}: forward, backward and update")
    seconds = timed({name: of(make()) for name, make in makers.items()}, min(3, ROUNDS.value))
    for name, t in seconds.items():
        share = f"{steps * batch * CONTEXT / t:12,.0f} tokens per second"
        row("model", f"width {width}", name, t / steps, ratio=t / seconds["adamw"], share=share)


def main(argv: list[str]) -> None:
    """Prints one line per method and library."""
    del argv
    if unknown := sorted(set(ONLY.value) - set(SECTIONS)):
        raise app.UsageError(f"--only: unknown {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    began = time.perf_counter()
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}, optax {optax.__version__}")
    if missing := torch_there():
        print(missing)
    if SMALL.value or device.platform == "cpu":
        print("small sizes, or no GPU: these figures say nothing about a GPU")
    for section in ONLY.value:
        {"elementwise": elementwise, "newton_schulz": newton_schulz, "refresh": refresh, "model": model}[section]()
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    app.run(main)
