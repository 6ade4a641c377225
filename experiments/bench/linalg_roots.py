"""Error and cost of every solver of `gk.linalg.inverse_root`, and of `gk.linalg.eigenbasis`.

    python experiments/bench/linalg_roots.py [--d=64] [--batch=8] [--rounds=5]

Spectra: `random` uniform in [0.1, 3]; `deficient` a quarter of them, the others zero; `1e12` from 1 to 1e-12 in equal
ratios; `zero`. Errors are |X - (A + eps I)^(-1/4)|_F over the norm of the latter, from an eigenvalue decomposition in
float64 NumPy with negative eigenvalues taken for zero; `nan` is a root that is refused. Milliseconds are the best of
the rounds for one batch of equal matrices, on the processor this runs on, where products have no advantage; iterations
are the least number after which the root is that of 100.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import gradkit as gk

D = flags.DEFINE_integer("d", 64, "Rows.", lower_bound=4)
BATCH = flags.DEFINE_integer("batch", 8, "Matrices.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds.", lower_bound=1)

SOLVERS = ("eigh", "coupled_newton", "higher_order")


def spectra(d: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    random = rng.uniform(0.1, 3, d)
    deficient = np.where(np.arange(d) < d // 4, random, 0)
    return {"random": random, "deficient": deficient, "1e12": np.logspace(0, -12, d), "zero": np.zeros(d)}


def matrices(values: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
    Q = np.linalg.qr(rng.standard_normal((batch, len(values), len(values))))[0]
    A = (Q * values) @ Q.transpose(0, 2, 1)
    return (A + A.transpose(0, 2, 1)) / 2


def reference(A: np.ndarray, eps: float) -> np.ndarray:
    values, Q = np.linalg.eigh(A)
    return (Q * (np.maximum(values, 0)[:, None, :] + eps) ** -0.25) @ Q.transpose(0, 2, 1)


def timed(function: Callable[[Any], Any], x: Any) -> tuple[Any, float]:
    """The result, and the milliseconds of the fastest round."""
    compiled = jax.jit(function).lower(x).compile()
    out, best = jax.block_until_ready(compiled(x)), float("inf")
    for _ in range(ROUNDS.value):
        start = time.perf_counter()
        jax.block_until_ready(compiled(x))
        best = min(best, time.perf_counter() - start)
    return out, 1e3 * best


def iterations(A: Any, eps: float, solver: str) -> str:
    """The least number of iterations that gives the root of 100."""
    if solver == "eigh":
        return "-"
    root = jax.jit(partial(gk.linalg.inverse_root, p=4, eps=eps, method=solver), static_argnames="max_iters")
    last, low, high = np.asarray(root(A)), 1, 100
    while low < high:
        middle = (low + high) // 2
        same = np.array_equal(np.asarray(root(A, max_iters=middle)), last, equal_nan=True)
        low, high = (low, middle) if same else (middle + 1, high)
    return str(low)


def main(argv: list[str]) -> None:
    del argv
    rng = np.random.default_rng(0)
    cores = f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"
    print(f"{BATCH.value} matrices of {D.value} x {D.value}, p = 4; {jax.devices()[0].device_kind}, {cores}\n")
    print(f"{'dtype':<9}{'eps':>7}  {'spectrum':<11}{'solver':<16}{'error':>9}{'iterations':>12}{'ms':>9}")
    for dtype in (np.float32, np.float64):
        for eps in (1e-12, 1e-6, 1e-3):
            for name, values in spectra(D.value, rng).items():
                wide = matrices(values, BATCH.value, rng)
                want, A = reference(wide, eps), jnp.asarray(wide, dtype)
                for solver in SOLVERS:
                    X, ms = timed(partial(gk.linalg.inverse_root, p=4, eps=eps, method=solver), A)
                    error = np.linalg.norm(np.asarray(X, np.float64) - want) / np.linalg.norm(want)
                    print(
                        f"{np.dtype(dtype).name:<9}{eps:>7.0e}  {name:<11}{solver:<16}{error:>9.1e}"
                        f"{iterations(A, eps, solver):>12}{ms:>9.2f}",
                        flush=True,
                    )
    print("\neigenbasis: departure of Q^T Q from I, and the part of Q^T A Q off its diagonal over the norm of A")
    A = jnp.asarray(matrices(spectra(D.value, rng)["random"], BATCH.value, rng), jnp.float32)
    basis, ms = timed(gk.linalg.eigenbasis, A)
    warm, warm_ms = timed(lambda A: gk.linalg.eigenbasis(A, basis.vectors, method="qr"), A)
    for name, Q, cost in (("eigh", basis.vectors, ms), ("qr from it", warm.vectors, warm_ms)):
        Q, a = np.asarray(Q, np.float64), np.asarray(A, np.float64)
        turned = Q.transpose(0, 2, 1) @ a @ Q
        off = turned * (1 - np.eye(D.value))
        apart = np.abs(Q.transpose(0, 2, 1) @ Q - np.eye(D.value)).max()
        print(f"{name:<12}{apart:>9.1e}{np.linalg.norm(off) / np.linalg.norm(a):>9.1e}{cost:>9.2f} ms")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    app.run(main)
