"""The price of not tuning: methods without a learning rate to choose, beside methods whose learning rate was tuned.

    python experiments/price_of_not_tuning.py --out=experiments/results/price_of_not_tuning

The protocol, fixed before any result was seen but for the seeds of tuning, see below:

- Problems: digits_mlp (loss <= 0.01, budget 120 steps), autoencoder (squared error <= 1.0, 800) and bytelm (loss
  <= 2.1, 300; 1.8 in 1000 steps is its own target, and 2.1 is about what AdamW with a cosine reaches in 300).
- "tuned": SGD with momentum, AdamW and NAdamW. Six learning rates over 2.5 decades around the centre on the card of
  the method, and at most twice two rates more where the best is at the edge, under a linear warm-up over a twentieth
  and a cosine to zero at the budget. Chosen on the seeds of tuning: smallest median of the steps to the target, then
  fewest misses, then the lower final metric. The chosen rate runs on seeds 1 to 5.
- The seeds of tuning are 0, 6 and 7 on the first two problems, and 0 alone on bytelm, where a run costs the most and
  seeds differ the least. It was 0 alone everywhere at first. On the autoencoder that chose rates which miss the target
  on most other seeds (momentum on 4 of 5, AdamW on 3 of 5), and the tuned methods were tuned anew with three seeds:
  the rates of digits_mlp and of these two stayed what they were.
- "tuned, no schedule": schedule-free SGD and AdamW with the arguments of their cards, tuned in the same way.
- "no rate": DoG and L-DoG with their averages, accelerated DoG, U-DoG. Nothing is chosen. Seeds 1 to 5.
- "default rate": methods that have a rate (for MoMo a cap of it), left at the default of the library; schedule-free
  methods without a warm-up. Also AdamW at 0.001, which is what most people start from.
- A method without a schedule does not know the budget, so that its run is longer: `--patience` times the budget. If it
  reaches the target after the budget, that step is in the table; the final metric is read at the budget for all.
- Everything is read at the parameters which the method means for evaluation. A step is one update; U-DoG takes two
  gradients per update, SMB up to two and another loss. Steps of tuning are rates times seeds times the budget.
- Left out: UniXGrad, which must be told the diameter of the set; T-DoG, which must be told a bound of the gradients;
  normalized_logistic, which is for one logistic loss.

The table and the picture are written again after each method, and what is known is kept in OUT.jsonl: the same command
goes on where an earlier one was stopped.
"""

import dataclasses
import functools
import json
import pathlib
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from absl import app, flags

import gradkit as gk
from gradkit.training import methods
from gradkit.training.methods import Method, warmup_cosine
from gradkit.training.race import Result, grid_of, joined, score
from gradkit.training.report import style
from gradkit.training.report.charts import number, reading
from gradkit.training.scoring import steps_or_infinity
from gradkit.training.sweep import Sweep, sweep
from gradkit.workloads import Workload, load

FLAGS = flags.FLAGS
flags.DEFINE_list("workloads", ["digits_mlp", "autoencoder", "bytelm"], "problems")
flags.DEFINE_list("entrants", [], "these alone; default: all")
flags.DEFINE_integer("patience", 2, "budgets after which a method without a schedule has missed", lower_bound=1)
flags.DEFINE_integer("seeds", 5, "seeds of the evaluation, 1 and on; at most 5", lower_bound=1, upper_bound=5)
flags.DEFINE_integer("rates", 6, "learning rates of a tuned method", lower_bound=2)
flags.DEFINE_float("decades", 1.25, "decades the rates reach to each side of the centre")
flags.DEFINE_integer("extensions", 2, "how often two rates may be added where the best is at the edge")
flags.DEFINE_integer("steps", None, "another budget, for a trial of this script", lower_bound=1)
flags.DEFINE_bool("table", False, "only write table and picture of what is known")
flags.DEFINE_string("out", "price_of_not_tuning", "what the files are called, without their endings")

EFFORT = ("patience", "seeds", "rates", "decades", "extensions", "steps")
KINDS = ("tuned", "tuned, no schedule", "no rate", "default rate")
# Budget, the target where it is not the workload's own, and the seeds of tuning.
BUDGETS: dict[str, tuple[int, float | None, tuple[int, ...]]] = {
    "digits_mlp": (120, None, (0, 6, 7)),
    "autoencoder": (800, None, (0, 6, 7)),
    "bytelm": (300, 2.1, (0,)),
}


