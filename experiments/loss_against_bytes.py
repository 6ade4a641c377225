"""What local updates and compressed exchanges cost in loss, and save in bytes: DiLoCo beside data-parallel AdamW.

    python experiments/loss_against_bytes.py --out=experiments/results/loss_against_bytes

W replicas train the byte-level language model on minibatches of their own, by DiLoCo with rounds of H steps, whose
pseudo-gradients are exchanged in float32, in int8, as their largest entries, or as factors of low rank; the last three
with error feedback. Data-parallel AdamW gets the same tokens, the minibatches of all replicas in every step. Everything
is tuned with the same effort, twice as many trials as the grid has rates: AdamW over the grid of learning rates and
over as many around the best of them; DiLoCo over the grid of outer learning rates, around AdamW at the best rate of its
grid and at a third of it, as a replica's minibatches are smaller, where the outer rates move to 0.3 or 1.5 times
theirs if the best was at that edge. The loss is the held-out one after the last step,
where a round ends.

Bytes are read from compiled programs on W devices: what one replica sends in a step that ends a round, times the number
of rounds; a step within a round must send nothing. OUT.jsonl keeps what is known, and the same command goes on from
there; OUT.txt is the table, OUT.png the picture.
"""

import functools
import itertools
import json
import pathlib
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit import parallel
from gradkit.training import processes
from gradkit.workloads import Workload, load

FLAGS = flags.FLAGS
flags.DEFINE_multi_integer("sync_every", [1, 10, 50, 200], "steps of a round, H; all divide the number of steps")
flags.DEFINE_multi_float("outer_rates", [0.1, 0.3, 0.7, 1.0], "outer learning rates of DiLoCo")
flags.DEFINE_multi_float("rates", [1e-3, 3e-3, 1e-2, 3e-2], "learning rates of AdamW, as many")
flags.DEFINE_integer("replicas", 4, "W", lower_bound=2)
flags.DEFINE_integer("batch", 4, "windows of 32 bytes per replica and step", lower_bound=1)
flags.DEFINE_integer("steps", 400, "of every replica", lower_bound=1)
flags.DEFINE_float("top_k", 0.05, "share of the entries that are sent")
flags.DEFINE_integer("rank", 4, "of the factors", lower_bound=1)
flags.DEFINE_float("minutes", None, "begin no other program after so many; the same command goes on")
flags.DEFINE_string("out", "loss_against_bytes", "what the files are called, without their endings")

WARMUP = 0.05  # of the steps
# Of AdamW's second trials: this to the power of these, around the best of the first.
SPREAD, NEAR = 3 ** (1 / 3), np.array([-2, -1, 1, 2, -0.5, 0.5, -1.5, 1.5])
COLOURS = {"f32": "C0", "int8": "C1", "top-k": "C2", "PowerSGD": "C3"}
EXCHANGES: dict[str, Callable[[], optax.GradientTransformation]] = {
    "f32": parallel.mean_compressor,
    "int8": lambda: parallel.error_feedback(parallel.int8_compressor()),
    "top-k": lambda: parallel.error_feedback(parallel.top_k_compressor(FLAGS.top_k)),
    "PowerSGD": lambda: parallel.powersgd(FLAGS.rank),
}
ADAMW = "data-parallel AdamW"


def scheduled(rate: Any) -> Callable[[jax.Array], jax.Array]:
    """A linear warm-up, then a cosine to a tenth of the rate, which may be traced."""
    warm = max(1, round(WARMUP * FLAGS.steps))

    def at(count: jax.Array) -> jax.Array:
        t = count.astype(jnp.float32)
        cosine = 0.55 + 0.45 * jnp.cos(jnp.pi * jnp.clip((t - warm) / (FLAGS.steps - warm), 0.0, 1.0))
        return rate * jnp.minimum((t + 1) / warm, 1.0) * cosine

    return at


