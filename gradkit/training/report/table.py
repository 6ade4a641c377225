"""The table of a race: aligned plain text, or with rich in a terminal."""

import importlib.util
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradkit.training import scoring
from gradkit.training.race import Race, Result
from gradkit.training.report.charts import duration, number, reading

HEAD = ("method", "best rate", "steps", "over seeds", "time", "per step", "robust", "final", "compile", "")


def note(row: Result, best: Result) -> str:
    """What a reader must know about a row: a tie with the best, an extended grid, an open edge."""
    notes = []
    ratio = row.separable
    at_best, at_row = best.sweep.steps_to_target[best.best], row.sweep.steps_to_target[row.best]
    if row is not best and np.isfinite(row.steps) and not scoring.separated(at_best, at_row, ratio):
        notes.append("tie with the best")
    if row.extended:
        notes.append(f"grid extended by {row.extended}")
    if row.at_edge:
        notes.append("best rate at the edge")
    return ", ".join(notes)


def cells(row: Result, best: Result) -> tuple[str, ...]:
    """One row of the table as text, in the order of `HEAD`."""
    low, high = row.spread
    return (
        row.method,
        number(row.best_rate),
        number(row.steps),
        f"{number(low)} to {number(high)}" if np.isfinite(low) else "-",
        duration(row.seconds) if not np.isnan(row.seconds) else "…",
        duration(row.seconds_per_step) if not np.isnan(row.seconds_per_step) else "…",
        f"{row.robust} of {len(row.rates)}",
        reading(row.final),
        f"{row.sweep.compile_seconds:.1f} s",
        note(row, best),
    )


def title(race: Race, workload: str) -> str:
    """What was raced on, and to what target."""
    problem, config = race.problem(workload), race.config
    steps = config.steps or problem.budget_steps
    return f"{workload}: {problem.metric_name} <= {number(problem.target)} within {steps} steps"


def plain(race: Race) -> str:
    """The tables of all workloads as aligned text."""
    parts = []
    for workload in race.workloads:
        rows = race.of(workload)
        parts += [title(race, workload), aligned(HEAD, [cells(row, rows[0]) for row in rows]), ""]
    if len(race.workloads) > 1:
        area = sorted(race.step_profile.area, key=lambda name: -race.step_profile.area[name])
        table = [(name, f"{race.step_profile.area[name]:.2f}", f"{race.time_profile.area[name]:.2f}") for name in area]
        parts += ["area under the performance profile", aligned(("method", "steps", "time"), table), ""]
    return "\n".join(parts).rstrip()


def aligned(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Columns padded to their widest cell.

    >>> print(aligned(("name", "n"), [("lion", "1")]))
    name  n
    lion  1
    """
    rows = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def rich_table(heading: str, rows: list[tuple[str, ...]], highlight: int | None = 0) -> Any:
    """A rich table of rows in the order of `HEAD`."""
    from rich import box, table

    narrow = shutil.get_terminal_size().columns < 110
    shown = [i for i, column in enumerate(HEAD) if not (narrow and column in ("over seeds", "final", "compile"))]
    made = table.Table(title=heading, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i in shown:
        justify = "right" if 0 < i < len(HEAD) - 1 else "left"
        made.add_column(HEAD[i], justify=justify, style="dim" if i > 6 else None, no_wrap=i < len(HEAD) - 1)
    for place, row in enumerate(rows):
        made.add_row(*(row[i] for i in shown), style="bold green" if place == highlight else None)
    return made


def show(race: Race) -> None:
    """Prints the tables: with rich in a terminal, as plain text elsewhere."""
    if not (has_rich() and sys.stdout.isatty()):
        print(plain(race))
        return
    from rich.console import Console

    for workload in race.workloads:
        rows = race.of(workload)
        Console().print(rich_table(title(race, workload), [cells(row, rows[0]) for row in rows]))


def has_rich() -> bool:
    """Whether the extra that draws tables in a terminal is installed."""
    return importlib.util.find_spec("rich") is not None
