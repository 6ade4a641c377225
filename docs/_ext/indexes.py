"""Pages that list methods: the gallery of pictures, by room, by form, by arXiv id; and what is public besides."""

import html
import inspect
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import docstrings
import method_pages

from gradkit import catalogue
from gradkit.catalogue import Card

SECTIONS = (
    ("Optimizers", ("optimizer",)),
    ("Links of a chain", ("primitive", "controller")),
    ("Wrappers", ("wrapper",)),
    ("Sources of gradients", ("source",)),
    ("Aggregators of tasks", ("aggregator",)),
    ("Replicas", ("strategy", "exchange")),
    ("Schedules", ("schedule",)),
    ("Layers", ("layer",)),
    ("Rules, diagnostics and functions", ("rule", "diagnostic", "function")),
    ("Programs", ("program",)),
)


def _tile(card: Card, picture: str) -> str:
    paper = card.paper
    words = " ".join(
        (
            card.name,
            card.name.replace("_", " "),
            paper.title,
            paper.authors,
            str(paper.year),
            paper.arxiv or "",
            _summary(card),
        )
    )
    href = f"methods/{card.name}.html"
    name = re.sub(r"(?<=[._])", "<wbr>", card.public_name)
    shown = picture or ""
    return (
        f'<a class="tile{"" if picture else " plain"}" href="{href}" data-form="{card.form}" data-room="{card.room}" '
        f'data-find="{html.escape(words.casefold(), quote=True)}">{shown}<b>{name}</b>'
        f"<span>{html.escape(_short(_summary(card)))}</span></a>"
    )


def _summary(card: Card) -> str:
    """The first sentence of the docstring, which may be of two lines."""
    return docstrings.parse(inspect.getdoc(card.function) or "").summary


def _short(text: str, most: int = 96) -> str:
    text = text.replace("`", "")
    return text if len(text) <= most else text[:most].rsplit(" ", 1)[0] + " …"


def gallery(pictures: Mapping[str, str]) -> str:
    """All methods as tiles; a script filters them by what is typed."""
    cards = catalogue.cards().values()
    forms = "".join(f'<option value="{form}">{form}</option>' for form in catalogue.FORMS)
    rooms = "".join(
        f'<option value="{room}">{method_pages.ROOMS[room]}</option>'
        for room in dict.fromkeys(sorted(c.room for c in cards))
    )
    out = [
        "# Gallery", "",
        f"{len(cards)} methods, {len(pictures)} of them with a picture: sixty steps from the open circle to the full "
        "one, and the cross is the minimum. Every method has the learning rate that suits it best among a few. A "
        "picture says how a method moves, not how good it is: for that there are [the races](evidence.md#races).", "",
        "```{raw} html",
        '<form class="filter" role="search" onsubmit="return false"><input id="find" type="search" autocomplete="off" '
        'placeholder="name, paper, author, year or arXiv id" aria-label="Filter methods">'
        f'<select id="form" aria-label="Form"><option value="">every form</option>{forms}</select>'
        f'<select id="room" aria-label="Room"><option value="">every room</option>{rooms}</select>'
        '<output id="count" for="find form room"></output></form>',
        "```", "",
    ]  # fmt: skip
    for heading, own in SECTIONS:
        here = sorted((c for c in cards if c.form in own), key=lambda c: (c.name not in pictures, c.name))
        tiles = "".join(_tile(card, pictures.get(card.name, "")) for card in here)
        out += [f"## {heading}", "", "```{raw} html", f'<div class="tiles">{tiles}</div>', "```", ""]
    return "\n".join(out)


def _row(card: Card) -> str:
    said = docstrings.prose(_short(_summary(card), 140))
    said = re.sub(r"`[^`]*`", lambda code: code[0].replace("|", "\\|"), said)
    return f"| [`{card.public_name}`](methods/{card.name}.md) | {said} |"


def rooms() -> str:
    """Methods by room, with the group inside of it."""
    out = ["# Methods by room", "", "A room is a station of a training step, and a folder of the package.", ""]
    cards = list(catalogue.cards().values())
    for room, title in method_pages.ROOMS.items():
        own = [card for card in cards if card.room == room]
        if not own:
            continue
        out += [f"({room})=", f"## {title}", ""]
        groups = sorted({pathlib.PurePath(card.file).parts[2] for card in own}) if room == "optimizers" else [""]
        for group in groups:
            if group:
                out += [f"### {group.replace('_', ' ').capitalize()}", ""]
            mine = [card for card in own if not group or pathlib.PurePath(card.file).parts[2] == group]
            out += ["| | |", "|---|---|", *map(_row, mine), ""]
    return "\n".join(out)


