"""Races whole families of optimizers, tuned with few seeds and judged with more.

    python experiments/tuned_race.py --workloads=digits_mlp --decades=1.25 --out=adaptive_race_digits.txt
    python experiments/tuned_race.py --workloads=sensing_1000 --methods=adamw,scaled_gd,muon --timed

Each method is tuned over its learning rate with the same effort, on `--pilot_seeds` seeds, as `gradkit race` tunes on
all of them; then it runs with all seeds at its best rate and is judged by steps to target: median, spread, and how many
of them missed. With `--timed` a program of one run at the best rate says what a step costs, and the table has seconds
to target. The table is written again after every method, and what is known is kept beside it (OUT.jsonl): the same
command goes on where an earlier one was stopped. A method that raises is a row of the table, too.
"""

import dataclasses
import json
import pathlib
import shlex
import sys
import time

import jax
import numpy as np
from absl import app, flags

from gradkit.training import RaceConfig, methods
from gradkit.training.race import measure, prepare, score, tune
from gradkit.training.report.charts import number, reading
from gradkit.training.sweep import sweep
from gradkit.workloads import Workload, load

DEFAULTS = RaceConfig()
FLAGS = flags.FLAGS
flags.DEFINE_list("workloads", ["digits_mlp", "bytelm"], "problems to race on")
flags.DEFINE_list("rooms", ["adaptive", "momentum", "sign"], "folders of gradkit/optimizers whose optimizers race")
flags.DEFINE_list("methods", [], "these methods instead")
flags.DEFINE_list("leave_out", [], "methods that stay away")
flags.DEFINE_integer("rates", DEFAULTS.rates, "learning rates per method, log-spaced around its centre")
flags.DEFINE_float("decades", DEFAULTS.decades, "decades the rates reach to each side of the centre")
flags.DEFINE_integer("seeds", DEFAULTS.seeds, "seeds at the best learning rate")
flags.DEFINE_integer("pilot_seeds", 1, "seeds per learning rate while it is tuned", lower_bound=1)
flags.DEFINE_integer("steps", None, "steps per run; default: the workload's budget")
flags.DEFINE_integer("eval_every", None, "steps between evaluations; default: the workload's")
flags.DEFINE_integer(
    "extensions", DEFAULTS.extensions, "how often two rates may be added where the best is at the edge"
)
flags.DEFINE_bool("timed", False, "whether the seconds of a step are measured, one method after the other")
flags.DEFINE_string("out", "tuned_race.txt", "the table; what it is made of is kept in OUT.jsonl")

HEAD = ("method", "best rate", "steps", "over seeds", "seconds", "ms/step", "misses", "robust", "final", "")
SETTINGS = ("rates", "decades", "seeds", "steps", "eval_every", "extensions")
EFFORT = (*SETTINGS, "pilot_seeds")


def contestants(rooms: list[str]) -> list[str]:
    """The optimizers of these folders, under the names with which they race."""
    found = []
    for name in methods.names():
        card = methods.find(name).card
        if (
            card is not None
            and card.form == "optimizer"
            and card.function.__module__.split(".")[1:-1] in [["optimizers", r] for r in rooms]
        ):
            found.append(name)
    return found


def raced(problem: Workload, name: str, config: RaceConfig, pilot_seeds: int) -> dict:
    """One method on one problem, as what is written down."""
    began = time.perf_counter()
    row = {"workload": problem.name, "method": name, **{key: getattr(config, key) for key in SETTINGS}}
    row["pilot_seeds"] = pilot_seeds
    method = methods.find(name)
    try:
        pilot = tune(problem, method, dataclasses.replace(config, seeds=pilot_seeds), lambda _: None)
        found = sweep(
            problem,
            method.scheduled,
            [pilot.best_rate],
            seeds=config.seeds,
            steps=config.steps,
            eval_every=config.eval_every,
        )
        result = score(problem.name, name, found)
        if FLAGS.timed:
            (result,) = measure(problem, [result], config, lambda _: None)
    except Exception as error:  # one broken method must not end a race of hours
        return row | {"error": f"{type(error).__name__}: {error}".splitlines()[0][:80]}
    at_best = result.sweep.steps_to_target[result.best]
    pilot_metrics = pilot.sweep.curves[..., -1].mean(-1)
    return row | {
        "best_rate": pilot.best_rate,
        "median": result.steps,
        "low": result.spread[0],
        "high": result.spread[1],
        "misses": int(np.isinf(at_best).sum()),
        "seconds_per_step": result.seconds_per_step,
        "robust": pilot.robust,
        "tried": len(pilot.rates),
        "final": result.final,
        "at_edge": pilot.at_edge,
        "pilot": dict(zip(map(float, pilot.rates), map(float, pilot_metrics), strict=True)),
        "seconds": time.perf_counter() - began,
    }


