"""Tables and figures of comparisons."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.claims.tuning import Tuned, compared
from gradkit.training.report import style


def number(value: float) -> str:
    return "diverged" if not np.isfinite(value) else f"{value:.3g}"


def spread(values: Any, digits: int = 4) -> str:
    """The median, and the range over seeds."""
    values = np.asarray(values, float)
    if not np.isfinite(np.median(values)):
        return f"diverged ({np.isinf(values).sum()} of {len(values)})"
    ends = [f"{x:.{digits}g}" if np.isfinite(x) else "diverged" for x in (values.min(), values.max())]
    return f"{np.median(values):.{digits}g} [{ends[0]}, {ends[1]}]"


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Columns as wide as they must be; the first row is the head."""
    text = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in text) for i in range(len(text[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in text)


def lines(found: Sequence[Tuned], against: str | None = None) -> list[list[str]]:
    """Rows of a table of contestants: the best point, the metric, and how it compares with one of them, by seed."""
    base = next((one for one in found if one.name == against), None)
    rows = [["contestant", "best point", "trials", "at the end: median [range]", f"than {against}" if base else ""]]
    for one in found:
        point = ", ".join(f"{name} {number(value)}" for name, value in one.point.items())
        own = compared(one.finals, base.finals) if base is not None and one is not base else ""
        rows.append(
            [one.name, point + (" (edge)" if one.at_edge else ""), str(one.tuning.size), spread(one.finals), own]
        )
    return rows


def draw_rates(axes: Any, found: Sequence[Tuned], label: str) -> None:
    """The metric at the end of tuning against the learning rate; a dot at the best."""
    for i, one in enumerate(found):
        rates, ends = one.by_rate()
        finite = np.isfinite(ends)
        axes.plot(rates[finite], ends[finite], color=style.colour(i), linestyle=style.dash(i), label=one.name)
        if np.isfinite(ends).any():
            at = int(np.argmin(ends))
            axes.plot(rates[at], ends[at], "o", color=style.colour(i), markersize=6)
    axes.set(xscale="log", xlabel="learning rate", ylabel=label)
    label_rates(axes)
    axes.legend(frameon=False, fontsize=8)


def label_rates(axes: Any) -> None:
    """Labels of a logarithmic axis: at powers of ten alone where there are two, else at 1, 2 and 5 times these."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.xaxis.set_minor_formatter(NullFormatter())
    if high < 100 * low:
        axes.xaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))


def draw_curves(axes: Any, found: Sequence[Tuned], label: str) -> None:
    """The metric against the step at the best point: the median and the range over seeds."""
    for i, one in enumerate(found):
        curves = np.where(np.isfinite(one.curves), one.curves, np.nan)
        axes.plot(one.steps, np.nanmedian(curves, 0), color=style.colour(i), linestyle=style.dash(i), label=one.name)
        axes.fill_between(
            one.steps, np.nanmin(curves, 0), np.nanmax(curves, 0), color=style.colour(i), alpha=0.15, lw=0
        )
    axes.set(xlabel="step", ylabel=label)
    axes.legend(frameon=False, fontsize=8)


def draw_race(figure: Any, found: Sequence[Tuned], label: str) -> None:
    """Tuning on the left, the runs that judge on the right."""
    figure.set_size_inches(9.6, 4.0)
    left, right = figure.subplots(1, 2)
    draw_rates(left, found, f"{label}, at the end of tuning")
    draw_curves(right, found, label)
