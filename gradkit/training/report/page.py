"""The report of a race as one self-contained HTML page: no script, picture or style comes from elsewhere."""

import html
import importlib.metadata
import os
import platform

import jax
import numpy as np

from gradkit.training import scoring
from gradkit.training.race import Race, Result
from gradkit.training.report import charts, style
from gradkit.training.report.charts import duration, number, reading
from gradkit.training.report.table import note

SCORING = (
    "Every method trains with the same number of learning rates and the same seeds; its score is the median over "
    "seeds of the steps to the target at its best rate, and a miss counts as infinity. Time to target is those steps "
    "times the seconds per step of a single compiled run, measured in rounds that go through all methods in turn."
)

STYLE = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 44px 24px 64px; }
h1 { font-size: 32px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.015em; }
h2 { font-size: 21px; margin: 44px 0 4px; letter-spacing: -0.01em; }
h3 { font-size: 15px; margin: 0 0 8px; }
p { margin: 0 0 12px; max-width: 78ch; }
.muted, small { color: var(--muted); }
.verdict { font-size: 19px; line-height: 1.45; margin: 14px 0 0; }
.eyebrow { color: var(--muted); font-size: 13px; letter-spacing: 0.06em; text-transform: uppercase; margin: 0 0 6px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px; margin: 22px 0 0; }
.tile, .card { background: var(--paper); border: 1px solid var(--grid); border-radius: 12px; }
.tile { padding: 16px 18px; }
.tile b { display: block; font-size: 25px; line-height: 1.25; letter-spacing: -0.015em; }
.tile span { color: var(--muted); font-size: 14px; }
.card { padding: 18px 20px; margin-top: 14px; overflow-x: auto; }
.charts { display: grid; grid-template-columns: repeat(12, 1fr); gap: 14px; }
.charts .card { grid-column: span 6; margin-top: 0; overflow: hidden; }
.charts .wide { grid-column: span 12; }
.charts { margin-top: 14px; }
svg { display: block; width: 100%; height: auto; }
@media (max-width: 820px) { .charts .card { grid-column: span 12; overflow-x: auto; } .wide svg { min-width: 720px; } }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 500; color: var(--muted); padding: 6px 12px; white-space: nowrap; }
th button { all: unset; cursor: pointer; }
th button:hover, th button:focus-visible { color: var(--ink); text-decoration: underline; }
td { text-align: right; padding: 9px 12px; border-top: 1px solid var(--grid); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 4px; }
td.note { color: var(--muted); text-align: left; white-space: normal; min-width: 130px; font-size: 13.5px; }
tr.best td { background: var(--best); }
tr.best td:first-child { border-radius: 8px 0 0 8px; } tr.best td:last-child { border-radius: 0 8px 8px 0; }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin: 0 9px 0 4px; }
.facts td { text-align: left; white-space: normal; vertical-align: top; }
.facts td:first-child { color: var(--muted); width: 190px; }
.facts tr:first-child td { border-top: 0; }
code { font: 13.5px/1.5 ui-monospace, monospace; background: var(--page); padding: 2px 6px; border-radius: 5px; }
"""

SORT = """
for (const head of document.querySelectorAll("th button")) head.onclick = () => {
  const cell = head.parentElement, body = cell.closest("table").tBodies[0], at = cell.cellIndex;
  const up = cell.ariaSort !== "ascending", key = row => row.cells[at].dataset.key;
  for (const other of cell.parentElement.cells) other.ariaSort = null;
  cell.ariaSort = up ? "ascending" : "descending";
  const order = (a, b) => isNaN(key(a)) || isNaN(key(b)) ? key(a).localeCompare(key(b)) : key(a) - key(b);
  [...body.rows].sort((a, b) => up ? order(a, b) : order(b, a)).forEach(row => body.append(row));
};
"""

COLUMNS = ("method", "best rate", "steps to target", "over seeds", "time to target", "per step", "robust", "final")


def page(race: Race, command: str) -> str:
    """The whole report.

    Args:
      race: what was measured.
      command: what was typed to get it, for the reader who wants to do it again.
    """
    sections = "".join(_workload(race, name) for name in race.workloads)
    several = len(race.workloads) > 1
    heading = "Race on " + (f"{len(race.workloads)} workloads" if several else html.escape(race.workloads[0]))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{heading} · gradkit</title><style>{style.css()}{STYLE}</style></head><body><main>
<p class="eyebrow">gradkit race</p>
<h1>{heading}</h1>
<p class="muted">{len(race.config.method_names)} methods,
each with {race.config.rates} learning rates x {race.config.seeds} seeds; {duration(race.total_seconds)} in all.</p>
{_profiles(race) if several else ""}{sections}
<h2>How it is scored</h2><p>{SCORING}</p>
<p class="muted">Robust: how many of the rates tried reach the target within twice the best number of steps of that
method. A warm-up over the first twentieth and a cosine to zero for all, but for methods that find their step themselves
(constant: {_constant(race)}). Runs with the same seed start from the same parameters and see the same minibatches.</p>
<h2>What was run</h2><div class="card">{_facts(race, command)}</div>
<h2>References</h2><div class="card">{_references(race)}</div>
</main><script>{SORT}</script></body></html>
"""


