"""Points of the contract, and the table of what a run has proven of them.

A point is a test of one promise, run for every method that makes it. The table says, for each point, how many methods
it was proven for, and of all others why it was not: opted out on the card, nothing to say of the method, skipped,
deselected, failed. Nothing that is left out is left out silently.
"""

import collections
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # conftest.py sets JAX up first
    from gradkit.catalogue import Card

# What a run has proven or not, from the strongest word to the weakest: a method that failed one test of a point failed.
OUTCOMES = ("failed", "skipped", "not run", "proven")


def point(
    form: str, check: str, known: "Mapping[str, Card]", silent: Mapping[str, str] | None = None, together: int = 0
) -> Any:
    """A decorator of tests that take a card.

    Args:
      form: whose contract it is.
      check: the name of the point.
      known: the methods that owe it.
      silent: those that it says nothing of -> the reason.
      together: how many cards the test takes at once, as `cards`. Default 0: one, as `card`.
    """
    silent = {name: reason for name, reason in (silent or {}).items() if check not in known[name].opt_outs}
    out = {name: card.opt_outs[check] for name, card in known.items() if check in card.opt_outs}
    chosen = [pytest.param(card, id=name) for name, card in known.items() if name not in out and name not in silent]
    if together:
        rows = [chosen[i : i + together] for i in range(0, len(chosen), together)]
        chosen = [pytest.param([p.values[0] for p in row], id="+".join(str(p.id) for p in row)) for row in rows]

    def decorate(test: Any) -> Any:
        marked = pytest.mark.point(form=form, check=check, out=out, silent=silent)(test)
        return pytest.mark.parametrize("cards" if together else "card", chosen)(marked)

    return decorate


def keys_of(item: pytest.Item) -> list[tuple[str, str, str]]:
    """(form, point, method) of every method that a test of the contract takes."""
    mark, call = item.get_closest_marker("point"), getattr(item, "callspec", None)
    if mark is None or call is None:
        return []
    taken = call.params["cards"] if "cards" in call.params else [call.params["card"]]
    return [(mark.kwargs["form"], mark.kwargs["check"], card.name) for card in taken]


def gathered(items: Iterable[pytest.Item]) -> dict[str, Any]:
    """What was collected, before anything was deselected, in lists that xdist can send."""
    owed, reasons = set(), set()
    for item in items:
        owed |= set(keys_of(item))
        if mark := item.get_closest_marker("point"):
            for what in ("out", "silent"):
                row = what, mark.kwargs["form"], mark.kwargs["check"]
                reasons |= {(*row, name, reason) for name, reason in mark.kwargs[what].items()}
    return {"owed": sorted(owed), "reasons": sorted(reasons)}


def outcomes(reports: Iterable[Any]) -> dict[tuple[str, str, str], set[str]]:
    """What became of every point of every method that ran."""
    found = collections.defaultdict(set)
    for report in reports:
        if not isinstance(report, pytest.TestReport):  # a test that was deselected, or a file that could not be read
            continue
        for name, key in report.user_properties:
            if name != "point":
                continue
            if report.outcome == "passed" and report.when == "call":
                found[tuple(key)].add("proven")
            elif report.outcome != "passed":
                found[tuple(key)].add(report.outcome)
    return found


def lines(collected: Mapping[str, Any], reports: Iterable[Any]) -> list[str]:
    """The table, and below it the reasons, for the points that ran for all their methods."""
    found, rows = outcomes(reports), collections.defaultdict(collections.Counter)
    for key in map(tuple, collected["owed"]):
        became = found.get(key) or {"not run"}
        rows[key[:2]][next(word for word in OUTCOMES if word in became)] += 1
    because = collections.defaultdict(list)
    for what, form, check, name, reason in collected["reasons"]:
        rows[form, check][what] += 1
        because[what, form, check, reason].append(name)
    columns = {"proven": "proven", "out": "opted out", "silent": "says nothing"} | {o: o for o in OUTCOMES[:3]}
    text = [f"{'contract of':12} {'point':16} " + " ".join(f"{title:>12}" for title in columns.values())]
    for (form, check), counts in sorted(rows.items()):
        text.append(f"{form:12} {check:16} " + " ".join(f"{counts[c] or '-':>12}" for c in columns))
    for what, title in (("out", "opted out"), ("silent", "says nothing")):
        for (kind, form, check, reason), names in sorted(because.items()):
            if kind == what and rows[form, check]["proven"] and not rows[form, check]["not run"]:
                text.append(f"{title}: {form}: {check}: {reason}: {', '.join(names)}")
    return text