class Entrant(NamedTuple):
    """One line of the table.

    Attributes:
      kind: one of `KINDS`.
      of: a method that is tuned, or its name, or steps -> the transformation as it runs.
      setting: what stands at its place of the learning rate, "" for nothing.
    """

    kind: str
    of: str | Method | Callable[[int], Any]
    setting: str = ""


ENTRANTS: dict[str, Entrant] = {
    "momentum": Entrant("tuned", "momentum"),
    "adamw": Entrant("tuned", "adamw"),
    "nadamw": Entrant("tuned", methods.find("adamw")._replace(make=functools.partial(gk.adamw, nesterov=True))),
    "averaged_dog": Entrant("no rate", lambda steps: gk.polynomial_decay_average(gk.dog())),
    "averaged_ldog": Entrant("no rate", lambda steps: gk.polynomial_decay_average(gk.ldog())),
    "a_dog": Entrant("no rate", lambda steps: gk.a_dog()),
    "u_dog": Entrant("no rate", lambda steps: gk.u_dog()),
    "momo at 1": Entrant("default rate", lambda steps: gk.momo(), "cap 1"),
    "momo_adam at 0.01": Entrant("default rate", lambda steps: gk.momo_adam(), "cap 0.01"),
    "schedule_free_sgd at 1": Entrant("default rate", lambda steps: gk.schedule_free_sgd(), "1"),
    "schedule_free_adamw at 0.0025": Entrant("default rate", lambda steps: gk.schedule_free_adamw(), "0.0025"),
    "schedule_free_radam at 0.0025": Entrant("default rate", lambda steps: gk.schedule_free_radam(), "0.0025"),
    "adamw at 0.001": Entrant("default rate", lambda steps: gk.adamw(1e-3), "0.001"),
    "adamw at 0.001, cosine": Entrant("default rate", lambda steps: gk.adamw(warmup_cosine(1e-3, steps)), "0.001"),
    "schedule_free_sgd": Entrant("tuned, no schedule", "schedule_free_sgd"),
    "schedule_free_adamw": Entrant("tuned, no schedule", "schedule_free_adamw"),
    "smb at 0.5": Entrant("default rate", lambda steps: gk.smb(), "0.5"),
}


def problem_of(name: str) -> Workload:
    """The problem at the target and the budget of the protocol."""
    found = load(name)
    steps, target, _ = BUDGETS.get(name, (found.budget_steps, None, ()))
    steps = FLAGS.steps or steps
    every = min(found.eval_every, 10 if name == "bytelm" else found.eval_every)
    return dataclasses.replace(
        found, budget_steps=steps, eval_every=min(every, steps), target=found.target if target is None else target
    )


def tuned(problem: Workload, method: Method) -> tuple[Result, list[int]]:
    """The best learning rate, as `gradkit race` tunes it, on the seeds of tuning."""
    seeds = list(BUDGETS[problem.name][2]) if problem.name in BUDGETS else [0]

    def trained(grid: np.ndarray) -> Sweep:
        return sweep(problem, method.scheduled, grid, seeds=seeds)

    assert method.centre is not None
    found = trained(grid_of(method.centre, FLAGS.rates, FLAGS.decades))
    ratio = 10.0 ** (2.0 * FLAGS.decades / (FLAGS.rates - 1))
    for _ in range(FLAGS.extensions):
        result = score(problem.name, method.name, found)
        if not result.at_edge:
            break
        rates = result.rates
        if result.best == 0:
            found = joined(trained(rates[0] / ratio ** np.array([2.0, 1.0])), found)
        else:
            found = joined(found, trained(rates[-1] * ratio ** np.array([1.0, 2.0])))
    return score(problem.name, method.name, found), seeds


