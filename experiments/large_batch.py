"""Steps to target against batch size: do LARS and LAMB beat tuned generic optimizers here?

    python experiments/large_batch.py --devices=8 --mesh=data=8 --out=experiments/results/large_batch

Every method is tuned at every batch size with the same effort: a grid of learning rates whose centre follows the
method's scaling rule (linear in the batch for SGD and LARS, its root for methods that divide by a root of squares),
extended where the best rate is at its edge; with --judges its best rate is judged with more seeds than it was tuned
with. Rates are constant after a linear warm-up, so that a run may end as soon
as it has reached the target. Minibatches are drawn with replacement, cut over the data axes of the mesh, and computed
in microbatches where these are asked for; all rates and seeds of one batch size are one program, in which one run
follows the other, each on all devices.

Beside the curves stand the fit of McCandlish et al. (2018), (S / S_min - 1) (E / E_min - 1) = 1, and the gradient noise
scale measured along a run. OUT.txt is the table, OUT.png the picture; OUT.jsonl keeps what is known, and the same
command goes on from there. On several hosts the same command runs on each, with --coordinator (and, where the cluster
does not tell, --num_processes and --process_id).
"""

import contextlib
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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import gradkit as gk
from gradkit.diagnostics import critical_batch_size, fit_steps_examples, gradient_noise_scale
from gradkit.diagnostics.gradient_noise_scale import from_moments
from gradkit.gradients import gradient_moments
from gradkit.parallel import batch_sharding, make_mesh
from gradkit.training import methods as race_methods
from gradkit.training import processes, run
from gradkit.training.scoring import best_point, steps_or_infinity
from gradkit.workloads import Workload, load

FLAGS = flags.FLAGS
flags.DEFINE_list("workloads", ["digits_cnn", "bytelm"], "problems")
flags.DEFINE_list("batches", ["32", "128", "512", "1440"], "batch sizes; the smallest is where rates are centred")
flags.DEFINE_integer("global_batch", None, "one batch size instead", lower_bound=1)
flags.DEFINE_integer("microbatch", None, "examples that are computed at once, on all devices together", lower_bound=1)
flags.DEFINE_list("methods", [], "these methods alone")
flags.DEFINE_integer("rates", 5, "learning rates per method and batch size", lower_bound=2)
flags.DEFINE_float("decades", 0.8, "decades the rates reach to each side of the centre")
flags.DEFINE_integer("extensions", 2, "how often two rates may be added where the best is at the edge", lower_bound=0)
flags.DEFINE_integer("seeds", 3, "seeds per learning rate", lower_bound=1)
flags.DEFINE_integer("judges", None, "seeds at the best rate, where more. Default: the same", lower_bound=1)
flags.DEFINE_integer("examples", 200_000, "examples a run may see before it counts as a miss", lower_bound=1)
flags.DEFINE_integer("most_steps", 600, "and steps it may take", lower_bound=1)
flags.DEFINE_integer("eval_every", 5, "steps between evaluations", lower_bound=1)
flags.DEFINE_list("targets", [], "WORKLOAD=NUMBER: other targets than those of the workloads")
flags.DEFINE_string("mesh", None, "axes of the mesh, as data=4,fsdp=2; examples are cut over both. Default: one device")
flags.DEFINE_integer("devices", None, "virtual devices, on CPU", lower_bound=1)
flags.DEFINE_string("coordinator", None, "host:port of process 0, or auto; starts several processes")
flags.DEFINE_integer("num_processes", None, "how many there are")
flags.DEFINE_integer("process_id", None, "which one this is")
flags.DEFINE_string("out", "large_batch", "what the files are called, without their endings")

WARMUP = 0.05  # of the steps that a run may take
PARTS = 8  # of a minibatch, for variance reduction and the noise scale


class Contestant(NamedTuple):
    """One method.

    Attributes:
      make: learning rate -> transformation.
      centre: of its grid, at the smallest batch.
      power: how the centre grows with the batch: 1 linear, 0.5 its root.
      moments: whether it is handed the moments of the gradient over parts of the minibatch.
    """

    make: Callable[[Any], optax.GradientTransformation]
    centre: float
    power: float
    moments: bool = False


CONTESTANTS = {
    "nesterov": Contestant(lambda rate: gk.sgd(rate, momentum=0.9, nesterov=True), 0.05, 1.0),
    "adamw": Contestant(gk.adamw, 3e-3, 0.5),
    "lars": Contestant(race_methods.find("lars").make, 0.5, 1.0),
    "lamb": Contestant(gk.lamb, 2e-2, 0.5),
    "novograd": Contestant(gk.novograd, 2e-2, 0.5),
    "vr_lamb": Contestant(gk.vr_lamb, 2e-2, 0.5, moments=True),
}