def minibatches(problem: Workload, step: jax.Array) -> Any:
    """Those of all replicas, along a leading axis."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), step), FLAGS.replicas)
    return jax.vmap(problem.batch)(keys)


@functools.cache
def adamw_program(problem: Workload) -> Callable[..., jax.Array]:
    """Learning rates -> the losses after the last step."""

    def one(rate: jax.Array) -> jax.Array:
        tx = gk.adamw(scheduled(rate))
        params = problem.init(jax.random.key(0))

        def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
            params, state = carry
            batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), minibatches(problem, t))
            updates, state = tx.update(jax.grad(problem.loss)(params, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(FLAGS.steps))
        return problem.metric(params)

    return jax.jit(jax.vmap(one))


def diloco(exchange: str, rate: Any, outer_rate: Any) -> optax.GradientTransformationExtraArgs:
    """The strategy; its loop says when a round ends."""
    return parallel.diloco(
        gk.adamw(scheduled(rate)), sync_every=1, outer_learning_rate=outer_rate, exchange=EXCHANGES[exchange]()
    )


@functools.cache
def diloco_program(problem: Workload, exchange: str) -> Callable[..., jax.Array]:
    """(outer learning rates, learning rate, H) -> the losses after the last step: one program for all H."""

    def runs(outer_rates: jax.Array, rate: jax.Array, H: jax.Array) -> jax.Array:
        params = parallel.replicate(problem.init(jax.random.key(0)), FLAGS.replicas)

        def begin(outer_rate: jax.Array) -> Any:
            return params, jax.vmap(diloco(exchange, rate, outer_rate).init)(params)

        def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
            ends, batch = (t + 1) % H == 0, minibatches(problem, t)

            def own(outer_rate: jax.Array, params: Any, state: Any, batch: Any) -> Any:
                tx = diloco(exchange, rate, outer_rate)
                grads = jax.grad(problem.loss)(params, batch)
                # One number for all runs and replicas: a branch that is not taken within a round.
                updates, state = tx.update(grads, state, params, sync=ends)
                return optax.apply_updates(params, updates), state

            all_replicas = jax.vmap(own, in_axes=(None, 0, 0, 0), axis_name="replica")
            return jax.vmap(all_replicas, in_axes=(0, 0, 0, None))(outer_rates, *carry, batch), None

        (params, _), _ = jax.lax.scan(step, jax.vmap(begin)(outer_rates), jnp.arange(FLAGS.steps))
        return jax.vmap(lambda params: problem.metric(jax.tree.map(lambda x: x.mean(0), params)))(params)

    return jax.jit(runs)


@functools.cache
def sent_bytes(problem: Workload, exchange: str | None) -> float:
    """What one replica sends in a step that ends a round, read from the compiled program; None: of AdamW, in a step."""
    tx: Any = diloco(exchange, 1e-3, 0.7) if exchange else optax.chain(parallel.mean_compressor(), gk.adamw(1e-3))
    params = jax.eval_shape(problem.init, jax.random.key(0))
    state = jax.eval_shape(tx.init, params)
    mesh = parallel.make_mesh(f"replica={FLAGS.replicas}", devices=jax.devices()[: FLAGS.replicas])

    def ahead(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((FLAGS.replicas, *x.shape), x.dtype), tree)

    def moved(**told: Any) -> float:
        def here(*trees: Any) -> Any:
            params, state, grads = jax.tree.map(lambda x: x[0], trees)
            return jax.tree.map(lambda x: x[None], tx.update(grads, state, params, **told))

        program = jax.jit(jax.shard_map(here, mesh=mesh, in_specs=P("replica"), out_specs=P("replica")))
        compiled = program.lower(ahead(params), ahead(state), ahead(params)).compile()
        return sum(row.wire_bytes for row in parallel.collective_bytes(compiled))

    if exchange is None:
        return moved()
    if within := moved(sync=False):
        raise AssertionError(f"{exchange}: {within} bytes are sent within a round")
    return moved(sync=True)


def effort() -> str:
    return (
        f"{FLAGS.replicas} replicas, {FLAGS.steps} steps of {FLAGS.batch} x 32 bytes each; "
        f"{len(FLAGS.rates)} rates; top-k {FLAGS.top_k:g}, rank {FLAGS.rank}"
    )


class Best(NamedTuple):
    """The best trial of a cell: its loss, its rate (of DiLoCo the outer one, and that of AdamW in it), whether that is
    at the edge of the grid; the bytes of the run."""

    loss: float
    rate: float
    inner: float | None
    edge: bool
    bytes: float


def best(rows: list[dict[str, Any]]) -> Best:
    """Of the rows of one cell."""
    trials = [
        (loss, rate, row["inner"]) for row in rows for loss, rate in zip(row["losses"], row["rates"], strict=True)
    ]
    loss, rate, inner = min(trial for trial in trials if np.isfinite(trial[0]))
    tried = sorted(trial[1] for trial in trials)
    return Best(loss, rate, inner, rate in (tried[0], tried[-1]), rows[0]["bytes"])


def cells(rows: list[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """The rows of each cell, in their order."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["exchange"], row["sync_every"]), []).append(row)
    return found


def table(rows: list[dict[str, Any]]) -> list[str]:
    known = {name: best(own) for name, own in cells(rows).items()}

    def cell(name: str, H: int) -> str:
        if (name, H) not in known:
            return "-"
        found = known[name, H]
        inner = "" if found.inner is None else f", {found.inner:.2g}"
        return f"{found.loss:.3f} ({found.rate:.2g}{'*' if found.edge else ''}{inner}) {found.bytes / 1e6:.3g} MB"

    lines = [f"{ADAMW}: {cell(ADAMW, 1)}", ""]
    lines.append(f"{'DiLoCo, rounds of':<18}" + "".join(f"{H:>32}" for H in FLAGS.sync_every))
    for name in EXCHANGES:
        lines.append(f"{name:<18}" + "".join(f"{cell(name, H):>32}" for H in FLAGS.sync_every))
    return lines