def forms() -> str:
    """Methods by form."""
    out = ["# Methods by form", "", "A form says what a method takes and gives.", ""]
    for form, meaning in method_pages.FORMS.items():
        own = catalogue.cards(form).values()
        if own:
            out += [f"({form})=", f"## {form.capitalize()}", "", f"{meaning[:1].upper()}{meaning[1:]}.", ""]
            out += ["| | |", "|---|---|", *map(_row, own), ""]
    return "\n".join(out)


def arxiv() -> str:
    """Methods by arXiv id."""
    papers: dict[str, list[Card]] = {}
    for card in catalogue.cards().values():
        if card.paper.arxiv:
            papers.setdefault(card.paper.arxiv, []).append(card)

    def age(number: str) -> tuple[int, str]:
        return int(number[:2]), number

    out = ["# Methods by arXiv id", "", "The newest first. [Papers](papers.md) has them by title.", ""]
    out += ["| arXiv | paper | methods |", "|---|---|---|"]
    for number in sorted(papers, key=age, reverse=True):
        own = papers[number]
        title = docstrings.escaped(own[0].paper.title)
        listed = ", ".join(f"[`{card.public_name}`](methods/{card.name}.md)" for card in own)
        out.append(f"| [{number}](https://arxiv.org/abs/{number}) | {title} | {listed} |")
    return "\n".join([*out, ""])


def tools() -> dict[str, str]:
    """room -> the page of what is public in it and has no card."""
    pages = {}
    for room, own in method_pages.public_without_card().items():
        title = method_pages.ROOMS[room]
        out = [
            "---",
            "orphan: true",
            "---",
            "",
            f"# {title}: tools",
            "",
            "What is public here and is no method of a paper.",
            "",
        ]
        prefix = "gk" if room == "transforms" else f"gk.{room}"
        for name, value in own.items():
            out += [f"## {prefix}.{name}", "", *_described(value, f"{prefix}.{name}")]
        pages[room] = "\n".join(out)
    return pages


def _described(value: Any, name: str) -> list[str]:
    text = inspect.getdoc(value) or ""
    if not inspect.isfunction(value) and not inspect.isclass(value):
        # A number, a table or an alias of a type: its docstring is that of its type.
        shown = repr(value)
        return [f"`{_short(shown, 200)}`" if "<" not in shown and "`" not in shown else "", ""]
    doc = docstrings.parse(text)
    names = method_pages.argument_names()
    out = []
    if inspect.isfunction(value):
        out += [f"```{{py:function}} {method_pages.signature(value, name)}", "```", ""]
    else:
        out += [f"```{{py:class}} {name}", "```", ""]
    out += [docstrings.prose(doc.summary), "", *docstrings.shown(doc.body, names)]
    for section in ("Args", "Attributes"):
        for argument, meaning in docstrings.entries(doc.sections.get(section, "")):
            out += [f"`{argument}`" if argument else "…", f": {docstrings.prose(meaning)}", ""]
    if "Returns" in doc.sections:
        out += ["**Returns**", "", *docstrings.shown(doc.sections["Returns"], names)]
    if "Raises" in doc.sections:
        out += ["**Raises**", "", *docstrings.raised(doc.sections["Raises"])]
    if "Example" in doc.sections:
        out += ["```pycon", *doc.sections["Example"].splitlines(), "```", ""]
    if "Reference" in doc.sections:
        out += [*docstrings.shown(doc.sections["Reference"], names)]
    return out


def public_names() -> dict[str, str]:
    """Code as a page writes it -> the page of what it names, from the root of the site, without ending. A name without
    its room counts as long as no argument is called so."""
    found: dict[str, str] = {}
    arguments = {name for card in catalogue.cards().values() for name in inspect.signature(card.function).parameters}
    for card in catalogue.cards().values():
        found[card.public_name] = f"methods/{card.name}"
        if card.name not in arguments:
            found[card.name] = f"methods/{card.name}"
    for room, own in method_pages.public_without_card().items():
        prefix = "gk" if room == "transforms" else f"gk.{room}"
        for name in own:
            anchor = re.sub(r"[^a-z0-9]+", "-", f"{prefix}.{name}".lower()).strip("-")
            found[f"{prefix}.{name}"] = f"api/{room}#{anchor}"
    return found
