"""What a notebook shows: tables of `describe`, of `inspect` and of races are well-formed HTML, with every row, and no
text of theirs becomes markup."""

import sys
import types
import xml.etree.ElementTree as ET
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit import tables
from gradkit.training import Inspection, Race, report
from gradkit.training.inspection import table
from gradkit.training.race import Progress
from gradkit.training.report import notebook
from gradkit.training.settings import RaceConfig

EVIL = "<b>&\"'x"


class Printer:
    """What IPython hands to `_repr_pretty_`."""

    def text(self, text: str) -> None:
        self.said = text


def parsed(text: str) -> ET.Element:
    """The element; whatever is not well-formed raises."""
    return ET.fromstring(text)


def rows(element: ET.Element) -> list[list[str]]:
    return [["".join(cell.itertext()) for cell in row] for row in element.iter("tr")]


def pretty(value: Any) -> str:
    printer = Printer()
    value._repr_pretty_(printer, False)
    return printer.said


def test_a_table_escapes_and_has_every_cell() -> None:
    made = parsed(tables.as_html(["a", EVIL], [["1", EVIL], [EVIL, "2"]], right=[1], bold=[1], caption=EVIL))
    assert made.tag == "table" and made.findtext("caption") == EVIL
    assert rows(made) == [["a", EVIL], ["1", EVIL], [EVIL, "2"]]
    cells = [cell.attrib["style"] for cell in made.iter("td")]
    assert ["text-align:right" in style for style in cells] == [False, True, False, True]
    assert ["font-weight:bold" in style for style in cells] == [False, False, True, True]


def test_a_description_shows_what_it_prints() -> None:
    params = {EVIL: {"kernel": np.zeros((8, 4), np.float32)}, "bias": np.zeros(4, np.float32)}
    found = gk.leaves.describe(gk.adamw(1e-3, weight_decay=0.1), params)
    head, *body = rows(parsed(found._repr_html_()))
    assert head[0] == "name" and [row[0] for row in body] == [*gk.leaves.names(params), "total"]
    assert [row[4:7] for row in body[:-1]] == [["adamw", "0.001", "0.1"]] * 2
    # The same texts, in the same order, as the lines of the plain table.
    assert ["".join("".join(row).split()) for row in [head, *body]] == [
        "".join(x.split()) for x in str(found).split("\n")
    ]
    assert pretty(found) == str(found)


def test_an_inspection_shows_what_it_prints() -> None:
    kinds = {"all-reduce": {"count": 2.0, "result_bytes": 8.0, "wire_bytes": 14.0}}
    found = Inspection(EVIL, "the update", EVIL, {"fsdp": 8}, 100, 400, 50, 0, 1e3, kinds, 4, 2)
    shown = rows(parsed(found._repr_html_()))
    assert [f"{name:<12} {text}" for name, text in shown] == table(found).split("\n") and EVIL in shown[0][1]
    assert pretty(found) == table(found)


@pytest.fixture(scope="module")
def raced() -> tuple[Race, list[Progress]]:
    """Two methods, of which one has a name that must be escaped, on two problems; and what a watcher was told."""
    own = [
        gk.workloads.problem(
            {"w": jnp.ones(2)},
            lambda params, batch: jnp.sum(params["w"] ** 2),
            None,
            metric=lambda params: jnp.sum(params["w"] ** 2),
            target=0.1,
            steps=20,
            eval_every=2,
            name=name,
            description=EVIL,
            metric_name=EVIL,
        )
        for name in ("one", f"{EVIL} two")
    ]
    told: list[Progress] = []
    found = gk.training.race(
        own, {"sgd": gk.sgd, EVIL: optax.sgd}, watch=told.append, rates=2, seeds=2, extensions=0, timing_rounds=1
    )
    return found, told


