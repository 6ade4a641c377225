"""What the records of today are worth against AdamW, all tuned with the same effort: steps, seconds and state.

    python experiments/record_race.py --workload=bytelm --out=experiments/results/record_race_bytelm
    python experiments/record_race.py --workload=autoencoder --out=experiments/results/record_race_autoencoder

The protocol, fixed before any result was seen:

- Problems: bytelm, held-out loss <= 2.0 within 400 steps, read every 20; autoencoder, squared error <= 1.0 within 800
  steps, read every 25. From earlier races: AdamW is expected to need two thirds to three quarters of either budget.
- Entrants: `record_entrants.py`. Methods of matrices have AdamW for embeddings, head, norms and biases, at the same
  learning rate, since their updates are as large as AdamW's (scale="match_rms_adamw"); so have SOAP and KL-SOAP here,
  whose own optimizers take all leaves. AdamW has b2 = 0.95 everywhere, as Muon's own has. Scion has its own norm for
  every role. All else is the default of the library, but SOAP-Muon, which refreshes its bases every ten steps as SOAP
  and KL-SOAP do (default: every step).
- Schedule: a linear warm-up over a twentieth of the budget, then a cosine to zero. Prodigy and Schedule-Free have none;
  Schedule-Free has the same warm-up. "prodigy at 1 with cosine" is not tuned at all: the advice of its authors.
- Tuning, eight trials for everyone: (1) four learning rates, factors 1/8, 1/2, 2 and 8 of a centre, which is the same
  for all whose updates are as large as AdamW's; (2) two rates at factors 1/2 and 2 beside the best of these, or at 2
  and 4 beyond it where it is at the edge, and (3) at the best of (1) two values of a second hyperparameter: weight
  decay 0.1 and 0.4 after 0. Scion's is what its iterates are pulled to zero by, 0 and 5 after 1; MuonH, which has no
  decay, spends it on the learning rate of its AdamW, 0.15 and 1.5 times its own after 0.5. The best of all eight is
  taken: smallest median of steps to the target, then fewest misses, then the lower final metric.
- Seeds of tuning: 0 on bytelm, 0 and 6 on the autoencoder, where one seed is known to choose badly. Seeds of the
  report: 1 to 5, none of which was tuned on. A seed fixes parameters and minibatches, so that runs are paired.
- A miss counts as one evaluation after the budget. Two methods are level where 0 is within the central 95 % of the
  mean difference of their steps over all 5^5 paired resamples of the seeds; five seeds bound what this can resolve.
- Seconds to the target are median steps times the seconds of a step of a program of one run, measured on an idle
  machine by the same command with --time_steps, after the steps are known or before.

OUT.jsonl has one line for each finished run; the same command goes on where an earlier one was stopped. OUT.txt is the
table, OUT.png the picture; what has not run is said in both places.
"""

import dataclasses
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
import matplotlib
import numpy as np
from absl import app, flags
from record_entrants import ENTRANTS, Entrant, difference, factory_of, trials_of

from gradkit.training import run
from gradkit.training.methods import Method, warmup_cosine
from gradkit.training.race import time_steps
from gradkit.training.report import style
from gradkit.training.report.charts import number, reading
from gradkit.training.scoring import steps_or_infinity
from gradkit.workloads import Workload, load

FLAGS = flags.FLAGS
flags.DEFINE_enum("workload", "bytelm", ["bytelm", "autoencoder"], "the problem")
flags.DEFINE_list("entrants", [], "these alone; default: all, in the order of the protocol")
flags.DEFINE_integer("steps", None, "another budget, for a trial of this script", lower_bound=1)
flags.DEFINE_bool("time_steps", False, "measure what a step costs, on an idle machine, and nothing else")
flags.DEFINE_integer("rounds", 5, "rounds of --time_steps, which go through all methods in turn", lower_bound=1)
flags.DEFINE_float("minutes", None, "after which no new run begins; the same command goes on")
flags.DEFINE_bool("table", False, "only write table and picture of what is known")
flags.DEFINE_string("out", "record_race", "what the files are called, without their endings")

# Budget, steps between evaluations, target, and the seeds of tuning.
PROBLEMS = {"bytelm": (400, 20, 2.0, (0,)), "autoencoder": (800, 25, 1.0, (0, 6))}
REPORT = (1, 2, 3, 4, 5)
STAGES = ("rates", "beside", "report")


