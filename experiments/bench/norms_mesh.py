"""What methods with norms move between devices in one step, beside optax's, read from compiled programs.

    python experiments/bench/norms_mesh.py [--only=lars,lamb] [--axes=explicit]

The tree: a plain transformer of 12 layers, width 512, in 192 leaves, each cut along its longest side over 8 virtual
CPU devices. One step is update and apply_updates, jitted, parameters and state donated. Nothing is allocated and
nothing runs. A row: the number of all-reduces and the kilobytes of their results on a device; other collectives, if
there are any; seconds to trace and to compile.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from absl import app, flags
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import gradkit as gk
from gradkit.parallel import collective_bytes, state_shardings

ONLY = flags.DEFINE_list("only", [], "Names of methods; all by default.")
AXES = flags.DEFINE_enum("axes", "auto", ["auto", "explicit"], "The type of the mesh axes.")


def transformer(layers: int = 12, d: int = 512, ff: int = 2048) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(layers):
        for name in "qkvo":
            shapes |= {f"{i}/{name}/kernel": (d, d), f"{i}/{name}/bias": (d,)}
        shapes |= {f"{i}/up/kernel": (d, ff), f"{i}/up/bias": (ff,)}
        shapes |= {f"{i}/down/kernel": (ff, d), f"{i}/down/bias": (d,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"{i}/{name}/scale": (d,), f"{i}/{name}/bias": (d,)}
    return shapes


def clipped(tx: optax.GradientTransformation, clip: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(clip, tx)


CASES: dict[str, Callable[[], optax.GradientTransformation]] = {
    "optax lars": lambda: optax.lars(1e-3),
    "lars": lambda: gk.lars(1e-3),
    "larc": lambda: gk.larc(1e-3),
    "optax lamb": lambda: optax.lamb(1e-3),
    "lamb": lambda: gk.lamb(1e-3),
    "lamb, clipped": lambda: gk.lamb(1e-3, max_norm=1.0),
    "optax clip + adamw": lambda: clipped(optax.adamw(1e-3), optax.clip_by_global_norm(1.0)),
    "clip + adamw": lambda: clipped(gk.adamw(1e-3), gk.clip_by_global_norm(1.0)),
    "optax novograd": lambda: optax.novograd(1e-3),
    "novograd": lambda: gk.novograd(1e-3),
    "optax agc": lambda: clipped(optax.sgd(1e-3), optax.adaptive_grad_clip(0.01)),
    "agc": lambda: clipped(gk.sgd(1e-3), gk.adaptive_grad_clip(0.01)),
    "perpgrad": lambda: clipped(gk.adamw(1e-3), gk.perpgrad()),
    "sgdp": lambda: gk.sgdp(1e-3, momentum=0.9),
    "adamp": lambda: gk.adamp(1e-3),
}


def main(argv: list[str]) -> None:
    del argv
    names = ONLY.value or list(CASES)
    if unknown := sorted(set(names) - set(CASES)):
        sys.exit(f"--only: unknown {', '.join(unknown)}; there are {', '.join(CASES)}")
    kind = AxisType.Auto if AXES.value == "auto" else AxisType.Explicit
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(kind,))
    params = {}
    for name, shape in transformer().items():
        spec = PartitionSpec(*["fsdp" if i == np.argmax(shape) else None for i in range(len(shape))])
        params[name] = jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(mesh, spec))
    size = sum(p.size for p in params.values()) / 1e6
    print(f"{size:.1f} M parameters, {len(params)} leaves, {mesh.size} devices, {AXES.value} axes")
    print(f"{'method':<20}{'all-reduces':>12}{'KB':>8}{'trace s':>9}{'compile s':>11}  others")
    for name in names:
        report(name, CASES[name](), params, mesh)


def report(name: str, tx: optax.GradientTransformation, params: dict[str, jax.ShapeDtypeStruct], mesh: Mesh) -> None:
    """Prints the row of one method."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(mesh):
        shardings = state_shardings(tx, params)
        state = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), jax.eval_shape(tx.init, params), shardings
        )
        out = (jax.tree.map(lambda x: x.sharding, params), shardings)
        start = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=(0, 1), out_shardings=out).lower(params, state, params)
        traced = time.perf_counter()
        rows = collective_bytes(lowered.compile())
        compiled = time.perf_counter()
    sums = [row.result_bytes for row in rows if row.opcode == "all-reduce"]
    others = sorted(row.opcode for row in rows if row.opcode != "all-reduce")
    seconds = f"{traced - start:>9.1f}{compiled - traced:>11.1f}"
    listed = ", ".join(f"{others.count(o)} {o}" for o in sorted(set(others)))
    print(f"{name:<20}{len(sums):>12}{sum(sums) / 1e3:>8.1f}{seconds}  {listed}".rstrip(), flush=True)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    app.run(main)