@pytest.mark.slow
def test_a_race_has_every_row_and_its_charts(raced: tuple[Race, list[Progress]]) -> None:
    found, _ = raced
    element = parsed(found._repr_html_())
    assert element.tag == "div"
    shown = rows(element)
    for place, workload in enumerate(found.workloads):
        own = shown[3 * place : 3 * place + 3]
        assert own[0][:3] == ["method", "best rate", "steps"]
        assert [row[0] for row in own[1:]] == [row.method for row in found.of(workload)]
        assert [row[2] for row in own[1:]] == [f"{row.steps:g}" for row in found.of(workload)]
    assert [caption.text or "" for caption in element.iter("caption")] == [
        f"{name}: {EVIL} <= 0.1 within 20 steps" for name in found.workloads
    ]
    # Three charts of every problem, and two profiles.
    charts = list(element.iter("{http://www.w3.org/2000/svg}svg"))
    assert len(charts) == 8 and charts[-4].attrib["aria-label"].startswith(f"{EVIL} two: ")
    assert len(found._repr_html_()) < 400_000
    assert pretty(found) == report.plain(found)
    page = report.page(found, "gradkit race")
    assert EVIL not in page and "&lt;b&gt;" in page  # the page of a report escapes the same names


def test_a_race_without_a_winner_marks_none(raced: tuple[Race, list[Progress]], monkeypatch: Any) -> None:
    monkeypatch.setattr(notebook.importlib.util, "find_spec", lambda name: None)  # as without matplotlib
    found, _ = raced
    missed = [row._replace(steps=np.inf, seconds=np.inf) for row in found.results]
    element = parsed(found._replace(results=tuple(missed))._repr_html_())
    assert not any("font-weight:bold" in cell.attrib["style"] for cell in element.iter("td"))
    assert not list(element.iter("{http://www.w3.org/2000/svg}svg"))
    assert [row[2] for row in rows(element) if row[0] == "sgd"] == ["miss", "miss"]


def test_a_race_that_runs_draws_its_table_again(raced: tuple[Race, list[Progress]], monkeypatch: Any) -> None:
    found, told = raced
    drawn: list[str] = []
    monkeypatch.setattr(notebook, "REDRAWN", 0.0)
    with notebook.watcher(found.config, drawn.append) as show:
        for event in told:
            show(event)
    assert drawn[-1] == "" and len(drawn) == len(told) + 1
    tables_of = [rows(parsed(text)) for text in drawn[:-1]]
    assert all([row[0] for row in table[1:]] == ["sgd", EVIL] for table in tables_of)
    assert tables_of[0][1][-1] == "compiling …" and tables_of[0][2][1:] == [""] * 9
    assert any("tuning" in row[-1] and "▰" in row[-1] for table in tables_of for row in table[1:])
    # A new problem begins with an empty table.
    second = next(i for i, event in enumerate(told) if event.workload != told[0].workload)
    assert tables_of[second - 1][2][2] != "" and tables_of[second][2][2] == ""
    assert parsed(drawn[second]).findtext("caption") == f"racing on {EVIL} two"
    scored = next(event.result for event in reversed(told) if event.result is not None)
    assert tables_of[-1][2][2] == f"{scored.steps:g}"


def test_a_race_that_fails_keeps_its_table(raced: tuple[Race, list[Progress]]) -> None:
    found, told = raced
    drawn: list[str] = []
    with pytest.raises(KeyboardInterrupt), notebook.watcher(found.config, drawn.append) as show:
        show(told[0])
        raise KeyboardInterrupt
    assert len(drawn) == 1 and drawn[0]


def test_only_the_kernel_of_a_notebook_is_drawn_in(monkeypatch: Any) -> None:
    """A terminal, IPython in one included, shows nothing while a race runs, as before."""
    config = RaceConfig(workloads=("heavytail",), methods=("sgd",))
    shown: list[tuple[str, str]] = []

    class Handle:
        def update(self, value: Any) -> None:
            shown.append(("again", value))

    def display(value: Any, display_id: bool) -> Handle:
        assert display_id
        shown.append(("first", value))
        return Handle()

    shell = types.SimpleNamespace()
    ipython: Any = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    own: Any = types.ModuleType("IPython.display")
    own.display, own.HTML = display, str
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", own)
    event = Progress("heavytail", "sgd", "sweep", 0, 10)
    with notebook.watcher(config) as show:
        show(event)
    assert not shown
    shell.kernel = object()
    with notebook.watcher(config) as show:
        show(event)
    assert [kind for kind, _ in shown] == ["first", "again", "again"]
    assert shown[0][1] == "" and "heavytail" in shown[1][1] and shown[2][1] == ""
    monkeypatch.delitem(sys.modules, "IPython")
    assert not notebook.in_notebook()