def problem_of(name: str) -> Workload:
    """The problem at the target and the budget of the protocol."""
    steps, every, target, _ = PROBLEMS[name]
    steps = FLAGS.steps or steps
    return dataclasses.replace(load(name), budget_steps=steps, eval_every=min(every, steps), target=target)


def runner(problem: Workload, entrant: Entrant) -> Callable[[float, float, int], np.ndarray]:
    """(rate, second, seed) -> the metric at every evaluation. One program, compiled once: on CPU several runs under one
    `vmap` take longer than one after another, as soon as matrices are small."""
    factory, evaluations = factory_of(entrant), problem.budget_steps // problem.eval_every

    @jax.jit
    def curve(rate: jax.Array, second: jax.Array, seed: jax.Array) -> jax.Array:
        tx = factory(rate, second, problem.budget_steps)
        step = run.step_function(problem, tx)

        def evaluation(state: run.Run, _: None) -> tuple[run.Run, jax.Array]:
            state, _ = jax.lax.scan(lambda state, _: (step(state)[0], None), state, None, problem.eval_every)
            return state, run.measured(problem, state)

        start = run.start(run.first_params(problem, seed), tx, seed)
        return jax.lax.scan(evaluation, start, None, evaluations)[1]

    return lambda rate, second, seed: np.asarray(curve(jnp.float32(rate), jnp.float32(second), jnp.uint32(seed)))


def finished(problem: Workload, name: str, stage: str, trial: tuple[float, float], seed: int, curve: Any) -> dict:
    """A run as what is written down."""
    at = problem.eval_every * np.arange(1, len(curve) + 1)
    return {
        "entrant": name,
        "stage": stage,
        "rate": trial[0],
        "second": trial[1],
        "seed": seed,
        "steps": problem.budget_steps,
        "arrived": float(steps_or_infinity(curve, at, problem.target)),
        "final": float(curve[-1]),
        "curve": [float(f"{x:.5g}") for x in curve],
    }


def race(problem: Workload, name: str, rows: list[dict[str, Any]], keep: Callable[[dict], None], until: float) -> bool:
    """Makes the runs of an entrant that are not known yet; whether all are known now."""
    curve = None
    for stage in STAGES if ENTRANTS[name].tuned else STAGES[-1:]:
        own = [row for row in rows if row["entrant"] == name and row["stage"] != "time"]
        known = {(row["stage"], row["rate"], row["second"], row["seed"]) for row in own}
        seeds = REPORT if stage == "report" else PROBLEMS[problem.name][3]
        for trial, seed in itertools.product(trials_of(ENTRANTS[name], stage, own), seeds):
            if (stage, *trial, seed) in known:
                continue
            if time.perf_counter() > until:
                return False
            began, curve = time.perf_counter(), curve or runner(problem, ENTRANTS[name])
            row = finished(problem, name, stage, trial, seed, curve(*trial, seed))
            keep(row)
            said = f"{trial[0]:.3g}/{trial[1]:.3g}, seed {seed}: {row['arrived']:.0f}, {row['final']:.3f}"
            print(f"{name}, {stage}, {said}, {time.perf_counter() - began:.0f} s", flush=True)
    return True


def timed(problem: Workload, names: list[str]) -> list[dict[str, Any]]:
    """What a step of each entrant costs, at the centre of its learning rates."""
    methods = []
    for name in names:
        entrant = ENTRANTS[name]
        make = functools.partial(entrant.make, second=entrant.values[0], steps=problem.budget_steps)
        shape = "warmup_cosine" if entrant.schedule else None
        methods.append((Method(name, lambda rate, make=make: make(rate), schedule=shape), entrant.centre))
    rows = []
    for name, (seconds, compiled) in zip(
        names, time_steps(problem, methods, problem.budget_steps, FLAGS.rounds), strict=True
    ):
        step = {"step_seconds": float(np.median(seconds)), "low": float(seconds.min()), "high": float(seconds.max())}
        rows.append({"entrant": name, "stage": "time", "steps": problem.budget_steps, **step, "compile": compiled})
        print(name, f"{1e3 * step['step_seconds']:.2f} ms, {1e3 * step['low']:.2f} to {1e3 * step['high']:.2f}")
    return rows


