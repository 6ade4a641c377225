"""The charts of a race: metric against step, steps at every learning rate, time to target, profiles."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradkit.training.race import Race, Result
from gradkit.training.report import style
from gradkit.workloads import Workload


def check_libraries() -> None:
    """Raises an `ImportError` where what draws the charts is not installed."""
    matplotlib_of("the report of a race")


def matplotlib_of(what: str) -> Any:
    """Matplotlib, or an `ImportError` that says what needs it."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(f"{what} needs matplotlib: pip install 'gradkit[race]'") from error
    return matplotlib


def number(value: float, digits: int = 3) -> str:
    """A short number for a label: three digits, no exponent where none is needed.

    >>> number(0.000123456), number(1234.5), number(float("inf"))
    ('0.000123', '1234', 'miss')
    """
    if not np.isfinite(value):
        return "miss"
    if value != 0 and not 1e-4 <= abs(value) < 1e5:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.{digits}g}"


def reading(metric: float) -> str:
    """A metric for a label.

    >>> reading(0.5), reading(float("nan"))
    ('0.5', 'diverged')
    """
    return number(metric) if np.isfinite(metric) else "diverged"


def duration(seconds: float) -> str:
    """Seconds for a label.

    >>> duration(2e-5), duration(0.0004), duration(0.25), duration(12.3), duration(float("inf"))
    ('20 µs', '0.40 ms', '250 ms', '12.3 s', 'miss')
    """
    if not np.isfinite(seconds):
        return "miss"
    if seconds >= 1:
        return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"
    if seconds >= 1e-4:
        return f"{1e3 * seconds:.0f} ms" if seconds >= 0.01 else f"{1e3 * seconds:.2f} ms"
    return f"{1e6 * seconds:.0f} µs"


