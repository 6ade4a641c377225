"""What is shown while a race runs: a live table in a terminal, plain lines elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gradkit.training.race import Progress, Result
from gradkit.training.report.charts import duration, number, reading
from gradkit.training.report.table import HEAD, cells, has_rich, rich_table
from gradkit.training.settings import RaceConfig
from gradkit.workloads import Workload

STAGES = {"sweep": "tuning", "extend": "extending the grid", "compile": "compiling one run", "time": "timing"}
COMPILED = ("sweep", "extend", "compile")


def line(event: Progress, metric_name: str = "metric") -> str | None:
    """The plain line of an event; None where it is not worth one.

    Args:
      event: what the race says.
      metric_name: of its workload.
    """
    row = event.result
    if row is None:
        return None
    if event.stage == "done":
        per_step = duration(row.seconds_per_step)
        to_target = f"{duration(row.seconds)} to target at " if row.steps < float("inf") else ""
        return f"{row.workload}  {row.method}: {to_target}{per_step} a step"
    steps = (
        f"target in {number(row.steps)} steps"
        if row.steps < float("inf")
        else f"missed, best {metric_name} {reading(row.final)}"
    )
    tried = f"{len(row.rates)} rates x {len(row.sweep.seeds)} seeds"
    spent = f"compile {row.sweep.compile_seconds:.1f} s, run {row.sweep.run_seconds:.1f} s"
    return f"{row.workload}  {row.method}: {steps} at rate {number(row.best_rate)}  ({tried}; {spent})"


@contextlib.contextmanager
def watcher(
    config: RaceConfig, stream: Any = None, problems: Sequence[Workload] = ()
) -> Iterator[Callable[[Progress], None]]:
    """A watcher for `race`: draws in a terminal where rich is installed, else prints a line per result.

    The table says of every method what it does and for how long, also while it compiles.

    Args:
      config: the race that is watched.
      stream: where to write. Default standard output.
      problems: the workloads, whose metrics are then called by their names.
    """
    stream = sys.stdout if stream is None else stream
    metric_names = {problem.name: problem.metric_name for problem in problems}
    if not (has_rich() and stream.isatty()):

        def tell(event: Progress) -> None:
            text = line(event, metric_names.get(event.workload, "metric"))
            if text:
                print(text, file=stream, flush=True)

        yield tell
        return

    from rich.console import Console
    from rich.live import Live

    first = problems[0].name if problems else config.workloads[0]
    latest: dict[tuple[str, str], Progress] = {}
    since: dict[tuple[str, str], float] = {}
    results: dict[tuple[str, str], Result] = {}
    # The table is drawn again by a thread of rich's own while the main one waits for the compiler.
    lock = threading.Lock()

    def picture() -> Any:
        with lock:
            workload = next(reversed(latest.values())).workload if latest else first
            scored = [results[workload, name] for name in config.method_names if (workload, name) in results]
            best = min(scored, key=lambda row: (row.steps, row.final), default=None)
            rows, highlight = [], None
            for i, name in enumerate(config.method_names):
                event, row = latest.get((workload, name)), results.get((workload, name))
                filled = list(cells(row, best)) if row and best else [name, *[""] * (len(HEAD) - 1)]
                if event and event.result is None:
                    filled[-1] = doing(event, time.perf_counter() - since[workload, name])
                if row is not None and row is best:
                    highlight = i
                rows.append(tuple(filled))
        return rich_table(f"race on {workload}", rows, highlight)

    console = Console(file=stream)
    with Live(get_renderable=picture, console=console, transient=True, refresh_per_second=2) as live:

        def show(event: Progress) -> None:
            key = (event.workload, event.method)
            with lock:
                before = latest.pop(key, None)
                if before is None or before.stage != event.stage or before.result is not None:
                    since[key] = time.perf_counter()
                latest[key] = event
                if event.result is not None:
                    results[key] = event.result
            live.refresh()

        yield show


def doing(event: Progress, seconds: float) -> str:
    """What a method does, and for how long it has done so.

    >>> doing(Progress("digits", "lion", "sweep", 0, 100), 7.4)
    'compiling, 7 s'
    >>> doing(Progress("digits", "lion", "time", 1, 2), 1.0)
    '━━━━━━────── timing, 1 s'
    """
    if event.done == 0 and event.stage in COMPILED:
        return f"{STAGES['compile'] if event.stage == 'compile' else 'compiling'}, {seconds:.0f} s"
    done = round(12 * event.done / max(1, event.total))
    return f"{'━' * done}{'─' * (12 - done)} {STAGES[event.stage]}, {seconds:.0f} s"


@contextlib.contextmanager
def ticker(total: int, metric_name: str = "metric") -> Iterator[Callable[[dict[str, Any]], None]]:
    """Shows one training run from its records: a bar in a terminal, about ten lines elsewhere.

    Args:
      total: how many steps the run makes.
      metric_name: what its metric is.
    """

    def text(record: dict[str, Any]) -> str:
        batch = f"  batch {record['batch_size']}" if "batch_size" in record else ""
        return f"minibatch loss {reading(record['loss'])}  {metric_name} {reading(record['metric'])}{batch}"

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

    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("step {task.completed} of {task.total}"), BarColumn(), TimeElapsedColumn())
    with Bar(*columns, TimeRemainingColumn(), TextColumn("{task.description}")) as bar:
        job = bar.add_task("compiling", total=total)
        yield lambda record: bar.update(job, completed=record["step"], description=text(record))