def state_bytes(problem: Workload, name: str) -> tuple[int, int]:
    """Bytes of the state of an entrant and of the parameters."""
    entrant = ENTRANTS[name]
    rate = warmup_cosine(entrant.centre, problem.budget_steps) if entrant.schedule else entrant.centre
    tx = entrant.make(rate, entrant.values[0], problem.budget_steps)
    params = jax.eval_shape(problem.init, jax.random.key(0))
    state = jax.eval_shape(tx.init, params)
    of_state, of_params = (sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(t)) for t in (state, params))
    return of_state, of_params


class Line(NamedTuple):
    """What the table says about an entrant whose report has run."""

    name: str
    rate: float
    second: float
    arrived: np.ndarray
    finals: np.ndarray
    at_edge: bool
    robust: str
    state: float
    step_seconds: float

    @property
    def median(self) -> float:
        return float(np.median(self.arrived))


def lines_of(problem: Workload, rows: list[dict[str, Any]]) -> list[Line]:
    """The entrants whose report has run, best first: by median steps, then by misses, then by the final metric."""
    lines = []
    for name, entrant in ENTRANTS.items():
        own = [row for row in rows if row["entrant"] == name]
        report = sorted((row for row in own if row["stage"] == "report"), key=lambda row: row["seed"])
        if len(report) < len(REPORT):
            continue
        tried = [row for row in own if row["stage"] in ("rates", "beside") and row["second"] == entrant.values[0]]
        by_rate = {row["rate"]: [r["arrived"] for r in tried if r["rate"] == row["rate"]] for row in tried}
        medians = np.array([np.median(by_rate[rate]) for rate in sorted(by_rate)])
        near = np.isfinite(medians) & (medians <= 2 * medians.min()) if len(medians) else np.zeros(0)
        rate = report[0]["rate"]
        of_state, of_params = state_bytes(problem, name)
        times = [row["step_seconds"] for row in own if row["stage"] == "time"]
        lines.append(
            Line(
                name,
                rate,
                report[0]["second"],
                np.array([row["arrived"] for row in report]),
                np.array([row["final"] for row in report]),
                bool(by_rate) and rate in (min(by_rate), max(by_rate)),
                f"{int(near.sum())} of {len(medians)}" if len(medians) else "-",
                of_state / of_params,
                times[-1] if times else np.nan,
            )
        )
    return sorted(lines, key=lambda line: (line.median, np.isinf(line.arrived).sum(), np.median(line.finals)))


def compared(a: Line, b: Line, problem: Workload) -> str:
    """The difference in words."""
    if a.name == b.name:
        return "-"
    mean, low, high = difference(a.arrived, b.arrived, problem.budget_steps + problem.eval_every)
    word = "level" if low <= 0 <= high else "fewer" if high < 0 else "more"
    return f"{word}: {mean:+.0f} ({low:+.0f} to {high:+.0f})"


HEAD = (
    *("entrant", "rate", "second", "steps", "over seeds", "misses", "final", "steps against adamw"),
    *("against the first", "robust", "state/params", "ms/step", "seconds", ""),
)


def table(problem: Workload, rows: list[dict[str, Any]]) -> str:
    """The table of what is known."""
    lines = lines_of(problem, rows)
    by_name = {line.name: line for line in lines}
    cells = [HEAD]
    for line in lines:
        low, high = line.arrived.min(), line.arrived.max()
        known = np.isfinite(line.step_seconds)
        cells.append(
            (
                line.name,
                number(line.rate),
                f"{ENTRANTS[line.name].second} {number(line.second)}",
                number(line.median),
                f"{number(low)} to {number(high)}" if np.isfinite(low) else "-",
                f"{int(np.isinf(line.arrived).sum())} of {len(REPORT)}",
                reading(float(np.median(line.finals))),
                compared(line, by_name["adamw"], problem) if "adamw" in by_name else "-",
                compared(line, lines[0], problem),
                line.robust,
                f"{line.state:.2f}",
                f"{1e3 * line.step_seconds:.2f}" if known else "-",
                number(line.median * line.step_seconds) if known and np.isfinite(line.median) else "-",
                "rate at the edge of what was tried" if line.at_edge else "",
            )
        )
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEAD))]
    text = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    title = f"{problem.name}: {problem.metric_name} <= {number(problem.target)} within {problem.budget_steps} steps"
    missing = [name for name in ENTRANTS if name not in by_name]
    notes = [f"Not run, or not to the end: {', '.join(missing)}."] if missing else []
    if any(np.isnan(line.step_seconds) for line in lines):
        notes.append("Without seconds: not measured yet; --time_steps does it.")
    return "\n".join([title, *text, *notes])


