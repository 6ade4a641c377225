"""What spreading matrix work over a mesh costs: operations, exchanges and compile time, read from compiled programs.

    python experiments/bench/matrix_mesh.py [--only=replicated,rows,columns,tree,leaves,speed] [--rounds=9] [--peer]

Eight virtual CPU devices. Operations are those of the whole step per device, as the compiler counts them with the
loop over a stack taken out (it counts the body of a loop once), over one eighth of the Newton-Schulz operations of one
device (20 n^2 m + 10 n^3 per n x m matrix). Bytes are per device and step: what it holds afterwards, and what it sends
in a ring. `speed` is one device: the ratio is the median over interleaved rounds of (optax.contrib.muon / gradkit),
where 2 means twice as fast; of wall time, and of processor time, which other work on the machine disturbs less. The
share is of the rate of a 1024 x 1024 float32 product of jax in the same rounds (best of rounds; operations of the plain
iteration, so that "gram", which needs fewer, may pass 1).
`--peer` counts optax on the meshes too, which compiles for minutes.
"""

import importlib
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from absl import app, flags
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradkit as gk
from gradkit.engine.placement import flops
from gradkit.leaves import default_layout
from gradkit.parallel import collective_bytes

CASES = ("replicated", "rows", "columns", "tree", "leaves", "speed")
ONLY = flags.DEFINE_list("only", list(CASES), "Which parts.")
ROUNDS = flags.DEFINE_integer("rounds", 9, "Interleaved rounds.", lower_bound=3)
PEER = flags.DEFINE_bool("peer", False, "Count optax.contrib.muon on the meshes too.")

DEVICES = 8
SIDE = 1024
SQUARE = {f"{i:02d}/kernel": (256, 256) for i in range(48)}
SMALL = {f"{i:03d}/kernel": (64, 64) for i in range(224)}
MIXED = {f"{i:02d}/kernel": s for i, s in enumerate([*[(256, 256)] * 4, (256, 1024), (1024, 256)] * 12)}
# The loop over the matrices of a stack is an option of this module alone.
orthogonalize = importlib.import_module("gradkit.linalg.orthogonalize")