def raced(problem: Workload, name: str) -> dict[str, Any]:
    """One entrant on one problem, as what is written down."""
    began, entrant, budget = time.perf_counter(), ENTRANTS[name], problem.budget_steps
    row: dict[str, Any] = {"workload": problem.name, "entrant": name, "kind": entrant.kind}
    row |= {key: FLAGS[key].value for key in EFFORT}
    if isinstance(entrant.of, str | Method):
        method = methods.find(entrant.of)
        pilot, seeds = tuned(problem, method)
        rate, setting = pilot.best_rate, number(pilot.best_rate)
        row |= {
            "tried": len(pilot.rates) * len(seeds),
            "tuning_seeds": seeds,
            "at_edge": pilot.at_edge,
            "pilot": dict(zip(map(float, pilot.rates), pilot.sweep.curves[..., -1].tolist(), strict=True)),
        }
        ends = method.schedule is not None
    else:
        of, rate, setting = entrant.of, 1.0, entrant.setting
        method = Method(name, lambda learning_rate: of(budget), None, schedule=None)
        row |= {"tried": 0, "tuning_seeds": [], "at_edge": False}
        ends = name.endswith("cosine")
    found = sweep(
        problem,
        method.scheduled,
        [rate],
        seeds=list(range(1, FLAGS.seeds + 1)),
        steps=budget * (1 if ends else FLAGS.patience),
    )
    curves = found.curves[0]
    return row | {
        "setting": setting,
        "ends_at_budget": ends,
        "at": found.steps.tolist(),
        "curves": [[float(f"{x:.5g}") for x in curve] for curve in curves],
        "arrived": steps_or_infinity(curves, found.steps, problem.target).tolist(),
        "finals": curves[:, found.steps.tolist().index(budget)].tolist(),
        "seconds": time.perf_counter() - began,
    }


def median(row: dict[str, Any]) -> float:
    """Median of the steps to the target, infinity where most seeds miss."""
    return float(np.median(row["arrived"]))


def final(row: dict[str, Any]) -> float:
    """Median of the metric at the budget."""
    return float(np.median(np.where(np.isfinite(row["finals"]), row["finals"], np.inf)))


def reference(rows: list[dict[str, Any]]) -> float:
    """The fewest steps of a tuned method with a schedule."""
    return min((median(row) for row in rows if row["kind"] == "tuned"), default=np.inf)


def price(row: dict[str, Any], best: float) -> str:
    """Steps over those of the best tuned method."""
    return f"{median(row) / best:.2f}" if np.isfinite(median(row)) and np.isfinite(best) else "-"


HEAD = ("entrant", "kind", "rate", "steps", "over seeds", "misses", "price", "final", "tuning steps", "")


def cells(row: dict[str, Any], best: float, budget: int) -> tuple[str, ...]:
    """One row as text, in the order of `HEAD`."""
    low, high = min(row["arrived"]), max(row["arrived"])
    spread = f"{number(low)} to {number(high)}" if np.isfinite(low) else "-"
    return (
        row["entrant"],
        row["kind"],
        row["setting"] or "-",
        number(median(row)),
        spread,
        f"{int(np.isinf(row['arrived']).sum())} of {row['seeds']}",
        price(row, best),
        reading(final(row)),
        str(row["tried"] * budget) if row["tried"] else "0",
        "best rate at the edge" if row["at_edge"] else "",
    )


def ordered(rows: list[dict[str, Any]], workload: str) -> list[dict[str, Any]]:
    """The rows of one problem, best first."""
    own = [row for row in rows if row["workload"] == workload]
    return sorted(own, key=lambda row: (median(row), final(row)))


