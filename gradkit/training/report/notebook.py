"""A race in a notebook: a table that is drawn again while it runs, and its result as one element of HTML."""

import contextlib
import html
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from gradkit import tables
from gradkit.training.race import Progress, Race, Result
from gradkit.training.report import charts, style
from gradkit.training.report.live import COMPILED, STAGES
from gradkit.training.report.page import verdict
from gradkit.training.report.table import HEAD, cells, title
from gradkit.training.settings import RaceConfig

REDRAWN = 0.4  # seconds between two drawings
WIDTH = 980  # pixels
NUMBERS = range(1, len(HEAD) - 1)
# The page around may be light or dark: text takes its colour, and nothing has a background of its own.
COLOURS = {"ink": "currentColor", "muted": "#80868f", "grid": "rgba(128,128,128,0.28)", "paper": "transparent"}


def fragment(race: Race) -> str:
    """Of every workload what was raced, who won, the table and, where matplotlib is installed, the charts.

    Args:
      race: the result.

    Returns:
      One well-formed element that needs nothing from elsewhere.
    """
    drawn = importlib.util.find_spec("matplotlib") is not None
    parts = []
    for workload in race.workloads:
        rows = race.of(workload)
        parts.append(f"<p><b>{html.escape(verdict(rows))}</b></p>")
        shown = [cells(row, rows[0]) for row in rows]
        best = [0] if rows[0].steps < float("inf") else []
        table = tables.as_html(HEAD, shown, right=NUMBERS, bold=best, caption=title(race, workload))
        parts.append(f'<div style="overflow-x:auto">{table}</div>')
        parts += [_side_by_side(charts.svgs(race, workload))] if drawn else []
    if len(race.workloads) > 1 and drawn:
        parts.append(_side_by_side(charts.profile_svgs(race)))
    names = COLOURS | {f"s{i}": colour for i, colour in enumerate(style.LIGHT)}
    variables = "".join(f"--{name}:{colour};" for name, colour in names.items())
    return f'<div style="max-width:{WIDTH}px;{variables}">{"".join(parts)}</div>'


def _side_by_side(svgs: list[str]) -> str:
    """Charts in a row, as many as fit; the second of three has a row of its own."""
    order = [svgs[0], svgs[2], svgs[1]] if len(svgs) == 3 else svgs
    widths = [46, 46, 100]
    boxes = [
        f'<div style="flex:1 1 {width}%;min-width:320px">{svg}</div>' for width, svg in zip(widths, order, strict=False)
    ]
    return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(boxes)}</div>'


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which can draw a table again in its place."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


@contextlib.contextmanager
def watcher(config: RaceConfig, draw: Callable[[str], None] | None = None) -> Iterator[Callable[[Progress], None]]:
    """A watcher for `race` that draws a table in a notebook, and does nothing elsewhere.

    The table goes away when the race ends, for its result is a better one; after an error it stays.

    Args:
      config: the race that is watched.
      draw: shows HTML, in the place of what it showed before. Default None: in the cell of a notebook that runs.
    """
    if draw is None:
        if not in_notebook():
            yield lambda event: None
            return
        draw = _cell()
    latest: dict[str, Progress] = {}
    results: dict[str, Result] = {}
    workload, drawn = "", 0.0

    def show(event: Progress) -> None:
        nonlocal workload, drawn
        if event.workload != workload:
            latest.clear()
            results.clear()
            workload = event.workload
        latest[event.method] = event
        if event.result is not None:
            results[event.method] = event.result
        # What is compiled takes long after its first event, which must be seen.
        if event.result is not None or event.done == 0 or time.perf_counter() > drawn + REDRAWN:
            draw(picture(workload, config, latest, results))
            drawn = time.perf_counter()

    yield show
    draw("")


def picture(workload: str, config: RaceConfig, latest: dict[str, Progress], results: dict[str, Result]) -> str:
    """The table of a race that runs: of every method its result as far as it is known, and what it does."""
    best = min(results.values(), key=lambda row: (row.steps, row.final), default=None)
    rows, bold = [], []
    for i, name in enumerate(config.method_names):
        row, event = results.get(name), latest.get(name)
        filled = list(cells(row, best)) if row is not None and best is not None else [name, *[""] * (len(HEAD) - 1)]
        if event is not None and event.result is None:
            filled[-1] = doing(event)
        bold += [i] if row is not None and row is best else []
        rows.append(filled)
    return tables.as_html(HEAD, rows, right=NUMBERS, bold=bold, caption=f"racing on {workload}")


def doing(event: Progress) -> str:
    """What a method does now.

    >>> doing(Progress("digits", "lion", "sweep", 0, 100)), doing(Progress("digits", "lion", "time", 1, 2))
    ('compiling …', '▰▰▰▰▰▱▱▱▱▱ timing')
    """
    if event.done == 0 and event.stage in COMPILED:
        return "compiling …"
    done = round(10 * event.done / max(1, event.total))
    return f"{'▰' * done}{'▱' * (10 - done)} {STAGES[event.stage]}"


def _cell() -> Callable[[str], None]:
    """Shows HTML below the cell that runs."""
    display: Any = importlib.import_module("IPython.display")
    handle = display.display(display.HTML(""), display_id=True)
    return lambda text: handle.update(display.HTML(text))