class Setting(NamedTuple):
    """One batch size on one problem."""

    problem: Workload
    mesh: Mesh
    microbatches: int
    steps: int
    target: float


def setting(workload: str, batch: int, mesh: Mesh) -> Setting:
    """Loads a problem at a batch size; refuses one that cannot be cut."""
    problem = load(workload, batch_size=batch)
    microbatches = -(-batch // FLAGS.microbatch) if FLAGS.microbatch else 1
    ways = mesh.size // batch_sharding(mesh).shard_shape((mesh.size,))[0]
    if batch % (microbatches * ways) or batch % PARTS:
        raise app.UsageError(
            f"batch {batch} is no multiple of {microbatches} microbatches x {ways} devices and of {PARTS} parts"
        )
    every = FLAGS.eval_every
    steps = max(every, min(FLAGS.most_steps, FLAGS.examples // batch) // every * every)
    targets = dict(entry.split("=", 1) for entry in FLAGS.targets)
    return Setting(problem, mesh, microbatches, steps, float(targets.get(workload, problem.target)))


def warmed(rate: Any, steps: int) -> Callable[[jax.Array], jax.Array]:
    """A linear warm-up, then the rate itself. The rate may be traced."""
    warm = max(1, round(WARMUP * steps))
    return lambda count: rate * jnp.minimum((count.astype(jnp.float32) + 1) / warm, 1)


def step_of(here: Setting, tx: optax.GradientTransformation, moments: bool) -> Callable[[run.Run], run.Run]:
    """One training step."""
    lies = batch_sharding(here.mesh)

    def place(batch: Any) -> Any:
        return jax.lax.with_sharding_constraint(batch, lies)

    parts = max(here.microbatches, PARTS) if moments else here.microbatches
    plain = run.step_function(here.problem, tx, microbatches=parts, place=place)
    return lambda state: plain(state)[0]


def swept(here: Setting, method: Contestant, rates: np.ndarray, of: range) -> tuple[np.ndarray, np.ndarray]:
    """Steps to target of these seeds, (rates, seeds), infinity for a miss; and the last metric of each run.

    All runs go on together until none can still be the best: until some rate has brought all seeds to the target.
    """
    everywhere = NamedSharding(here.mesh, PartitionSpec())
    seeds, points = jnp.asarray(of, jnp.uint32), jnp.asarray(rates, jnp.float32)

    def begin(rate: jax.Array, seed: jax.Array) -> run.Run:
        return run.start(run.first_params(here.problem, seed), method.make(warmed(rate, here.steps)), seed)

    def go_on(rate: jax.Array, state: run.Run) -> tuple[run.Run, jax.Array]:
        step = step_of(here, method.make(warmed(rate, here.steps)), method.moments)
        state, _ = jax.lax.scan(lambda state, _: (step(state), None), state, None, FLAGS.eval_every)
        return state, here.problem.metric(gk.eval_params(state.opt_state, state.params))

    runs = [x.reshape(-1) for x in jnp.meshgrid(points, seeds, indexing="ij")]
    start = jax.jit(lambda runs: jax.lax.map(lambda one: begin(*one), runs), out_shardings=everywhere)
    piece = jax.jit(
        lambda rates, states: jax.lax.map(lambda one: go_on(*one), (rates, states)),
        donate_argnums=1,
        out_shardings=everywhere,
    )
    state, curves = start(runs), []
    for _ in range(here.steps // FLAGS.eval_every):
        state, metric = jax.block_until_ready(piece(runs[0], state))
        curves.append(np.asarray(metric).reshape(len(rates), -1))
        reached = (np.stack(curves) <= here.target).any(0)
        if reached.all(-1).any() or not np.isfinite(curves[-1]).any():
            break
    stacked = np.stack(curves, -1)
    at = FLAGS.eval_every * np.arange(1, len(curves) + 1)
    return steps_or_infinity(stacked, at, here.target), stacked[..., -1]


def tuned(here: Setting, method: Contestant, centre: float) -> dict[str, Any]:
    """The best rate, and what it needs."""
    ratio = 10.0 ** (2 * FLAGS.decades / (FLAGS.rates - 1))
    rates = centre * ratio ** (np.arange(FLAGS.rates) - (FLAGS.rates - 1) / 2)
    tuning = range(FLAGS.seeds)
    steps, finals = swept(here, method, rates, tuning)
    for _ in range(FLAGS.extensions):
        # Where nothing arrives, the scaling rule has led too far.
        best = best_point(steps, finals) if np.isfinite(steps).any() else 0
        if best not in (0, len(rates) - 1):
            break
        more = rates[0] / ratio ** np.array([2.0, 1.0]) if best == 0 else rates[-1] * ratio ** np.array([1.0, 2.0])
        found = swept(here, method, more, tuning)
        order = np.argsort(np.concatenate([rates, more]))
        rates = np.concatenate([rates, more])[order]
        steps, finals = (np.concatenate([a, b])[order] for a, b in zip((steps, finals), found, strict=True))
    best = best_point(steps, finals)
    judged, last = steps[best], finals[best]
    if FLAGS.judges is not None and FLAGS.judges > FLAGS.seeds and np.isfinite(judged).any():
        found = swept(here, method, rates[best : best + 1], range(FLAGS.seeds, FLAGS.judges))
        judged, last = (np.concatenate([a, b[0]]) for a, b in zip((judged, last), found, strict=True))
    return {
        "rate": float(rates[best]),
        "steps": float(np.median(judged)),
        "low": float(judged.min()),
        "high": float(judged.max()),
        "misses": int(np.isinf(judged).sum()),
        "final": float(np.median(last)),
        "at_edge": best in (0, len(rates) - 1),
        "tried": len(rates),
    }


def noise_scale(here: Setting) -> float:
    """The gradient noise scale at the end of a run of AdamW at its centre."""
    method, batch = CONTESTANTS["adamw"], here.problem.batch_size
    assert batch is not None
    meter = gradient_noise_scale(batch_small=batch // PARTS, batch_big=batch, decay=0.98)
    tx = method.make(warmed(method.centre, here.steps))
    step, source = step_of(here, tx, False), gradient_moments(here.problem.loss, PARTS)

    def one(carry: tuple[run.Run, Any], _: None) -> tuple[tuple[run.Run, Any], jax.Array]:
        state, measured = carry
        batch = here.problem.batch(jax.random.fold_in(state.key, state.step))
        _, parts = source(state.params, batch)
        estimate, measured = meter.update(measured, **from_moments(parts))
        return (step(state), measured), estimate.noise_scale

    @jax.jit
    def whole() -> jax.Array:
        seed = jnp.zeros((), jnp.uint32)
        state = run.start(run.first_params(here.problem, seed), tx, seed)
        return jax.lax.scan(one, (state, meter.init()), None, here.steps)[1][-1]

    return float(whole())


def table(rows: list[dict[str, Any]], workload: str, batches: list[int]) -> str:
    """Median steps to target (lowest to highest over seeds) of every method at every batch size."""
    own = [row for row in rows if row["workload"] == workload]
    known = {(row["method"], row["batch"]): row for row in own if row["method"] != "noise scale"}

    def cell(row: dict[str, Any] | None) -> str:
        if row is None:
            return "-"
        mark = "*" if row["at_edge"] else ""
        if not np.isfinite(row["steps"]):
            return f"miss ({row['final']:.3g}){mark}"
        high = f"{row['high']:.0f}" if np.isfinite(row["high"]) else "miss"
        return f"{row['steps']:.0f} ({row['low']:.0f}..{high}){mark}"

    head = ["batch", *(str(batch) for batch in batches), "S_min", "B_crit"]
    lines = [head]
    for name in CONTESTANTS:
        points = [known.get((name, batch)) for batch in batches]
        if any(points):
            fit = fitted(points, batches)
            lines.append([name, *map(cell, points), *(["-", "-"] if fit is None else [f"{x:.3g}" for x in fit])])
    noise = {row["batch"]: row["noise"] for row in own if row["method"] == "noise scale"}
    if noise:
        lines.append(["noise scale", *(f"{noise[b]:.3g}" if b in noise else "-" for b in batches), "", ""])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    goal = own[0]["target"]
    return "\n".join([f"{workload}: steps to {load(workload).metric_name} <= {goal:g}", *text])


def fitted(points: list[dict[str, Any] | None], batches: list[int]) -> tuple[float, float] | None:
    """S_min and the critical batch size of one method, where its runs determine them."""
    pairs = [
        (p["steps"], p["steps"] * b) for p, b in zip(points, batches, strict=True) if p and np.isfinite(p["steps"])
    ]
    try:
        fit = fit_steps_examples(*map(np.array, zip(*pairs, strict=True)))
    except (ValueError, TypeError):
        return None
    critical = float(critical_batch_size(*fit))
    # Where more examples bought nothing at all, the runs say nothing of the batch below which they would.
    return None if critical < 1 else (fit.min_steps, critical)


def picture(rows: list[dict[str, Any]], workloads: list[str], batches: list[int], path: pathlib.Path) -> None:
    """One panel per problem: steps against batch, both logarithmic, with the line of perfect scaling."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(workloads), figsize=(6.4 * len(workloads), 4.8), squeeze=False)
    marks = itertools.cycle("osD^vP")
    styles = {name: (f"C{i}", next(marks)) for i, name in enumerate(CONTESTANTS)}
    for axis, workload in zip(axes[0], workloads, strict=True):
        own = [row for row in rows if row["workload"] == workload]
        firsts = []
        for name, (colour, mark) in styles.items():
            points = sorted((r["batch"], r["steps"]) for r in own if r["method"] == name and np.isfinite(r["steps"]))
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, marker=mark, label=name, linewidth=1.5)
                firsts.append(points[0][1] * points[0][0])
        if firsts:
            ideal = min(firsts) / np.array(batches, float)
            axis.plot(batches, ideal, "k--", linewidth=1, label="perfect scaling")
        noise = [row["noise"] for row in own if row["method"] == "noise scale" and np.isfinite(row["noise"])]
        if noise:
            axis.axvline(np.median(noise), color="grey", linestyle=":", label="noise scale, measured")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set_xticks(batches, [str(batch) for batch in batches])
        axis.yaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
        axis.set_xlabel("batch size (examples)")
        axis.set_ylabel("steps to target (median)")
        axis.set_title(workload)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write(rows: list[dict[str, Any]], batches: list[int], mesh: Mesh, path: pathlib.Path) -> None:
    """The table and the picture of what is known so far."""
    shape = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    head = f"$ {shlex.join(['python', 'experiments/large_batch.py', *sys.argv[1:]])}\n{effort()}; mesh {shape}"
    workloads = [w for w in FLAGS.workloads if any(row["workload"] == w for row in rows)]
    note = "Median over seeds (lowest..highest) at the best rate; * best rate at the edge; miss (last metric)."
    text = "\n\n".join([f"{head}, jax {jax.__version__}", *(table(rows, w, batches) for w in workloads), note])
    path.with_suffix(".txt").write_text(text + "\n")
    if workloads:
        picture(rows, workloads, batches, path.with_suffix(".png"))


def effort() -> str:
    """What every method is given."""
    judges = f"judged with {FLAGS.judges}, " if FLAGS.judges is not None and FLAGS.judges > FLAGS.seeds else ""
    return (
        f"{FLAGS.rates} rates over {2 * FLAGS.decades:g} decades, {FLAGS.extensions} extensions, {FLAGS.seeds} seeds, "
        f"{judges}at most {FLAGS.examples} examples and {FLAGS.most_steps} steps"
    )


def experiment() -> None:
    """Measures what is not known yet."""
    mesh = make_mesh(FLAGS.mesh) if FLAGS.mesh else make_mesh("data=1", devices=jax.devices()[:1])
    batches = [FLAGS.global_batch] if FLAGS.global_batch else sorted(int(batch) for batch in FLAGS.batches)
    names = FLAGS.methods or list(CONTESTANTS)
    if unknown := set(names) - set(CONTESTANTS):
        raise app.UsageError(f"no method {', '.join(sorted(unknown))}; there are {', '.join(CONTESTANTS)}")
    path, first = pathlib.Path(FLAGS.out), jax.process_index() == 0
    record = path.with_suffix(".jsonl")
    rows = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    rows = [row for row in rows if row["effort"] == effort()]
    known = {(row["workload"], row["method"], row["batch"]) for row in rows}
    for workload, batch in itertools.product(FLAGS.workloads, batches):
        here = setting(workload, batch, mesh)
        for name in (*names, "noise scale"):
            if (workload, name, batch) in known:
                continue
            began = time.perf_counter()
            row = {"workload": workload, "method": name, "batch": batch, "effort": effort(), "target": here.target}
            if name == "noise scale":
                row |= {"noise": noise_scale(here)}
            else:
                method = CONTESTANTS[name]
                row |= tuned(here, method, method.centre * (batch / batches[0]) ** method.power)
            row["seconds"] = round(time.perf_counter() - began, 1)
            rows.append(row)
            if first:
                path.parent.mkdir(parents=True, exist_ok=True)
                with record.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                write(rows, batches, mesh, path)
                print(*(f"{key}={value}" for key, value in row.items() if key != "effort"), flush=True)
    if first:
        write(rows, batches, mesh, path)
        print(path.with_suffix(".txt").read_text())


def main(argv: list[str]) -> None:
    """Joins the other processes, if there are any, and measures."""
    if argv[1:]:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    if FLAGS.devices is not None:
        processes.virtual_devices(FLAGS.devices)
    several = contextlib.nullcontext()
    if FLAGS.coordinator is not None:
        several = processes.joined(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id, 100)
    with several:
        experiment()


if __name__ == "__main__":
    app.run(main)