def draw(problem: Workload, rows: list[dict[str, Any]], path: str) -> None:
    """Steps and seconds to the target and the size of the state: dots are medians, small dots seeds, crosses misses."""
    lines = lines_of(problem, rows)
    with matplotlib.rc_context(style.RC):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11.5, 0.42 * len(lines) + 1.6), layout="constrained", facecolor=style.PAPER)
        timed = any(np.isfinite(line.step_seconds) for line in lines)
        panels = figure.subplots(1, 2 + timed, sharey=True, width_ratios=(2.2, 1.4, 1) if timed else (2.2, 1))
        left, right = panels[0], panels[-1]
        most = problem.budget_steps + problem.eval_every
        for place, line in enumerate(lines):
            colour = style.LIGHT[1 if line.name == "adamw" else 0]
            seeds, missed = np.minimum(line.arrived, most), np.isinf(line.arrived)
            left.plot([seeds.min(), seeds.max()], [place, place], color=colour, linewidth=1.2)
            left.plot(seeds[~missed], np.full(int((~missed).sum()), place), ".", color=colour, markersize=4)
            left.plot(seeds[missed], np.full(int(missed.sum()), place), "x", color=colour, markersize=6)
            if np.isfinite(line.median):
                left.plot(line.median, place, "o", color=colour, markersize=7)
                if timed:
                    panels[1].plot(line.median * line.step_seconds, place, "o", color=colour, markersize=7)
            right.barh(place, line.state, color=colour, height=0.5)
        left.set_yticks(range(len(lines)), [line.name for line in lines])
        left.invert_yaxis()
        left.set_xlim(0, 1.05 * most)
        left.set_title(problem.name)
        left.set_xlabel(f"steps to {number(problem.target)}, five seeds; x: not within {problem.budget_steps}")
        if timed:
            panels[1].set_xlabel("seconds to the target, of the median")
            panels[1].set_xlim(left=0)
        right.set_xlabel("state / parameters")
        figure.savefig(path, dpi=120)


def write(problem: Workload, rows: list[dict[str, Any]]) -> str:
    """Table and picture of what is known so far."""
    modes = ("--table", "--time_steps")
    kept = [word for word in sys.argv[1:] if not word.startswith((*modes, "--entrants", "--rounds", "--minutes"))]
    head = (
        f"$ {shlex.join(['python', 'experiments/record_race.py', *kept])}\n"
        f"eight trials of tuning for each on seeds {', '.join(map(str, PROBLEMS[problem.name][3]))}, reported on seeds "
        f"{REPORT[0]} to {REPORT[-1]}; jax {jax.__version__}, {jax.devices()[0].device_kind}"
    )
    text = f"{head}\n\n{table(problem, rows)}\n"
    pathlib.Path(f"{FLAGS.out}.txt").write_text(text)
    if lines_of(problem, rows):
        draw(problem, rows, f"{FLAGS.out}.png")
    return text


def main(argv: list[str]) -> None:
    """Races what is not known yet, and writes the table after each entrant."""
    if argv[1:]:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    names = FLAGS.entrants or list(ENTRANTS)
    if unknown := set(names) - set(ENTRANTS):
        raise app.UsageError(f"unknown entrants {sorted(unknown)}; there are {', '.join(ENTRANTS)}")
    problem = problem_of(FLAGS.workload)
    record = pathlib.Path(f"{FLAGS.out}.jsonl")
    old = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    rows = [row for row in old if row["steps"] == problem.budget_steps]

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        with record.open("a") as file:
            file.write(json.dumps(row) + "\n")

    if FLAGS.time_steps:
        for row in timed(problem, names):
            keep(row)
    elif not FLAGS.table:
        until = time.perf_counter() + 60 * (np.inf if FLAGS.minutes is None else FLAGS.minutes)
        for name in names:
            if race(problem, name, rows, keep, until):
                write(problem, rows)
    print(write(problem, rows))


if __name__ == "__main__":
    app.run(main)