def verdict(rows: list[Result]) -> str:
    """One sentence: who needed the fewest steps, who could not be told apart from it, who missed."""
    best = rows[0]
    if not np.isfinite(best.steps):
        return f"No method reached the target; {best.method} came nearest, at {reading(best.final)}."
    ratio = best.separable
    at = {row.method: row.sweep.steps_to_target[row.best] for row in rows}
    reached = [row for row in rows[1:] if np.isfinite(row.steps)]
    ties = [row.method for row in reached if not scoring.separated(at[best.method], at[row.method], ratio)]
    missed = [row.method for row in rows if not np.isfinite(row.steps)]
    text = f"{best.method} reached the target in {number(best.steps)} steps"
    text += f"; {_listed(ties)} cannot be told apart from it by these seeds" if ties else ", ahead of all others"
    return text + (f"; {_listed(missed)} missed it." if missed else ".")


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _workload(race: Race, name: str) -> str:
    problem, rows = race.problem(name), race.of(name)
    steps = race.config.steps or problem.budget_steps
    first, second, third = charts.svgs(race, name)
    heading = f"<h2>{html.escape(name)}</h2>" if len(race.workloads) > 1 else ""
    return f"""{heading}
<p class="muted">{html.escape(problem.description)}.
Target: {html.escape(problem.metric_name)} ≤ {number(problem.target)}, within {steps} steps.</p>
<p class="verdict">{html.escape(verdict(rows))}</p>
<div class="tiles">{_tiles(rows)}</div>
<div class="card">{_table(race, rows)}</div>
<div class="charts"><div class="card">{first}</div><div class="card">{third}</div>
<div class="card wide">{second}</div></div>"""


def _tiles(rows: list[Result]) -> str:
    robust = max(rows, key=lambda row: (row.robust / len(row.rates), -row.steps))
    tiles = [("fewest steps", rows[0].method, f"{number(rows[0].steps)} steps")]
    fastest = min(rows, key=lambda row: row.seconds)
    tiles.append(("least time", fastest.method, duration(fastest.seconds)))
    tiles.append(("most robust rate", robust.method, f"{robust.robust} of {len(robust.rates)} rates within 2x"))
    cheapest = min(rows, key=lambda row: row.seconds_per_step)
    tiles.append(("cheapest step", cheapest.method, duration(cheapest.seconds_per_step)))
    if not np.isfinite(rows[0].steps):
        tiles = [("nearest to the target", rows[0].method, reading(rows[0].final)), tiles[-1]]
    shown = (f"<span>{what}</span><b>{html.escape(who)}</b><span>{much}</span>" for what, who, much in tiles)
    return "".join(f'<div class="tile">{tile}</div>' for tile in shown)


