"""What is shown while a race runs: a live table in a terminal, plain lines elsewhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from gradkit.training.race import Progress, Result
from gradkit.training.report.charts import duration, number, reading
from gradkit.training.report.table import HEAD, cells, has_rich, rich_table
from gradkit.training.settings import RaceConfig

STAGES = {"sweep": "tuning", "extend": "extending the grid", "compile": "compiling one run", "time": "timing"}


def line(event: Progress) -> str | None:
    """The plain line of an event; None where it is not worth one."""
    row = event.result
    if row is None:
        return None
    if event.stage == "done":
        per_step = duration(row.seconds_per_step)
        to_target = f"{duration(row.seconds)} to target at " if row.steps < float("inf") else ""
        return f"{row.workload}  {row.method}: {to_target}{per_step} a step"
    steps = f"target in {number(row.steps)} steps" if row.steps < float("inf") else f"missed, best {reading(row.final)}"
    tried = f"{len(row.rates)} rates x {len(row.sweep.seeds)} seeds"
    spent = f"compile {row.sweep.compile_seconds:.1f} s, run {row.sweep.run_seconds:.1f} s"
    return f"{row.workload}  {row.method}: {steps} at rate {number(row.best_rate)}  ({tried}; {spent})"


@contextlib.contextmanager
def watcher(config: RaceConfig, stream: Any = None) -> Iterator[Callable[[Progress], None]]:
    """A watcher for `race`: draws in a terminal where rich is installed, else prints a line per result.

    Args:
      config: the race that is watched.
      stream: where to write. Default standard output.
    """
    stream = sys.stdout if stream is None else stream
    if not (has_rich() and stream.isatty()):

        def tell(event: Progress) -> None:
            text = line(event)
            if text:
                print(text, file=stream, flush=True)

        yield tell
        return

    from rich.console import Console
    from rich.live import Live

    first = config.problem[0] if config.problem else config.workloads[0]
    latest: dict[tuple[str, str], Progress] = {}
    results: dict[tuple[str, str], Result] = {}

    def picture() -> Any:
        workload = next(reversed(latest.values())).workload if latest else first
        scored = [results[workload, name] for name in config.method_names if (workload, name) in results]
        best = min(scored, key=lambda row: (row.steps, row.final), default=None)
        rows, highlight = [], None
        for i, name in enumerate(config.method_names):
            event, row = latest.get((workload, name)), results.get((workload, name))
            filled = list(cells(row, best)) if row and best else [name, *[""] * (len(HEAD) - 1)]
            if event and event.result is None:
                done = round(12 * event.done / max(1, event.total))
                filled[-1] = f"{'━' * done}{'─' * (12 - done)} {STAGES[event.stage]}"
            if row is not None and row is best:
                highlight = i
            rows.append(tuple(filled))
        return rich_table(f"race on {workload}", rows, highlight)

    with Live(picture(), console=Console(file=stream), transient=True, auto_refresh=False) as live:

        def show(event: Progress) -> None:
            key = (event.workload, event.method)
            latest.pop(key, None)
            latest[key] = event
            if event.result is not None:
                results[key] = event.result
            live.update(picture(), refresh=True)

        yield show


@contextlib.contextmanager
def ticker(total: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Shows one training run from its records: a bar in a terminal, about ten lines elsewhere."""

    def text(record: dict[str, Any]) -> str:
        batch = f"  batch {record['batch_size']}" if "batch_size" in record else ""
        return f"loss {reading(record['loss'])}  metric {reading(record['metric'])}{batch}"

    if not (has_rich() and sys.stdout.isatty()):
        shown = 0

        def tell(record: dict[str, Any]) -> None:
            nonlocal shown
            tenth = 10 * record["step"] // total
            if tenth > shown:
                shown = tenth
                print(f"step {record['step']}  {text(record)}", flush=True)

        yield tell
        return

    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("step {task.completed} of {task.total}"), BarColumn(), TimeRemainingColumn())
    with Bar(*columns, TextColumn("{task.description}")) as bar:
        job = bar.add_task("", total=total)
        yield lambda record: bar.update(job, completed=record["step"], description=text(record))