def spread_out(places: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Moves labels apart: same order, at least `gap` between neighbours, as near to their places as that allows.

    >>> spread_out([0.5, 0.5, 0.9], 0.1, 0.0, 1.0).round(2).tolist()
    [0.45, 0.55, 0.9]
    """
    order = np.argsort(places, kind="stable")
    blocks: list[list[float]] = []  # [mean of (place - offset), count] of labels that touch
    for place in np.asarray(places, float)[order]:
        blocks.append([place, 1])
        while len(blocks) > 1 and blocks[-2][0] + gap * (blocks[-2][1] + blocks[-1][1]) / 2 > blocks[-1][0]:
            (centre, count), (other, more) = blocks[-2], blocks[-1]
            blocks[-2:] = [[(centre * count + other * more) / (count + more), count + more]]
    moved = []
    for centre, count in blocks:
        moved += [centre + gap * (i - (count - 1) / 2) for i in range(int(count))]
    moved = np.asarray(moved)
    room = np.arange(len(moved)) * gap
    moved = np.minimum(moved, high - room[::-1])
    moved = np.maximum(moved, low + room)
    out = np.empty(len(moved))
    out[order] = moved
    return out


def metric_chart(axes: Any, problem: Workload, rows: Sequence[Result], places: dict[str, int]) -> None:
    """Metric against step at each method's best rate: median and 10-90 % band over seeds."""
    ends, floor, ceiling = [], np.inf, 0.0
    for row in rows:
        runs = row.sweep.curves[row.best]
        runs = np.where(np.isfinite(runs), runs, np.nan)
        alive = np.isfinite(runs).any(0)
        steps, runs = row.sweep.steps[alive], runs[:, alive]
        if not len(steps):
            continue
        middle, low, high = np.nanmedian(runs, 0), *np.nanquantile(runs, [0.1, 0.9], axis=0)
        place = places[row.method]
        axes.fill_between(steps, low, high, color=style.colour(place), alpha=0.13, linewidth=0)
        axes.plot(steps, middle, color=style.colour(place), linestyle=style.dash(place))
        if np.isfinite(row.steps):
            mark = {
                "color": style.colour(place),
                "markersize": 6,
                "markeredgecolor": style.PAPER,
                "markeredgewidth": 1.2,
            }
            axes.plot([row.steps], [problem.target], "o", zorder=5, **mark)
        ends.append((row, steps[-1], middle[-1]))
        floor, ceiling = min(floor, middle.min()), max(ceiling, middle[0], problem.target)
    if not ends:
        return
    log = floor > 0
    axes.set_yscale("log" if log else "linear")
    axes.set_ylim(min(floor, problem.target) * (0.7 if log else 1.0), ceiling * (1.4 if log else 1.05))
    last = max(step for _, step, _ in ends)
    axes.set_xlim(0, last)
    axes.axhline(problem.target, color=style.INK, linewidth=1.0, linestyle=(0, (3, 3)), zorder=1)
    # At the left edge every curve is still far above the target: the label is in nobody's way.
    label = f"target {number(problem.target)}"
    axes.annotate(label, (0, problem.target), (5, 3), textcoords="offset points", fontsize=8.5, color=style.MUTED)
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [to_axes.transform((last, np.clip(value, *axes.get_ylim())))[1] for _, _, value in ends]
    for (row, _, _), height, label in zip(ends, heights, spread_out(heights, 0.062, 0.02, 0.99), strict=True):
        axes.plot(
            [1.0, 1.03], [height, label], transform=axes.transAxes, clip_on=False, linewidth=0.9,
            color=style.colour(places[row.method]),
        )  # fmt: skip
        axes.text(
            1.04, label, row.method, transform=axes.transAxes, va="center", fontsize=9.5, fontweight="bold",
            color=style.colour(places[row.method]),
        )  # fmt: skip
    axes.set_title(f"{problem.metric_name} at the best rate")
    axes.set_xlabel("step")
    axes.grid(axis="x", visible=False)


def rate_chart(axes: Any, problem: Workload, rows: Sequence[Result], places: dict[str, int]) -> None:
    """Steps to target at every learning rate tried; filled where within twice the best of the method."""
    best = {row.method: row.steps for row in rows}
    for height, row in enumerate(rows):
        medians, paint = np.median(row.sweep.steps_to_target, -1), style.colour(places[row.method])
        axes.plot(row.rates[[0, -1]], [height, height], color=style.GRID, linewidth=5, zorder=1)
        for i, (rate, steps) in enumerate(zip(row.rates, medians, strict=True)):
            near = np.isfinite(steps) and steps <= 2 * best[row.method]
            if np.isfinite(steps):
                size = 9 if i == row.best else 6.5
                face = paint if near else style.PAPER
                axes.plot([rate], [height], "o", color=paint, markerfacecolor=face, markersize=size, mew=1.4, zorder=3)
                weight = "bold" if i == row.best else "normal"
                axes.annotate(
                    number(steps), (rate, height), (0, 7.5), textcoords="offset points", ha="center", fontsize=7.5,
                    color=style.INK if near else style.MUTED, fontweight=weight,
                )  # fmt: skip
            else:
                axes.plot([rate], [height], "x", color=style.MUTED, markersize=4.5, mew=1.1, zorder=3)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [row.method for row in rows], fontweight="bold", fontsize=9.5)
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(style.colour(places[row.method]))
    axes.set_ylim(len(rows) - 0.5, -0.6)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_title("Steps to target at every learning rate")
    axes.set_xlabel("learning rate  (filled: within 2x of the method's best · hollow: slower · x: miss)")


