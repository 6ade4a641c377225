"""Figures of recorded races, in colours of the page."""

import html
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
ROW, LABEL, WIDTH = 18, 172, 640


def rows_of(file: pathlib.Path) -> list[dict[str, Any]]:
    """The last row of every method in a file of a race, the fastest first; misses at the end by what they reached."""
    best: dict[str, dict[str, Any]] = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        if "method" in row and "median" in row:
            best[row["method"]] = row
    return sorted(best.values(), key=lambda row: (finite(row["median"]), _number(row.get("final"))))


def finite(value: Any) -> float:
    """Steps, infinity for a miss."""
    return float(value) if isinstance(value, int | float) and value == value else float("inf")


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and value == value else float("inf")


def race(rows: Sequence[Mapping[str, Any]], title: str, only: int | None = None) -> str:
    """Median steps to the target as dots, with the range over seeds; a miss is a cross at the right edge."""
    rows = list(rows)[:only] if only else list(rows)
    ends = [finite(row[key]) for row in rows for key in ("median", "high") if finite(row[key]) != float("inf")]
    most = max(ends, default=1.0) * 1.04
    height = ROW * len(rows) + 30
    span = WIDTH - LABEL - 64

    def x(value: float) -> float:
        return LABEL + min(value / most, 1.0) * span

    out = [f'<svg class="race" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(title)}">']
    for tick in _ticks(most):
        out.append(f'<path class="grid" d="M{x(tick):.1f} 4V{height - 24}"/>')
        out.append(f'<text class="tick" x="{x(tick):.1f}" y="{height - 10}" text-anchor="middle">{tick:g}</text>')
    for i, row in enumerate(rows):
        y = 14 + ROW * i
        median, low, high = (finite(row[key]) for key in ("median", "low", "high"))
        out.append(f'<text x="{LABEL - 8}" y="{y + 4}" text-anchor="end">{html.escape(str(row["method"]))}</text>')
        if median == float("inf"):
            out.append(f'<path class="miss" d="M{WIDTH - 58} {y - 4}l8 8m0 -8l-8 8"/>')
            said = "miss"
        else:
            out.append(f'<path class="range" d="M{x(low):.1f} {y}H{x(high):.1f}"/>')
            out.append(f'<circle cx="{x(median):.1f}" cy="{y}" r="4"/>')
            said = f"{median:.0f}"
        out.append(f'<text class="value" x="{WIDTH - 4}" y="{y + 4}" text-anchor="end">{said}</text>')
    return "".join([*out, "</svg>"])


def _ticks(most: float) -> list[float]:
    step = next(s for s in (5, 10, 20, 25, 50, 100, 200, 250, 500, 1000, 5000, 1e9) if most / s <= 7)
    return [step * i for i in range(1, int(most / step) + 1)]
