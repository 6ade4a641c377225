"""The best learning rate is the same at four widths under the multipliers of muP, and falls without them.

    python experiments/mup_transfer.py --out=experiments/results/mup_transfer

The language model `bytelm` at widths 64 (the base), 128, 256 and 512, with heads of 16 features at every width, so that
attention scores need no multiplier. Adam, eps 1e-12, a linear warm-up over a tenth of the steps and a constant rate
after it; initial values by fan-in; rates are powers of two. "mup" is `gk.scale_by_width` with
`gk.mup_multipliers` from the two trees of shapes, `gk.mup_init`, and the readout's output multiplier; "standard" is the
same program with all multipliers 1. Both are the same model at width 64.

What is judged is the held-out loss after the last step, the mean over seeds; a run that is not finite counts as
infinite. The rates of one form are the same at all widths. OUT.jsonl keeps every run, and the same command goes on from
there; --minutes stops between two runs.
"""

import json
import pathlib
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from absl import app, flags

import gradkit as gk
from gradkit.training.report import style
from gradkit.workloads import Workload
from gradkit.workloads.bytelm import bytelm

FLAGS = flags.FLAGS
flags.DEFINE_list("widths", ["64", "128", "256", "512"], "widths; the first is the base")
flags.DEFINE_integer("steps", 100, "steps of a run", lower_bound=10)
flags.DEFINE_integer("batch_size", 8, "windows of 32 bytes in a minibatch", lower_bound=1)
flags.DEFINE_integer("seeds", 2, "seeds per rate", lower_bound=1)
flags.DEFINE_list("mup", ["-10", "-5"], "the smallest and the largest rate with multipliers, as powers of two")
flags.DEFINE_list("standard", ["-12", "-5"], "the same without")
flags.DEFINE_float("minutes", None, "when no further run is started", lower_bound=0.0)
flags.DEFINE_bool("table", False, "only write table and picture of what is known")
flags.DEFINE_string("out", "mup_transfer", "what the files are called, without their endings")

EFFORT = ("steps", "batch_size")
FORMS = ("mup", "standard")
TITLES = {"mup": "with multipliers", "standard": "without"}
Row = dict[str, Any]


def shapes_of(problem: Workload) -> Any:
    """The parameters of a model as shapes."""
    return jax.eval_shape(problem.init, jax.random.key(0))


def powers_of(form: str) -> range:
    """The rates of a form, as powers of two."""
    low, high = map(int, FLAGS[form].value)
    return range(low, high + 1)


def multipliers_of(form: str, base: int, width: int) -> Any:
    """A tree of `gk.Multipliers` for the model of a width."""
    shapes = shapes_of(bytelm(width=width))
    if form == "standard":
        return jax.tree.map(lambda _: gk.Multipliers(), shapes)
    return gk.mup_multipliers(shapes_of(bytelm(width=base)), shapes)


def runner(form: str, width: int) -> Callable[[int, float], float]:
    """(seed, rate) -> the held-out loss after a run; one program for all of them."""
    base, steps = int(FLAGS.widths[0]), FLAGS.steps
    m = multipliers_of(form, base, width)
    problem = bytelm(batch_size=FLAGS.batch_size, width=width, readout=m["head"]["kernel"].output)
    warm = max(1, steps // 10)

    def run(seed: jax.Array, rate: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(seed))
        schedule = gk.schedules.warmup(warm, rate, init_value=rate / warm) + gk.schedules.hold(steps)
        tx = gk.scale_by_width(gk.adam(schedule, eps=1e-12), m)
        params = gk.mup_init(problem.init(keys[0]), m)

        def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], None]:
            params, state = carry
            updates, state = tx.update(jax.grad(problem.loss)(params, problem.batch(key)), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(keys[1], steps))
        return problem.metric(params)

    compiled = jax.jit(run)
    return lambda seed, rate: float(compiled(jnp.asarray(seed, jnp.uint32), jnp.asarray(rate, jnp.float32)))


