"""What there is, as text that fits a terminal: methods with a description each, workloads with their targets."""

import functools
import inspect
import re
import textwrap
from collections.abc import Iterable, Sequence

from gradkit import catalogue, checks
from gradkit.catalogue import Card, Paper
from gradkit.training.report.charts import number
from gradkit.training.report.table import aligned
from gradkit.workloads import Workload

WIDTH = 80
NAMES = 26


def summary(card: Card) -> str:
    """The first paragraph of a method's docstring, in one line."""
    return " ".join((inspect.getdoc(card.function) or "").split("\n\n", 1)[0].split())


def refilled(text: str, width: int) -> str:
    r"""A docstring in lines of at most this width: prose is filled anew, of equations only those lines are broken that
    are too long, and examples stay as they are.

    >>> print(refilled("m <- b1 m + (1 - b1) g          from t = 1 on\n  b1: decay of the momentum, in [0, 1)", 30))
    m <- b1 m + (1 - b1) g
        from t = 1 on
      b1: decay of the momentum,
        in [0, 1)
    """
    blocks: list[list[str]] = []
    for line in text.splitlines():
        if blocks and _goes_on(blocks[-1], line):
            blocks[-1].append(line)
        else:
            blocks.append([line])
    return "\n".join(line for block in blocks for line in _filled(block, width))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_entry(line: str) -> bool:
    """Whether an argument or an error is described from here on."""
    return re.match(r"\s+\*{0,2}\w[\w, ]*: ", line) is not None


def _goes_on(block: list[str], line: str) -> bool:
    """Whether a line is more of the prose, or of the entry, before it. Prose is filled to 120 columns: a line that is
    much shorter is the last one of it."""
    before = block[-1]
    if not line.strip() or len(before) < 85 or "  " in before.strip() or line.lstrip().startswith(">>>"):
        return False
    if _is_entry(block[0]):
        deeper = _indent(line) - _indent(block[0])
        return deeper == 2 or (deeper == 0 and len(block) == 1 and not _is_entry(line))
    return _indent(line) == _indent(before)


def _filled(block: list[str], width: int) -> list[str]:
    first = block[0]
    if all(len(line) <= width for line in block) or first.lstrip().startswith((">>>", "...")):
        return block
    wrap = functools.partial(textwrap.wrap, width=width, break_long_words=False, break_on_hyphens=False)
    gap = re.fullmatch(r"(\s*\S.*?\S)\s{3,}(\S(?:.(?!\s{3}))*)", first)
    if len(block) == 1 and gap is not None:
        # An equation, and what is said of it behind.
        indent = " " * (_indent(first) + 4)
        return [*wrap(gap[1], subsequent_indent=indent), *wrap(gap[2], initial_indent=indent, subsequent_indent=indent)]
    equation = len(block) == 1 and (" = " in first or "<-" in first)
    text = " ".join([first.rstrip(), *(line.strip() for line in block[1:])])
    return wrap(text, subsequent_indent=" " * (_indent(first) + 2 * (equation or _is_entry(first))))


def search(cards: Iterable[Card], words: str) -> list[Card]:
    """The cards that have all words in their name, form, description, paper or note, whatever the case.

    Args:
      cards: cards of the catalogue.
      words: one word or several, with spaces between them.

    Raises:
      ValueError: no card has all of them; the nearest names are offered.

    >>> [card.name for card in search([catalogue.find("lion"), catalogue.find("lamb")], "symbolic DISCOVERY")]
    ['lion']
    """
    cards = list(cards)

    def text(card: Card) -> str:
        return " ".join((card.public_name, card.form, summary(card), str(card.paper), card.notes)).lower()

    found = [card for card in cards if all(word in text(card) for word in words.lower().split())]
    if not found:
        offer = checks.nearest(words, [card.name for card in cards])
        raise ValueError(f"search={words!r} is in the name, description and paper of no method{offer}")
    return found


