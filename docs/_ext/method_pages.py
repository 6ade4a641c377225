"""One page per method, made of its card, its docstring, the test of its paper and the recorded races."""

import ast
import functools
import html
import inspect
import json
import pathlib
import re
import sys
from collections import defaultdict
from typing import Any

import docstrings
import method_evidence
from method_evidence import ROOT, cards, page_of

import gradkit as gk
from gradkit import catalogue
from gradkit.catalogue import Card
from gradkit.engine.extras import EXTRAS

COLLECTIVES = {
    "none": "none: a step is elementwise",
    "norms": "a few scalars per tensor, packed into one all-reduce where leaves are sharded",
    "gramian": "one number per pair of tasks",
    "matrices": "matrices; with `shard=` each is worked on by one device",
    "replicas": "parameters or gradients of the replicas",
}
FORMS = {
    "primitive": "a gradient into a direction, without a learning rate: one link of a chain",
    "optimizer": "a chain that ends in the learning rate",
    "wrapper": "a transformation around any transformation",
    "controller": "holds a measured number, and scales by it or decides about batches",
    "aggregator": "many gradients into one update: the first link of a chain",
    "strategy": "ties replicas together, under `vmap` or on a mesh",
    "exchange": "the gradients of all replicas into one",
    "schedule": "a step into a value",
    "source": "a loss into a function like `jax.value_and_grad`",
    "layer": "a pure function inside a model",
    "rule": "hyperparameters at one batch size or width into those at another",
    "diagnostic": "a pure measurement",
    "function": "numbers, arrays or recorded runs into numbers",
    "program": "goes around functions of your own",
}
ROOMS = {
    "optimizers": "Optimizers", "transforms": "Links and wrappers", "gradients": "Gradients", "layers": "Layers",
    "losses": "Losses", "aggregation": "Aggregation", "schedules": "Schedules", "batches": "Batches",
    "diagnostics": "Diagnostics", "leaves": "Leaves", "parallel": "Parallel", "linalg": "Linear algebra",
    "training": "Training", "workloads": "Workloads", "testing": "Testing",
}  # fmt: skip


@functools.cache
def argument_names() -> frozenset[str]:
    """Names of arguments of more than a word, over all methods: identifiers of several letters in equations."""
    names: set[str] = set()
    for card in cards().values():
        names |= {name for name in inspect.signature(card.function).parameters if "_" in name}
    return frozenset(names)


def names_of(function: Any) -> frozenset[str]:
    """What counts as one name in the equations of a function."""
    own = {name for name in inspect.signature(function).parameters if len(name) > 1}
    return argument_names() | own


def signature(function: Any, name: str) -> str:
    """A signature without annotations that say nothing."""
    own = inspect.signature(function)
    parameters = [
        p.replace(
            annotation=inspect.Parameter.empty, default=_Shown(p.default) if p.default is not p.empty else p.empty
        )
        for p in own.parameters.values()
    ]
    return f"{name}{inspect.Signature(parameters)}"