def time_chart(axes: Any, problem: Workload, rows: Sequence[Result], places: dict[str, int]) -> None:
    """Time to target of each method: steps times seconds per step, fastest on top."""
    rows = sorted(rows, key=lambda row: row.seconds)
    longest = max((row.seconds for row in rows if np.isfinite(row.seconds)), default=1.0)
    for height, row in enumerate(rows):
        if np.isfinite(row.seconds):
            axes.barh(height, row.seconds, height=0.56, color=style.colour(places[row.method]))
            text = f"{duration(row.seconds)}  "
            detail = f"{number(row.steps)} x {duration(row.seconds_per_step)}"
        else:
            text, detail = "miss  ", f"best {reading(row.final)}, {duration(row.seconds_per_step)} a step"
        at = row.seconds if np.isfinite(row.seconds) else 0.0
        beside = {"textcoords": "offset points", "va": "center"}
        label = axes.annotate(text, (at, height), (6, 0), fontsize=9.5, fontweight="bold", **beside)
        axes.annotate(detail, (1, 0.5), (2, 0), xycoords=label, fontsize=8.5, color=style.MUTED, **beside)
    axes.set_xlim(0, longest * 1.75)
    axes.set_yticks(range(len(rows)), [row.method for row in rows], fontweight="bold", fontsize=9.5)
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(style.colour(places[row.method]))
    axes.set_ylim(len(rows) - 0.5, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(visible=False)
    axes.set_title("Time to target")


def profile_chart(axes: Any, result: Race, which: str, places: dict[str, int]) -> None:
    """Share of workloads on which a method is within a factor of the best one."""
    profile = result.step_profile if which == "steps" else result.time_profile
    finals = [float(share[-1]) for share in profile.share.values()]
    labels = spread_out(finals, 0.075, 0.02, 1.0)
    for (method, share), label in zip(profile.share.items(), labels, strict=True):
        paint = style.colour(places[method])
        axes.step(profile.tau, share, where="post", color=paint, linestyle=style.dash(places[method]))
        axes.text(
            1.02, label, f"{method}  {profile.area[method]:.2f}", transform=axes.get_yaxis_transform(), va="center",
            color=paint, fontsize=9.5, fontweight="bold",
        )  # fmt: skip
    axes.set_xlim(profile.tau[0], profile.tau[-1])
    axes.set_ylim(0, 1.04)
    axes.set_title(f"Share of workloads within a factor of the best, by {which}")
    axes.set_xlabel(f"{which}, as a multiple of the best method  (number: area)")


Chart = Callable[[Any, Workload, Sequence[Result], dict[str, int]], None]
# Chart, size on the page in inches, what it shows; left to right in the picture.
CHARTS: tuple[tuple[Chart, tuple[float, float], str], ...] = (
    (metric_chart, (5.5, 3.9), "metric against step, median and band over seeds"),
    (rate_chart, (10.5, 4.1), "steps to target at every learning rate tried"),
    (time_chart, (5.5, 3.9), "time to target"),
)
PICTURE_WIDTHS = (6.2, 6.4, 5.2)


def svgs(result: Race, workload: str) -> list[str]:
    """The charts of one workload as themed SVG elements."""
    drawn = []
    places = {method: i for i, method in enumerate(result.config.method_names)}
    for chart, size, label in CHARTS:

        def draw(axes: Any, chart: Chart = chart) -> None:
            chart(axes, result.problem(workload), result.of(workload), places)

        drawn.append(_svg(draw, size, f"{workload}: {label}"))
    return drawn


def profile_svgs(result: Race) -> list[str]:
    """The two performance profiles as themed SVG elements."""
    places = {method: i for i, method in enumerate(result.config.method_names)}
    return [
        _svg(lambda axes, which=which: profile_chart(axes, result, which, places), (5.5, 3.5), f"profile by {which}")
        for which in ("steps", "time")
    ]


def _svg(draw: Callable[[Any], None], size: tuple[float, float], label: str) -> str:
    matplotlib = matplotlib_of("the report of a race")
    # The salt names clip paths; two charts on a page must not share names.
    with matplotlib.rc_context({**style.RC, "svg.hashsalt": label}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        return style.themed_svg(figure, label)


def save_png(result: Race, path: pathlib.Path) -> None:
    """All charts as one picture: a row per workload, and a row of profiles where there are several."""
    matplotlib = matplotlib_of("the report of a race")
    with matplotlib.rc_context(style.RC):
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        workloads, places = result.workloads, {method: i for i, method in enumerate(result.config.method_names)}
        several = len(workloads) > 1
        rows = len(workloads) + several
        layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12)
        figure = Figure(figsize=(18, 4.3 * rows), layout=layout, facecolor=style.PAPER)
        grid = figure.add_gridspec(rows, 3, width_ratios=PICTURE_WIDTHS)
        for i, workload in enumerate(workloads):
            for j, (chart, _, _) in enumerate(CHARTS):
                axes = figure.add_subplot(grid[i, j])
                chart(axes, result.problem(workload), result.of(workload), places)
                if several:
                    axes.set_title(f"{workload}: {axes.get_title('left')[:1].lower()}{axes.get_title('left')[1:]}")
        if several:
            for j, which in enumerate(("steps", "time")):
                profile_chart(figure.add_subplot(grid[-1, j]), result, which, places)
        figure.savefig(path, dpi=130)