def losses(rows: list[Row], form: str, width: int) -> dict[int, float]:
    """Power of two of the rate -> the mean over seeds, of the rates of which all seeds are known."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if (row["form"], row["width"]) == (form, width):
            found.setdefault(row["power"], []).append(row["loss"] if np.isfinite(row["loss"]) else np.inf)
    return {power: float(np.mean(own)) for power, own in sorted(found.items()) if len(own) >= FLAGS.seeds}


def best(rows: list[Row], form: str, width: int) -> int | None:
    """The power of two of the best rate."""
    known = losses(rows, form, width)
    return min(known, key=lambda power: known[power]) if known else None


def table(rows: list[Row]) -> str:
    """Losses by rate, the best of every width, and how far it moves."""
    widths = [int(w) for w in FLAGS.widths]
    lines = []
    for form in FORMS:
        lines.append(f"{TITLES[form]}: held-out loss, nats per byte, by log2 of the learning rate")
        powers = powers_of(form)
        lines.append("width  " + "".join(f"{power:>8d}" for power in powers) + "    best")
        for width in widths:
            known = losses(rows, form, width)
            cells = "".join(f"{known[p]:8.3f}" if p in known else f"{'-':>8s}" for p in powers)
            lines.append(f"{width:5d}  {cells}{best(rows, form, width)!s:>8s}")
        found = [best(rows, form, width) for width in widths]
        own = [power for power in found if power is not None]
        if own:
            lines.append(f"the best rates differ by at most a factor of 2^{max(own) - min(own)}")
        lines.append("")
    return "\n".join(lines)


def draw(rows: list[Row], path: str) -> None:
    """The loss by rate at every width; a dot at the best."""
    with matplotlib.rc_context(style.RC):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.6, 4.2), layout="constrained", facecolor=style.PAPER)
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        everything = [x for form in FORMS for w in FLAGS.widths for x in losses(rows, form, int(w)).values()]
        finite = [x for x in everything if np.isfinite(x)]
        for axes, form in zip(panels, FORMS, strict=True):
            for i, width in enumerate(map(int, FLAGS.widths)):
                known = {power: x for power, x in losses(rows, form, width).items() if np.isfinite(x)}
                if not known:
                    continue
                axes.plot(list(known), list(known.values()), color=style.colour(i), label=f"width {width}")
                power = min(known, key=lambda power: known[power])
                axes.plot(power, known[power], "o", color=style.colour(i), markersize=8)
            axes.set_title(TITLES[form])
            axes.set_xlabel("log2 of the learning rate; dot: the best")
        if finite:
            panels[0].set_ylim(min(finite) - 0.05, max(finite) + 0.05)
        panels[0].set_ylabel(f"held-out loss after {FLAGS.steps} steps")
        panels[0].legend(frameon=False, loc="upper left")
        figure.savefig(path, dpi=120)


def write(rows: list[Row]) -> str:
    """Table and picture of what is known so far."""
    command = shlex.join(["python", "experiments/mup_transfer.py", *(x for x in sys.argv[1:] if x != "--table")])
    seconds = sum(row["seconds"] for row in rows)
    head = (
        f"$ {command}\nbytelm, Adam, {FLAGS.steps} steps of {FLAGS.batch_size} windows, {FLAGS.seeds} seeds; "
        f"{len(rows)} runs in {seconds / 60:.0f} minutes; jax {jax.__version__}, {jax.devices()[0].device_kind}"
    )
    text = f"{head}\n\n{table(rows)}"
    pathlib.Path(f"{FLAGS.out}.txt").write_text(text)
    draw(rows, f"{FLAGS.out}.png")
    return text


def main(argv: list[str]) -> None:
    """Runs what is not known yet."""
    if argv[1:]:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    record = pathlib.Path(f"{FLAGS.out}.jsonl")
    rows = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    rows = [row for row in rows if all(row[k] == FLAGS[k].value for k in EFFORT) and row["seed"] < FLAGS.seeds]
    began = time.perf_counter()
    for seed in range(FLAGS.seeds):
        for width in map(int, FLAGS.widths):
            for form in FORMS:
                known = {
                    row["power"] for row in rows if (row["form"], row["width"], row["seed"]) == (form, width, seed)
                }
                missing = [power for power in powers_of(form) if power not in known]
                run = runner(form, width)
                for power in () if FLAGS.table else missing:
                    if FLAGS.minutes is not None and time.perf_counter() - began > 60 * FLAGS.minutes:
                        break
                    start = time.perf_counter()
                    row = {"form": form, "width": width, "seed": seed, "power": power}
                    row |= {key: FLAGS[key].value for key in EFFORT}
                    row |= {"loss": run(seed, 2.0**power), "seconds": time.perf_counter() - start}
                    rows.append(row)
                    with record.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(row, flush=True)
    print(write(rows))


if __name__ == "__main__":
    app.run(main)