class _Shown:
    """A default as a reader would write it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return default(self.value)


def default(value: Any) -> str:
    """The text of a default."""
    if inspect.isfunction(value) or inspect.isclass(value):
        return value.__name__
    text = repr(value)
    return text if "<" not in text and " at 0x" not in text else type(value).__name__


def _arguments(card: Card, doc: docstrings.Docstring) -> list[str]:
    text = doc.sections.get("Args", "")
    if not text:
        return []
    parameters = inspect.signature(card.function).parameters
    out = ["## Arguments", ""]
    for name, meaning in docstrings.entries(text):
        if not name:
            out += [docstrings.prose(meaning), ""]
            continue
        defaults = []
        for each in re.split(r", | and ", name):
            p = parameters.get(each.lstrip("*"))
            if p is not None and p.default is not p.empty:
                defaults.append(default(p.default))
        names = ", ".join(f"`{each}`" for each in re.split(r", | and ", name))
        given = ", ".join(f"`{each}`" for each in dict.fromkeys(defaults))
        out += [f"{names}{' = ' + given if given else ''}", f": {docstrings.prose(meaning)}", ""]
    return out


def facts(card: Card) -> list[tuple[str, str]]:
    """What the card says, as pairs of a term and HTML."""
    paper = html.escape(f"{card.paper.title.rstrip('.')}. {card.paper.authors}, {card.paper.year}".replace(". ,", ","))
    if not card.paper.authors:
        paper = html.escape(card.paper.title)
    if card.paper.arxiv:
        paper += f', <a href="https://arxiv.org/abs/{card.paper.arxiv}">arXiv {card.paper.arxiv}</a>'
    rows = [("Paper", paper), ("Form", f"{card.form}: {_code(FORMS[card.form])}")]
    if card.form in catalogue.TRANSFORMATIONS:
        words = f"{card.words:g} float32 word{'s' * (card.words != 1)} per parameter" if card.words else "scalars alone"
        if card.form == "wrapper":
            words += ", beside what it goes around"
        rows.append(("State", words))
        rows.append(("Between devices", _code(COLLECTIVES[card.collectives])))
    if card.form == "strategy":
        rows.append(("A round sends", f"{card.sent:g} word{'s' * (card.sent != 1)} per parameter, uncompressed"))
    if card.delay:
        rows.append(("Delay", _code(card.delay)))
    for name in card.needs:
        meaning = EXTRAS[name].meaning if name in EXTRAS else ""
        rows.append(("Needs", f"<code>{name}</code>: {_code(meaning)}"))
    if card.only:
        rows.append(("Only", html.escape(card.only)))
    if card.form == "aggregator" and (card.tasks.fewest > 1 or card.tasks.most):
        most = f" to {card.tasks.most}" if card.tasks.most else " or more"
        rows.append(("Tasks", f"{card.tasks.fewest}{most}"))
    rows.append(("File", f"<code>{card.file}</code>"))
    return rows


def _code(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _facts_html(card: Card, picture: str) -> str:
    rows = "".join(f"<dt>{term}</dt><dd>{meaning}</dd>" for term, meaning in facts(card))
    figure = f"<figure>{picture}</figure>" if picture else ""
    return f'<div class="card-of-method">{figure}<dl>{rows}</dl></div>'


def _example(doc: docstrings.Docstring, card: Card) -> list[str]:
    text = doc.sections.get("Example", "")
    if not text:
        return []
    imports = []
    module = sys.modules[card.function.__module__]
    if re.search(rf"(?<![.\w]){card.name}\(", text):
        room = (
            "gradkit"
            if card.public_name.count(".") == 1
            else card.public_name.rsplit(".", 1)[0].replace("gk", "gradkit")
        )
        imports.append(f">>> from {room} import {card.name}")
    for alias, line in (
        ("jnp", "import jax.numpy as jnp"), ("jax", "import jax"), ("optax", "import optax"),
        ("np", "import numpy as np"),        ("functools", "import functools"), ("gk", "import gradkit as gk"),
    ):  # fmt: skip
        used = re.search(rf"(?<![.\w]){alias}\.", text)
        if used and not re.search(rf"import .*\b{alias}\b", text) and (alias in vars(module) or alias == "gk"):
            imports.insert(0, f">>> {line}")
    return ["## Example", "", "```pycon", *imports, *text.splitlines(), "```", ""]


@functools.cache
def choices() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """method -> what a reader has, for whom the guide of choosing names it: measured, and by its paper."""
    text = (ROOT / "docs/guides/choose.md").read_text(encoding="utf-8")
    tables = []
    for head in ("| you have |", "| for |"):
        found: dict[str, list[str]] = defaultdict(list)
        for line in text.split(head, 1)[-1].split("\n\n", 1)[0].splitlines()[2:]:
            have, look, *_ = line.strip("| ").split(" | ")
            for code in re.findall(r"`gk\.([\w.]+)", look):
                found[code.split(".")[-1]].append(have.strip())
        tables.append(found)
    return tables[0], tables[1]


def page(card: Card, picture: str, caption: str) -> str:
    """The page of a method as MyST."""
    doc = docstrings.parse(inspect.getdoc(card.function) or "")
    equations, body = docstrings.split_equations(doc, inspect.getmodule(card.function), head_of)
    names = names_of(card.function)
    summary = docstrings.prose(doc.summary)
    keywords = [card.name, card.form, card.room, card.paper.title, card.paper.authors, card.paper.arxiv or ""]
    described = doc.summary.replace('"', "'").replace("\\", "")
    described = json.dumps(described, ensure_ascii=False)
    room, form = f"[{ROOMS[card.room]}](../rooms.md#{card.room})", f"[{card.form}](../forms.md#{card.form})"
    trail = f"[Gallery](../gallery.md) · {room} · {form}"
    shown = f"{picture}<figcaption>{html.escape(caption)}</figcaption>" if picture else ""
    out = [
        "---", "orphan: true", "myst:", "  html_meta:", f"    description: {described}",
        f"    keywords: {json.dumps(', '.join(k for k in keywords if k), ensure_ascii=False)}", "---", "",
        f"# {card.public_name}", "", trail, "", summary, "",
        "```{raw} html", _facts_html(card, shown), "```", "",
        f"```{{py:function}} {signature(card.function, card.public_name)}", "```", "",
    ]  # fmt: skip
    if card.notes:
        out += ["```{note}", docstrings.prose(card.notes), "```", ""]
    if equations:
        out += ["## Equations", "", *docstrings.shown(equations, names)]
        plain = html.escape(equations.strip("\n"))
        out += [
            "```{raw} html",
            f'<details class="plain"><summary>As plain text</summary><pre>{_solid(plain)}</pre></details>',
            "```",
            "",
        ]
    measured, meant = (table.get(card.name, []) for table in choices())
    if body or measured or meant:
        out += ["## When to use it" if card.form != "function" else "## What it is for", ""]
        if measured:
            out += [f"[Measured here](../guides/choose.md) for: {'; '.join(measured)}.", ""]
        if meant:
            out += [f"[Made for](../guides/choose.md#what-a-method-is-made-for): {'; '.join(meant)}.", ""]
        out += docstrings.shown(body, names)
    out += _arguments(card, doc)
    if "Returns" in doc.sections:
        out += ["## Returns", "", *docstrings.shown(doc.sections["Returns"], names)]
    if "Raises" in doc.sections:
        out += ["## Raises", "", *docstrings.raised(doc.sections["Raises"])]
    out += _example(doc, card)
    out += method_evidence.evidence(card)
    if "Reference" in doc.sections:
        out += ["## Reference and departures", "", *docstrings.shown(doc.sections["Reference"], names)]
    kin = method_evidence.relatives(card)
    if kin:
        out += ["## Relatives", ""]
        by_reason: dict[str, list[str]] = defaultdict(list)
        for name, why in kin:
            by_reason[why].append(f"[`{cards()[name].public_name}`]({page_of(name)})")
        out += [f"- {why[:1].upper() + why[1:]}: {', '.join(each[:24])}" for why, each in by_reason.items()]
        out.append("")
    out += method_evidence.raced(card)
    return "\n".join(out)


def _solid(text: str) -> str:
    """HTML without empty lines, which would end a raw block inside of a list."""
    return text.replace("\n", "&#10;")


@functools.cache
def head_of(file: str) -> str:
    path = ROOT / file
    if not path.exists():
        found = sorted((ROOT / "gradkit").rglob(pathlib.PurePath(file).name))
        path = found[0]
    return inspect.cleandoc(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")


def public_without_card() -> dict[str, dict[str, Any]]:
    """room -> name -> object, of what is public and has no card."""
    found: dict[str, dict[str, Any]] = {}
    for room in ROOMS:
        module = gk if room == "transforms" else getattr(gk, room, None)
        names = getattr(module, "__all__", ()) if room != "optimizers" else ()
        own = {
            name: getattr(module, name)
            for name in sorted(names, key=lambda name: (not inspect.isfunction(getattr(module, name)), name))
            if name not in cards() and not inspect.ismodule(getattr(module, name))
        }
        if own:
            found[room] = own
    return found