def methods(cards: Iterable[Card], width: int | None = WIDTH) -> str:
    """Every method under the name of its form: how it is written, and what it is, in two columns.

    Args:
      cards: cards of the catalogue.
      width: that no line exceeds: a description goes on in its column, and begins below a name that is longer than
        the column of names. None: one line per method.

    >>> print(methods([catalogue.find("lion")], 51))
    optimizer (1)
      gk.lion  Lion: every coordinate moves by exactly
               the learning rate, plus decoupled weight
               decay.
    """
    groups: dict[str, list[Card]] = {}
    for card in sorted(cards, key=lambda card: (catalogue.FORMS.index(card.form), card.name)):
        groups.setdefault(card.form, []).append(card)
    lines: list[str] = []
    for form, group in groups.items():
        lines += [*([""] if lines else []), f"{form} ({len(group)})"]
        lines += columns([(card.public_name, summary(card)) for card in group], width)
    return "\n".join(lines)


def columns(rows: Sequence[tuple[str, str]], width: int | None = WIDTH) -> list[str]:
    r"""Names and their descriptions in two columns, of which the first is never wider than `NAMES`.

    >>> print("\n".join(columns([("gk.lion", "Signs."), ("gk.parallel.degas_of_all_blocks", "Late blocks.")], 60)))
      gk.lion                     Signs.
      gk.parallel.degas_of_all_blocks
                                  Late blocks.
    """
    room = max((len(name) for name, _ in rows), default=0)
    if width is None:
        return [f"  {name:<{room}}  {text}" for name, text in rows]
    room = min(room, NAMES)
    lines = []
    for name, text in rows:
        said = textwrap.wrap(text, max(width - room - 4, 10), break_on_hyphens=False) or [""]
        if len(name) > room:
            lines.append(f"  {name}")
            name = ""
        lines += [f"  {name if not i else '':<{room}}  {line}".rstrip() for i, line in enumerate(said)]
    return lines


def papers(cards: Iterable[Card], width: int = WIDTH) -> str:
    """The methods under the papers that they are of, the newest first."""
    groups: dict[Paper, list[Card]] = {}
    for card in sorted(cards, key=lambda card: (-card.paper.year, card.paper.title, card.name)):
        groups.setdefault(card.paper, []).append(card)
    blocks = []
    for paper, group in groups.items():
        rows = columns([(card.public_name, summary(card)) for card in group], width)
        blocks.append("\n".join([*textwrap.wrap(str(paper), width), *rows]))
    return "\n\n".join(blocks)


def facts(cards: Iterable[Card]) -> str:
    """A line per method with what its card says: form, words of state, collectives, evidence, paper."""
    rows = [
        (c.public_name, c.form, f"{c.words:g}", c.collectives, c.evidence, f"{c.paper.authors} {c.paper.year}")
        for c in sorted(cards, key=lambda card: (catalogue.FORMS.index(card.form), card.name))
    ]
    return aligned(("name", "form", "words", "collectives", "evidence", "paper"), rows)


def workloads(
    problems: Sequence[tuple[str, Workload | str]], models: Sequence[tuple[str, int]], width: int = WIDTH
) -> str:
    """Every workload with its description, target and budget, and every model with the number of its parameters.

    Args:
      problems: pairs of a name and the workload, or what it needs to be loaded.
      models: pairs of a name and the number of its parameters.
      width: that no line exceeds.
    """
    room = max(len(name) for name, _ in (*problems, *models)) + 2
    lines = ["workloads, for race, train, describe and inspect (--workload=NAME)"]
    for name, problem in problems:
        texts = [problem] if isinstance(problem, str) else _about(problem)
        wrapped = [line for text in texts for line in textwrap.wrap(text, width - room - 2)]
        lines += [f"  {name if not i else '':<{room}}{line}" for i, line in enumerate(wrapped)]
    lines += ["", "models, as shapes, for describe and inspect (--model=NAME)"]
    lines += [f"  {name:<{room}}{count:,} parameters" for name, count in models]
    return "\n".join(lines)


def _about(problem: Workload) -> list[str]:
    target = f"{problem.metric_name} <= {number(problem.target)} within {problem.budget_steps} steps"
    return [problem.description, f"target: {target}"]