def transformer(layers: int = 12, d: int = 512, ff: int = 2048) -> dict[str, tuple[int, ...]]:
    """Name -> shape: 38 million parameters in 192 leaves."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(layers):
        matrices = {**dict.fromkeys("qkvo", (d, d)), "up": (d, ff), "down": (ff, d)}
        for name, shape in matrices.items():
            shapes |= {f"{i:02d}/{name}/kernel": shape, f"{i:02d}/{name}/bias": shape[-1:]}
        for name in ("norm1", "norm2"):
            shapes |= {f"{i:02d}/{name}/scale": (d,), f"{i:02d}/{name}/bias": (d,)}
    return shapes


def longest(shape: tuple[int, ...]) -> PartitionSpec:
    side = int(np.argmax(shape))
    return PartitionSpec(*["x" if i == side else None for i in range(len(shape))])


def ideal(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(flops(*s) for s in shapes.values() if len(s) == 2)


def step_of(tx: optax.GradientTransformation) -> Callable[..., Any]:
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def lowered(tx: optax.GradientTransformation, shapes: dict[str, Any], specs: Any, mesh: Any) -> Any:
    there = {k: jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, specs[k])) for k, s in shapes.items()}
    state = gk.parallel.init_sharded(tx, there)
    return step_of(tx).lower(there, state, there)


def mesh_case(name: str, shapes: dict[str, tuple[int, ...]], specs: dict[str, PartitionSpec]) -> None:
    mesh = jax.make_mesh((DEVICES,), ("x",), axis_types=(AxisType.Auto,))
    transformations = {"gradkit": gk.muon(0.02, shard=gk.MatrixSharding(mesh, "x", specs=specs))}
    if PEER.value:
        transformations["optax"] = optax.contrib.muon(0.02)
    for who, tx in transformations.items():
        start = time.perf_counter()
        program = lowered(tx, shapes, specs, mesh).compile()
        seconds = time.perf_counter() - start
        loop, orthogonalize.LOOP_FROM = orthogonalize.LOOP_FROM, float("inf")
        jax.clear_caches()
        counted = lowered(tx, shapes, specs, mesh).compile().cost_analysis()["flops"]
        orthogonalize.LOOP_FROM = loop
        jax.clear_caches()
        rows = collective_bytes(program)
        kinds = ", ".join(f"{n} {opcode}" for opcode, n in Counter(row.opcode for row in rows).items()) or "none"
        held = sum(row.result_bytes for row in rows)
        sent = sum(row.wire_bytes for row in rows)
        share = counted / (ideal(shapes) / DEVICES)
        print(
            f"{name:<12}{who:<9}{counted / 1e9:>9.3f}{share:>9.3f}   {kinds:<34}{held / 2**20:>9.2f}{sent / 1e6:>9.2f}"
            f"{seconds:>9.2f}",
            flush=True,
        )


def leaves_case() -> None:
    shapes = {f"{i:03d}/kernel": (64, 64) for i in range(300)}
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    for who, tx in (("gradkit", gk.muon(0.02)), ("optax", optax.contrib.muon(0.02))):
        state = jax.eval_shape(tx.init, params)
        jax.clear_caches()
        start = time.perf_counter()
        low = step_of(tx).lower(params, state, params)
        middle, busy = time.perf_counter(), time.process_time()
        low.compile()
        end, busy = time.perf_counter(), time.process_time() - busy
        print(
            f"300 of 64x64 {who:<9} trace {middle - start:6.2f} s   compile {end - middle:6.2f} s, of processor time "
            f"{busy:6.2f} s",
            flush=True,
        )


def runner(tx: optax.GradientTransformation, shapes: dict[str, tuple[int, ...]]) -> Callable[[], None]:
    rng = np.random.default_rng(0)
    params, grads = (
        {k: jnp.asarray(0.02 * rng.standard_normal(s), jnp.float32) for k, s in shapes.items()} for _ in range(2)
    )
    box = [params, jax.jit(tx.init)(params)]
    compiled = step_of(tx).lower(*box, grads).compile()

    def run() -> None:
        box[0], box[1] = jax.block_until_ready(compiled(*box, grads))

    return run


def product_runner() -> Callable[[], None]:
    x = jnp.full((SIDE, SIDE), 1 / SIDE)
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(x, x))


def speed_case(name: str, shapes: dict[str, tuple[int, ...]], **options: Any) -> None:
    runs = [runner(optax.contrib.muon(0.02), shapes), runner(gk.muon(0.02, **options), shapes), product_runner()]
    wall: list[list[float]] = [[], [], []]
    processor: list[list[float]] = [[], [], []]
    for i in range(ROUNDS.value + 1):
        for who, run in enumerate(runs):
            start, busy = time.perf_counter(), time.process_time()
            run()
            if i:
                wall[who].append(time.perf_counter() - start)
                processor[who].append(time.process_time() - busy)
    peer, ours, product = (1e3 * min(column) for column in wall)
    ratio, busy = (statistics.median(a / b for a, b in zip(*pair[:2], strict=True)) for pair in (wall, processor))
    peak = 2 * SIDE**3 / product
    shares = (ideal(shapes) / peak / t for t in (peer, ours))
    print(
        f"{name:<29} best: optax {peer:7.1f} ms, gradkit {ours:7.1f} ms   ratio of wall {ratio:5.2f}, "
        f"of processor time {busy:5.2f}   of {peak / 1e6:.0f} GFLOP/s: "
        + ", ".join(f"{who} {share:.2f}" for who, share in zip(("optax", "gradkit"), shares, strict=True)),
        flush=True,
    )


def main(argv: list[str]) -> None:
    del argv
    chosen = set(ONLY.value)
    if unknown := chosen - set(CASES):
        raise SystemExit(f"--only: unknown {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} at the start", flush=True)
    tree = transformer()
    assert all(default_layout(k, s).role in ("matrix", "vector") for k, s in tree.items())
    places = {
        "replicated": (SQUARE, PartitionSpec()),
        "rows": (SQUARE, PartitionSpec("x", None)),
        "columns": (SQUARE, PartitionSpec(None, "x")),
        "tree": (tree, None),
    }
    if chosen & set(places):
        print(
            f"{'parameters':<12}{'':<9}{'GFLOP':>9}{'share':>9}   {'collectives':<34}{'MiB':>9}{'MB sent':>9}{'s':>9}"
        )
    for name, (shapes, spec) in places.items():
        if name in chosen:
            mesh_case(name, shapes, {k: longest(s) if spec is None else spec for k, s in shapes.items()})
    if "leaves" in chosen:
        leaves_case()
    if "speed" in chosen:
        speed_case("48 of 256x256", SQUARE)
        speed_case("224 of 64x64", SMALL)
        speed_case("48 of 256^2, 24 of 256x1024", MIXED)
        speed_case("the same, gram", MIXED, method="gram")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    app.run(main)