def table(rows: list[dict[str, Any]], problem: Workload) -> str:
    """The table of one problem."""
    own, budget = ordered(rows, problem.name), problem.budget_steps
    lines = [HEAD, *(cells(row, reference(own), budget) for row in own)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    text = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    title = (
        f"{problem.name}: {problem.metric_name} <= {number(problem.target)}; budget {budget} steps, "
        f"{budget * FLAGS.patience} without a schedule; final: at step {budget}"
    )
    missing = [name for name in FLAGS.entrants or ENTRANTS if name not in {row["entrant"] for row in own}]
    left = [f"not run yet, the command goes on with: {'; '.join(missing)}"] if missing else []
    return "\n".join([title, *text, *left])


def draw(rows: list[dict[str, Any]], problems: list[Workload], path: str) -> None:
    """Steps to the target and the metric at the budget of every entrant, median and range over seeds."""
    colours = dict(zip(KINDS, style.LIGHT, strict=False))
    names = [name for name in ENTRANTS if any(row["entrant"] == name for row in rows)]
    names.sort(key=lambda name: KINDS.index(ENTRANTS[name].kind))
    with matplotlib.rc_context(style.RC):
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
        from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

        size = (4.0 * len(problems) + 2.4, 0.62 * len(names) + 2.2)
        figure = Figure(figsize=size, layout="constrained", facecolor=style.PAPER)
        panels = figure.subplots(2, len(problems), squeeze=False, sharey=True)
        for column, problem in enumerate(problems):
            own = {row["entrant"]: row for row in rows if row["workload"] == problem.name}
            above, below = panels[:, column]
            longest = problem.budget_steps * FLAGS.patience
            for place, name in enumerate(names):
                if name not in own:
                    continue
                row, colour = own[name], colours[ENTRANTS[name].kind]
                steps = np.minimum(row["arrived"], 1.12 * longest)
                above.plot([steps.min(), steps.max()], [place, place], color=colour, linewidth=1.4)
                above.plot(np.median(steps), place, "ox"[bool(np.isinf(median(row)))], color=colour, markersize=6.5)
                values = np.array([x for x in row["finals"] if np.isfinite(x)])
                if len(values):
                    below.plot([values.min(), values.max()], [place, place], color=colour, linewidth=1.4)
                # A method most of whose runs diverged has no point, whatever the others reached.
                if np.isfinite(final(row)):
                    below.plot(final(row), place, "o", color=colour, markersize=6.5)
            above.axvline(problem.budget_steps, color=style.MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
            below.axvline(problem.target, color=style.MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
            above.set_xlim(0, 1.2 * longest)
            above.set_title(problem.name)
            above.set_xlabel(f"steps to {number(problem.target)}; x: not within {longest}; dashed: budget")
            below.set_xscale("log")
            lowest, highest = below.get_xlim()
            if highest < 10 * lowest:  # decades have no labels between them
                below.xaxis.set_major_locator(
                    LogLocator(10, (1, 1.5, 2, 3, 5)) if highest > 2 * lowest else MaxNLocator(5)
                )
                below.xaxis.set_major_formatter(FormatStrFormatter("%.3g"))
                below.xaxis.set_minor_locator(NullLocator())
            below.set_xlabel(f"{problem.metric_name} at step {problem.budget_steps}; dashed: target")
        for axes in panels[:, 0]:
            axes.set_yticks(range(len(names)), names)
        panels[0, 0].invert_yaxis()
        marks = [Line2D([], [], color=colours[kind], marker="o", label=kind) for kind in KINDS]
        figure.legend(handles=marks, loc="outside upper center", ncols=len(KINDS), frameon=False)
        figure.savefig(path, dpi=120)


def write(rows: list[dict[str, Any]], problems: list[Workload]) -> str:
    """Table and picture of what is known so far."""
    known = [problem for problem in problems if any(row["workload"] == problem.name for row in rows)]
    command = shlex.join(["python", "experiments/price_of_not_tuning.py", *(x for x in sys.argv[1:] if x != "--table")])
    head = (
        f"$ {command}\nrates tuned over {FLAGS.rates} values in {2 * FLAGS.decades:g} decades, judged on seeds "
        f"1 to {FLAGS.seeds}; price: steps over those of the best tuned method; jax {jax.__version__}, "
        f"{jax.devices()[0].device_kind}"
    )
    text = "\n\n".join([head, *(table(rows, problem) for problem in known)]) + "\n"
    pathlib.Path(f"{FLAGS.out}.txt").write_text(text)
    draw(rows, known, f"{FLAGS.out}.png")
    return text


def main(argv: list[str]) -> None:
    """Races what is not known yet."""
    if argv[1:]:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    names = FLAGS.entrants or list(ENTRANTS)
    if unknown := set(names) - set(ENTRANTS):
        raise app.UsageError(f"unknown entrants {sorted(unknown)}; there are {', '.join(ENTRANTS)}")
    problems = [problem_of(name) for name in FLAGS.workloads]
    record = pathlib.Path(f"{FLAGS.out}.jsonl")
    old = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    rows = [row for row in old if all(row[key] == FLAGS[key].value for key in EFFORT)]
    rows = [row for row in rows if row["workload"] in FLAGS.workloads and row["entrant"] in names]
    known = {(row["workload"], row["entrant"]) for row in rows}
    for problem in problems:
        for name in names:
            if FLAGS.table or (problem.name, name) in known:
                continue
            row = raced(problem, name)
            rows.append(row)
            with record.open("a") as file:
                file.write(json.dumps(row) + "\n")
            write(rows, problems)
            print(
                problem.name, *cells(row, np.inf, problem.budget_steps), f"{row['seconds']:.0f} s", sep="  ", flush=True
            )
    print(write(rows, problems))


if __name__ == "__main__":
    app.run(main)
