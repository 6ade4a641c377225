"""What `gradkit show` says: of a method all that its card and its docstring have, of a paper its methods."""

import inspect
import textwrap
from collections.abc import Mapping

from gradkit import catalogue, checks, papers
from gradkit.catalogue import Card, Paper
from gradkit.engine.extras import EXTRAS
from gradkit.training import methods
from gradkit.training.report.listing import refilled
from gradkit.training.served_by_optax import SERVED


def look_up(text: str) -> Card | list[Card] | dict[Paper, str]:
    """What a text means: a method by its name, or the methods of papers.

    Args:
      text: a name as `gradkit list` has it, or of a method of optax that was compared; or words of the title or the
        authors of a paper, its year or its arXiv id.

    Returns:
      The card, also that of a paper with one method; the cards of papers with more; or the papers that bring no
      method, with the reasons.

    Raises:
      ValueError: neither a method nor a paper; the nearest names and papers are offered.

    >>> look_up("Lion").name, [card.name for card in look_up("1904.00962")]
    ('lion', ['lamb', 'lambc', 'nlamb'])
    """
    short = text.casefold().removeprefix("gk.").split(".")[-1]
    if text.startswith("optax.") or short in catalogue.cards():
        return methods.card_of(text if text.startswith("optax.") else short)
    by_name = [name for name in SERVED if name.split(".")[-1] == short]
    if by_name:
        return methods.card_of(by_name[0])
    found = [card for card in catalogue.cards().values() if card.paper.matches(text)]
    found = found or [methods.card_of(name) for name, served in SERVED.items() if served.paper.matches(text)]
    if found:
        return found[0] if len(found) == 1 else found
    without = papers.without_method(text)
    if without:
        return without
    known = [*(card.paper for card in catalogue.cards().values()), *papers.WITHOUT_METHOD]
    offer = checks.nearest(text, catalogue.cards(), quote=str) or catalogue.nearest_papers(text, known)
    offer = offer or "; `gradkit list` shows all methods, docs/papers.md all papers"
    raise ValueError(
        f"no method is called {text!r}, and no paper has it in its title, authors, year or arXiv id{offer}"
    )


def by_paper(text: str) -> dict[str, Card]:
    """`gk.catalogue.by_paper`, whose message also says why a paper brings no method.

    >>> by_paper("massive label noise")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: paper='massive label noise' must be of a method: 'Deep Learning is Robust to Massive Label Noise' ...
    """
    without = papers.without_method(text)
    if without and not any(card.paper.matches(text) for card in catalogue.cards().values()):
        said = " ".join(f"{paper.title!r} brings no method. {reason}" for paper, reason in without.items())
        raise ValueError(f"paper={text!r} must be of a method: {said} `gradkit list` shows all methods")
    return catalogue.by_paper(text)


def reasons(without: Mapping[Paper, str], width: int) -> str:
    """Papers that bring no method, each with the reason below it."""
    blocks = []
    for paper, reason in without.items():
        said = textwrap.wrap(f"brings no method: {reason}", width, initial_indent="  ", subsequent_indent="  ")
        blocks.append("\n".join([*textwrap.wrap(str(paper), width), *said]))
    return "\n\n".join(blocks)


def facts(card: Card) -> list[tuple[str, str]]:
    """What a card says, as pairs of a term and its meaning."""
    if card.served:
        return [
            ("name", card.public_name),
            ("form", card.form),
            ("paper", str(card.paper)),
            *([("state", f"{card.words:g} words per parameter, in its dtype")] if card.checked else []),
            ("paper check", card.paper_check),
            ("checked", card.checked or "nothing by a test of this library"),
            *([("not checked", card.unchecked)] if card.unchecked else []),
            *_races(card),
        ]
    return [
        ("name", card.public_name),
        ("form", card.form),
        ("paper", str(card.paper)),
        ("file", card.file),
        *[("needs", f"{name}: {EXTRAS[name].meaning}") for name in card.needs],
        *([] if card.needs else [("needs", "nothing beyond gradients and parameters")]),
        ("state", f"{card.words:g} float32 words per parameter"),
        ("collectives", card.collectives),
        ("golden", ", ".join(card.golden) or "none"),
        ("paper check", card.paper_check),
        *_races(card),
        *[("opts out of", f"{check}: {reason}") for check, reason in card.opt_outs.items()],
        *([("note", card.notes)] if card.notes else []),
    ]


def text(card: Card, width: int) -> str:
    """The equations of the file of a method, and its docstring."""
    if card.served:
        return refilled(f"{card.served}\n\n{inspect.getdoc(card.function)}", width)
    equations = inspect.getdoc(inspect.getmodule(card.function)) or ""
    return refilled(f"{equations}\n\n{card.name}\n\n{inspect.getdoc(card.function)}", width)


def _races(card: Card) -> list[tuple[str, str]]:
    """How a method races, under each of its names."""
    rows = []
    for name, race in {card.name: card.race, **card.variants}.items():
        if race is not None:
            schedule = "warm-up and cosine" if race.schedule else "no schedule" if race.rate is None else "constant"
            said = [f"{k}={v!r}" if isinstance(v, int | float | str) else k for k, v in race.arguments.items()]
            said += [f"around {race.around}"] if race.around else []
            reach = (
                "one run, as there is no learning rate to tune"
                if race.rate is None
                else f"rates around {race.rate:g}, {10**race.decades:g} times less to more"
            )
            rows.append(("race", "; ".join([f"{name}: {reach}", schedule, *said])))
    return rows