def picture(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7.2, 4.8))
    known = {name: best(own) for name, own in cells(rows).items()}
    for (name, colour), mark in zip(COLOURS.items(), "osD^", strict=True):
        own = sorted((found.bytes, found.loss, H) for (exchange, H), found in known.items() if exchange == name)
        if own:
            axis.plot([x[0] for x in own], [x[1] for x in own], color=colour, marker=mark, label=f"DiLoCo, {name}")
            for sent, loss, H in own:
                axis.annotate(f"{H}", (sent, loss), textcoords="offset points", xytext=(4, 5), fontsize=7, color=colour)
    if (ADAMW, 1) in known:
        found = known[ADAMW, 1]
        axis.plot(found.bytes, found.loss, "k*", markersize=12, label=ADAMW)
        axis.axhline(found.loss, color="k", linestyle=":", linewidth=1)
    axis.set_xscale("log")
    axis.set_xlabel("bytes that one replica sends in the whole run; numbers: steps of a round")
    axis.set_ylabel("held-out loss (nats per byte), best of the trials")
    axis.set_title(f"{FLAGS.replicas} replicas, the same tokens for all")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    told = [argument for argument in sys.argv[1:] if not argument.startswith("--minutes")]
    lines = [
        f"$ {shlex.join(['python', 'experiments/loss_against_bytes.py', *told])}",
        f"{effort()}; {2 * len(FLAGS.rates)} trials of each; {sum(row['seconds'] for row in rows):.0f} s on "
        f"{jax.default_backend()}, jax {jax.__version__}",
        "",
        "Held-out loss of the best trial, in brackets its learning rate, of DiLoCo the outer one and that of AdamW in",
        "it; * the edge of the rates that were tried; and what one replica sends in the whole run.",
        "",
        *table(rows),
    ]
    path.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    picture(rows, path.with_suffix(".png"))


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    if len(FLAGS.rates) != len(FLAGS.outer_rates):
        raise app.UsageError("rates and outer_rates must be as many: all are tuned with the same effort")
    if bad := [H for H in FLAGS.sync_every if FLAGS.steps % H]:
        raise app.UsageError(f"steps must be a multiple of sync_every, got {FLAGS.steps} and {bad}")
    processes.virtual_devices(FLAGS.replicas)
    began, path = time.perf_counter(), pathlib.Path(FLAGS.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = path.with_suffix(".jsonl")
    rows = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    rows = [row for row in rows if row["effort"] == effort()]
    problem = load("bytelm", batch_size=FLAGS.batch)
    names: list[tuple[str, int]] = [(ADAMW, 1), *((name, H) for name in EXCHANGES for H in FLAGS.sync_every)]
    for part, (name, H) in itertools.product(range(2), names):
        known = cells(rows)
        if len(known.get((name, H), ())) > part:
            continue
        if FLAGS.minutes is not None and time.perf_counter() - began > 60 * FLAGS.minutes:
            print("the same command goes on from here", flush=True)
            return
        start = time.perf_counter()
        centre, inner = (best(known[ADAMW, 1][:1]).rate if rows else None), None
        if name == ADAMW:
            rates = FLAGS.rates if centre is None else (centre * SPREAD ** NEAR[: len(FLAGS.rates)]).tolist()
            sent, losses = sent_bytes(problem, None), adamw_program(problem)(jnp.asarray(rates, jnp.float32))
        else:
            assert centre is not None
            inner, rates = centre / 3**part, FLAGS.outer_rates
            if part and best(known[name, H]).edge:
                low = best(known[name, H]).rate == min(rates)
                rates = [rate * (0.3 if low else 1.5) for rate in rates]
            given = (jnp.asarray(rates, jnp.float32), jnp.float32(inner), jnp.int32(H))
            sent, losses = sent_bytes(problem, name), diloco_program(problem, name)(*given)
        row = {"exchange": name, "sync_every": H, "rates": list(rates), "inner": inner}
        row["losses"] = np.asarray(losses).tolist()
        row |= {"bytes_per_round": sent, "bytes": sent * FLAGS.steps / H, "effort": effort()}
        row["seconds"] = round(time.perf_counter() - start, 1)
        rows.append(row)
        with record.open("a") as file:
            file.write(json.dumps(row) + "\n")
        write(rows, path)
        print(*(f"{key}={value}" for key, value in row.items() if key != "effort"), flush=True)
    write(rows, path)


if __name__ == "__main__":
    app.run(main)