def _table(race: Race, rows: list[Result]) -> str:
    head = "".join(f'<th scope="col"><button type="button">{column}</button></th>' for column in COLUMNS)
    body = ""
    for row in rows:
        low, high = row.spread
        place = race.config.method_names.index(row.method) % len(style.LIGHT)
        keyed = [
            (row.best_rate, number(row.best_rate)),
            (row.steps, f"<b>{number(row.steps)}</b>"),
            (high, f"{number(low)} – {number(high)}" if np.isfinite(low) else "–"),
            (row.seconds, duration(row.seconds)),
            (row.seconds_per_step, duration(row.seconds_per_step)),
            (row.robust / len(row.rates), f"{row.robust} of {len(row.rates)}"),
            (row.final, reading(row.final)),
        ]
        numbers = "".join(f'<td data-key="{min(key, 1e300)}">{shown}</td>' for key, shown in keyed)
        dot = f'<span class="dot" style="background: var(--s{place})"></span>'
        called = html.escape(row.method)
        name = f'<td data-key="{called}">{dot}<b>{called}</b></td>'
        best = ' class="best"' if row is rows[0] and np.isfinite(row.steps) else ""
        body += f'<tr{best}>{name}{numbers}<td class="note">{note(row, rows[0])}</td></tr>'
    return f'<table><thead><tr>{head}<th aria-label="notes"></th></tr></thead><tbody>{body}</tbody></table>'


def _profiles(race: Race) -> str:
    cards = "".join(f'<div class="card">{svg}</div>' for svg in charts.profile_svgs(race))
    return f'<h2>All workloads together</h2><div class="charts">{cards}</div>'


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    found = {"python": platform.python_version()}
    for package in ("gradkit", "jax", "jaxlib", "optax", "flax", "numpy", "scikit-learn"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def _device() -> str:
    device = jax.devices()[0]
    return f"{os.cpu_count()} CPU cores" if device.platform == "cpu" else f"{device.device_kind} ({device.platform})"


def _facts(race: Race, command: str) -> str:
    compiled = {row.method: 0.0 for row in race.results}
    for row in race.results:
        compiled[row.method] += row.sweep.compile_seconds + row.compile_seconds
    grids = ""
    for row in race.results:
        low, high = number(float(row.rates[0])), number(float(row.rates[-1]))
        grids += f"{html.escape(row.workload)} · {html.escape(row.method)}: {len(row.rates)} from {low} to {high}<br>"
    seeds = ", ".join(map(str, race.results[0].sweep.seeds.tolist()))
    facts = {
        "command": f"<code>{html.escape(command)}</code>",
        "versions": html.escape(", ".join(f"{name} {version}" for name, version in versions().items())),
        "device": html.escape(f"{_device()}, {platform.system()} {platform.machine()}"),
        "seeds": seeds,
        "learning rates": grids,
        "compile seconds": ", ".join(f"{html.escape(name)} {seconds:.1f}" for name, seconds in compiled.items()),
    }
    rows = "".join(f"<tr><td>{name}</td><td>{text}</td></tr>" for name, text in facts.items())
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def _constant(race: Race) -> str:
    """The methods whose rate follows no schedule."""
    return ", ".join(html.escape(m.name) for m in race.config.contestants if m.schedule is None) or "none here"


def _references(race: Race) -> str:
    rows = ""
    for method in race.config.contestants:
        card = method.card
        text = "no card: a method of your own, or of optax"
        if card is not None:
            text = f"{html.escape(str(card.paper))} <small>({card.public_name}: {html.escape(card.summary)})</small>"
        rows += f"<tr><td>{html.escape(method.name)}</td><td>{text}</td></tr>"
    return f'<table class="facts"><tbody>{rows}</tbody></table>'
