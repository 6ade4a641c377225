"""What stands behind a method: the test of its paper, its trajectories, its rows in races, and its relatives."""

import ast
import functools
import inspect
import json
import pathlib
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import docstrings

from gradkit import catalogue
from gradkit.catalogue import Card

ROOT = pathlib.Path(__file__).parents[2]


@functools.cache
def cards() -> Mapping[str, Card]:
    """All cards, by name."""
    return catalogue.cards()


def page_of(name: str) -> str:
    """The file of a method's page."""
    return f"{name}.md"


@functools.cache
def _tests(file: str) -> tuple[tuple[str, str, str], ...]:
    """(test, the sentence of its docstring, the source) of every test of a file."""
    text = (ROOT / file).read_text(encoding="utf-8")
    found = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            source = "\n".join(text.splitlines()[start - 1 : node.end_lineno])
            found.append((node.name, " ".join((ast.get_docstring(node) or "").split()), source))
    return tuple(found)


def evidence(card: Card) -> list[str]:
    out = ["## Evidence", ""]
    tests = _tests(card.paper_check)
    naming = [t for t in tests if re.search(rf"\b{re.escape(card.name)}\b", t[2])] or list(tests)
    out += [f"The check of its paper is `{card.paper_check}`:", ""]
    for name, said, _ in naming[:12]:
        sentence = name.removeprefix("test_").replace("_", " ")
        more = f" {docstrings.prose(said)}" if said else ""
        out.append(f"- {docstrings.escaped(sentence[:1].upper() + sentence[1:])}.{more}")
    if len(naming) > 12:
        out.append(f"- and {len(naming) - 12} more.")
    out.append("")
    if card.golden:
        files = ", ".join(f"`{each}`" for each in card.golden)
        count = "a trajectory" if len(card.golden) == 1 else f"{len(card.golden)} trajectories"
        out += [f"It is replayed in float64 against {count} of an implementation that shares no code: {files}.", ""]
    if card.form in catalogue.TRANSFORMATIONS:
        same = (
            f", as [`{cards()[card.same_as].public_name}`]({page_of(card.same_as)})" if card.same_as in cards() else ""
        )
        out += [f"Every point of the contract of `tests/contract` is tested on it{same}."]
        for check, reason in card.opt_outs.items():
            out += ["", f"- It opts out of `{check}`: {docstrings.prose(reason)}"]
        out.append("")
    return out


@functools.cache
def races() -> dict[str, list[tuple[str, str, dict[str, Any]]]]:
    """method -> (file of results, problem, row) of the races that are recorded."""
    found: dict[str, list[tuple[str, str, dict[str, Any]]]] = defaultdict(list)
    variants = {v: name for name, card in cards().items() for v in card.variants}
    for file in sorted((ROOT / "experiments/results").glob("*race*.jsonl")):
        best: dict[str, dict[str, Any]] = {}
        for line in file.read_text().splitlines():
            row = json.loads(line)
            if "method" in row and "median" in row:
                best[row["method"]] = row
        for method, row in best.items():
            name = method if method in cards() else variants.get(method, "")
            if name:
                found[name].append((file.name.removesuffix(".jsonl"), str(row["workload"]), {**row, "of": len(best)}))
                ahead = sum(_order(other) < _order(row) for other in best.values())
                found[name][-1][2]["place"] = ahead + 1
    return found


def _order(row: Mapping[str, Any]) -> float:
    median = row["median"]
    return float(median) if isinstance(median, int | float) and median == median else float("inf")


def _steps(value: Any) -> str:
    return (
        f"{value:.0f}" if isinstance(value, int | float) and value == value and abs(value) != float("inf") else "miss"
    )


def raced(card: Card) -> list[str]:
    rows = races().get(card.name, [])
    if not rows:
        return []
    out = [
        "## In the races",
        "",
        "Tuned over its learning rate with the same effort as all others, then run with new seeds "
        "([all races](../evidence.md)):",
        "",
        "| problem | as | learning rate | median steps to the target | over seeds | misses | place |",
        "|---|---|---|---|---|---|---|",
    ]
    for file, problem, row in rows:
        rate = "-" if row.get("best_rate") is None else f"{row['best_rate']:.3g}"
        reach = f"{_steps(row['low'])} to {_steps(row['high'])}" if _steps(row["median"]) != "miss" else "-"
        place = f"{row['place']} of {row['of']}" if _steps(row["median"]) != "miss" else f"- of {row['of']}"
        anchor = file.removesuffix(".txt").replace("_", "-")
        out.append(
            f"| [{problem}](../evidence.md#{anchor}) | `{row['method']}` | {rate} | {_steps(row['median'])} | {reach} "
            f"| {row['misses']} of {row['seeds']} | {place} |"
        )
    return [*out, ""]


@functools.cache
def _kin() -> tuple[dict[Any, list[Card]], dict[str, list[Card]], dict[str, set[str]]]:
    papers: dict[Any, list[Card]] = defaultdict(list)
    files: dict[str, list[Card]] = defaultdict(list)
    mentions: dict[str, set[str]] = defaultdict(set)
    for card in cards().values():
        papers[card.paper].append(card)
        files[card.file].append(card)
        doc = inspect.getdoc(card.function) or ""
        for code in re.findall(r"`((?:gk\.)?[\w.]+)", doc):
            name = code.split(".")[-1]
            if name in cards() and name != card.name:
                mentions[card.name].add(name)
    return papers, files, mentions


def relatives(card: Card) -> list[tuple[str, str]]:
    """(name, why) of the methods nearest to one."""
    papers, files, mentions = _kin()
    found: dict[str, str] = {}
    if card.same_as in cards():
        found[card.same_as] = "the same under another name, or its heart"
    for other in papers[card.paper]:
        if other.name != card.name and card.paper.authors:
            found.setdefault(other.name, "of the same paper")
    for other in files[card.file]:
        if other.name != card.name:
            found.setdefault(other.name, "of the same file")
    for name in sorted(mentions[card.name]):
        found.setdefault(name, "named in its docstring")
    for name, named in mentions.items():
        if card.name in named:
            found.setdefault(name, "its docstring names this method")
    return list(found.items())
