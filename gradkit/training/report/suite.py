"""The standings of a suite: tables in Markdown and in plain text, and the picture of the performance profiles."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from gradkit import interrupts
from gradkit.training.report import style
from gradkit.training.report.charts import duration, matplotlib_of, number, spread_out
from gradkit.training.report.table import aligned
from gradkit.training.settings import RaceConfig
from gradkit.training.suite import BASELINE, R_MAX, Standings, prepare, run
from gradkit.workloads import load

SHOWN = 16  # curves in a picture; the table has all methods


def task(config: RaceConfig) -> Callable[[], None]:
    """Checks what a command asks for, and returns what runs the suite and writes tables and picture beside records."""
    assert config.suite is not None
    folder = prepare(config.out, config.suite)

    def run_and_report() -> None:
        with interrupts.last_words(lambda: f"what has finished is kept: the same command goes on, in {folder}"):
            found = run(config, folder, lambda line: print(line, flush=True))
        (folder / "standings.md").write_text(f"{markdown(found)}\n", encoding="utf-8")
        save_profiles(found, folder / "profiles.png")
        print(f"\n{plain(found)}\nrecords: {folder}   picture: {folder / 'profiles.png'}")

    return run_and_report


def plain(found: Standings) -> str:
    """The standings as aligned text."""
    head = ("method", "by time", "by steps", "reached", *found.workloads)
    rows = [
        (
            name,
            f"{found.score_by_time[i]:.3f}",
            f"{found.score_by_steps[i]:.3f}",
            _reached(found, i),
            *(_seconds(found, name, i, j) for j in range(len(found.workloads))),
        )
        for i, name in enumerate(found.methods)
    ]
    effort = f"{found.trials} trials x {found.studies} studies: scores by time and by steps; steps and time to target"
    return f"suite {found.suite}, {effort}\n{aligned(head, rows)}"


def _seconds(found: Standings, name: str, i: int, j: int) -> str:
    steps = found.steps[i, j]
    if not np.isfinite(steps):
        return "miss"
    return f"{number(steps)} · {duration(steps * found.records[name][found.workloads[j]].seconds_per_step)}"


def _reached(found: Standings, i: int) -> str:
    return f"{int(np.isfinite(found.steps[i]).sum())} of {len(found.workloads)}"


def markdown(found: Standings) -> str:
    """The standings as two tables: scores, and steps to the target of each workload with the cost of a step."""
    scores = ["| method | score by time | score by steps | targets reached |", "|---|---|---|---|"]
    for i, name in enumerate(found.methods):
        both = f"{found.score_by_time[i]:.3f} | {found.score_by_steps[i]:.3f}"
        scores.append(f"| {name} | {both} | {_reached(found, i)} |")
    steps = [f"| method | {' | '.join(found.workloads)} |", "|---" * (1 + len(found.workloads)) + "|"]
    for i, name in enumerate(found.methods):
        steps.append(f"| {name} | {' | '.join(_cell(found, name, i, j) for j in range(len(found.workloads)))} |")
    note = (
        f"Steps to the target, and in brackets what a step costs in steps of {BASELINE}. Bold: the fewest steps, and "
        "those that one draw of seeds cannot tell from them."
    )
    return "\n".join([*scores, "", note, "", *steps])


def _cell(found: Standings, name: str, i: int, j: int) -> str:
    workload = found.workloads[j]
    steps, best = found.steps[i, j], found.steps[:, j].min()
    if not np.isfinite(steps):
        return "raised" if found.records[name][workload].error else "miss"
    text = f"**{number(steps)}**" if steps <= load(workload).separable * best else number(steps)
    return f"{text} ({found.records[name][workload].relative_time:.2f})"


def save_profiles(found: Standings, path: pathlib.Path) -> None:
    """The performance profiles by time and by steps, side by side."""
    matplotlib = matplotlib_of("the picture of a suite")
    with matplotlib.rc_context(style.RC):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 4.4), layout="constrained", facecolor=style.PAPER)
        for axes, which in zip(figure.subplots(1, 2), ("time", "steps"), strict=True):
            _profile(axes, found, which)
        figure.savefig(path, dpi=130)


def _profile(axes: Any, found: Standings, which: str) -> None:
    taus = np.linspace(1, R_MAX, 601)
    scores = found.score_by_time if which == "time" else found.score_by_steps
    shares = found.profile(which, taus)[:SHOWN]
    # Curves that coincide are set apart by less than a workload's share.
    apart = 0.006 * (np.arange(len(shares)) - (len(shares) - 1) / 2)
    labels = spread_out((shares[:, -1] + apart).tolist(), 0.07, 0.02, 1.0)
    for i, (share, label) in enumerate(zip(shares, labels, strict=True)):
        paint = style.colour(i)
        axes.step(taus, share + apart[i], where="post", color=paint, linestyle=style.dash(i))
        axes.text(
            1.02, label, f"{found.methods[i]}  {scores[i]:.2f}", transform=axes.get_yaxis_transform(), va="center",
            color=paint, fontsize=9.5, fontweight="bold",
        )  # fmt: skip
    axes.set_xlim(1, R_MAX)
    axes.set_ylim(-0.02, 1.04)
    axes.set_title(f"Share of workloads within a factor of the fastest, by {which}")
    axes.set_xlabel(f"{which} to the target, as a multiple of the fastest  (number: score)")