def cells(row: dict) -> tuple[str, ...]:
    """One row of the table as text, in the order of `HEAD`."""
    if "error" in row:
        return row["method"], *["-"] * (len(HEAD) - 2), row["error"]
    spread = f"{number(row['low'])} to {number(row['high'])}" if np.isfinite(row["low"]) else "-"
    notes = ["best rate at the edge"] if row["at_edge"] else []
    if row["tried"] > row["rates"]:
        notes.append(f"grid extended by {row['tried'] - row['rates']}")
    per_step = row.get("seconds_per_step", np.nan)
    seconds = number(row["median"] * per_step) if np.isfinite(row["median"] * per_step) else "-"
    return (
        row["method"],
        number(row["best_rate"]),
        number(row["median"]),
        spread,
        seconds,
        number(1e3 * per_step) if np.isfinite(per_step) else "-",
        f"{row['misses']} of {row['seeds']}",
        f"{row['robust']} of {row['tried']}",
        reading(row["final"]),
        ", ".join(notes),
    )


def table(rows: list[dict], workload: str, config: RaceConfig) -> str:
    """The methods on one problem, best first: by median steps, then by the final metric; those that raised last."""
    own = [row for row in rows if row["workload"] == workload]
    own.sort(key=lambda row: ("error" in row, row.get("median", np.inf), row.get("final", np.inf), row["method"]))
    problem = load(workload)
    steps = config.steps or problem.budget_steps
    lines = [HEAD, *map(cells, own)]
    # Columns that nobody fills are left out.
    kept = [i for i in range(len(HEAD)) if any(line[i] != "-" for line in lines[1:])]
    lines = [tuple(line[i] for i in kept) for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(kept))]
    text = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    target = f"{workload}: {problem.metric_name} <= {number(problem.target)} within {steps} steps"
    return "\n".join([target, *text])


def write(rows: list[dict], config: RaceConfig, path: pathlib.Path) -> None:
    """The tables of what is known so far."""
    grid = f"{config.rates} rates over {2 * (config.decades or 1):g} decades x {FLAGS.pilot_seeds} seeds"
    effort = f"{grid}, then {config.seeds} seeds at the best"
    command = shlex.join(["python", "experiments/tuned_race.py", *sys.argv[1:]])
    head = f"$ {command}\n{effort}, jax {jax.__version__}, {jax.devices()[0].device_kind}"
    known = [workload for workload in config.workloads if any(row["workload"] == workload for row in rows)]
    path.write_text("\n\n".join([head, *(table(rows, workload, config) for workload in known)]) + "\n")


def main(argv: list[str]) -> int:
    """Races what is not known yet, and writes the table after each method."""
    if argv[1:]:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    settings = {key: FLAGS[key].value for key in SETTINGS}
    names = FLAGS.methods or contestants(FLAGS.rooms)
    names = tuple(name for name in names if name not in FLAGS.leave_out)
    config = RaceConfig(workloads=tuple(FLAGS.workloads), methods=names, **settings)
    problems = prepare(config)
    path = pathlib.Path(FLAGS.out)
    record = path.with_name(path.name + ".jsonl")
    old = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    # Results of another effort are no results of this race, and what raised is tried again.
    effort = {key: FLAGS[key].value for key in EFFORT}
    rows = [row for row in old if all(row.get(key) == value for key, value in effort.items()) and "error" not in row]
    rows = [row for row in rows if row["workload"] in config.workloads and row["method"] in names]
    known = {(row["workload"], row["method"]) for row in rows}
    print(f"{len(names)} methods on {', '.join(config.workloads)}; {len(known)} results known", flush=True)
    for problem in problems:
        for name in names:
            if (problem.name, name) in known:
                continue
            row = raced(
                problem,
                name,
                dataclasses.replace(config, workloads=(problem.name,), methods=(name,)),
                FLAGS.pilot_seeds,
            )
            rows.append(row)
            with record.open("a") as file:
                file.write(json.dumps(row) + "\n")
            write(rows, config, path)
            print(problem.name, *cells(row), f"{row.get('seconds', 0):.0f} s", sep="  ", flush=True)
    write(rows, config, path)
    print(path.read_text())
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    app.run(main)
