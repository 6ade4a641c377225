"""The catalogue: one card per public method.

A card says what a method is (paper, form), what it asks for (extra arguments, words of state per
parameter, collectives per step) and what stands behind it (golden trajectories, the test of its
paper's claim). One call beside a method registers it, and with that the method is listed
by `gradkit list`, shown by `gradkit show`, and tested on the whole contract.
"""

import dataclasses
import difflib
import inspect
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gradkit import arguments, checks

FORMS = (
    "primitive",
    "optimizer",
    "wrapper",
    "schedule",
    "source",
    "aggregator",
    "controller",
    "strategy",
    "exchange",
    "diagnostic",
    "rule",
    "function",
    "layer",
    "program",
)
# The forms that give an optax transformation.
TRANSFORMATIONS = ("primitive", "optimizer", "wrapper", "aggregator", "strategy", "exchange", "controller")
# Those that take one gradient and are links of a chain, whatever the room.
LINKS = ("primitive", "optimizer", "wrapper")
SCHEDULES = ("warmup_cosine", None)
COLLECTIVES = ("none", "norms", "gramian", "matrices", "replicas")


@dataclasses.dataclass(frozen=True)
class Paper:
    """Where a method comes from: title, authors ("" where none are known), year, and its arXiv id where it has one."""

    title: str
    authors: str
    year: int
    arxiv: str | None = None

    def __str__(self) -> str:
        who = f"{self.authors.rstrip('.')}. " if self.authors else ""
        where = f", arXiv {self.arxiv}" if self.arxiv else ""
        return f"{who}{self.sentence} {self.year}{where}"

    @property
    def sentence(self) -> str:
        """The title with the stop that ends it.

        >>> [Paper(title, "", 2024).sentence for title in ("Lookahead", "How Flexible?")]
        ['Lookahead.', 'How Flexible?']
        """
        return self.title if self.title.endswith(("?", "!", ".")) else f"{self.title}."

    @property
    def words(self) -> frozenset[str]:
        """What a reader can find it by: the words of its title and authors, its year and its arXiv id."""
        return frozenset(_words(str(self)))

    def matches(self, text: str) -> bool:
        """Whether a text means this paper: every word of it begins a word of the title or the authors, the year or the
        arXiv id. Case, accents and punctuation do not matter, nor does the address or the version of an arXiv id.

        >>> lamb = Paper("Large Batch Optimization for Deep Learning", "You et al.", 2019, "1904.00962")
        >>> [lamb.matches(text) for text in ("large-batch YOU", "https://arxiv.org/abs/1904.00962v5", "small batch")]
        [True, True, False]
        """
        own, wanted = self.words, _words(text)
        return bool(wanted) and all(any(word.startswith(start) for word in own) for start in wanted)


def _words(text: str) -> list[str]:
    """The words of a text without accents and punctuation, in lower case; of an arXiv id the id alone.

    >>> _words("Calvo-Ordoñez, arXiv:2507.22270v2")
    ['calvo', 'ordonez', '2507.22270']
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    plain = re.sub(r"(?:https?://)?(?:www\.)?arxiv\.org/\w+/|\barxiv\b", " ", plain)
    return re.findall(r"\d{4}\.\d{4,5}(?=v\d|\b)|\w+", re.sub(r"(\d{4}\.\d{4,5})v\d+", r"\1", plain))


@dataclasses.dataclass(frozen=True)
class Race:
    """How a method enters a race.

    Attributes:
      rate: the middle of its grid of learning rates; None for a method without one to tune: one run at the factor 1.
      arguments: keyword arguments of the method, where its defaults do not suit a race; "learning_rate" among them,
        with a `rate` of None, is the learning rate at which it races untuned.
      decades: how far the grid reaches to each side of the middle.
      schedule: of the learning rate: "warmup_cosine", or None for a method that finds its step itself or has a schedule
        of its own: the rate is then constant.
      before: of a primitive, the name under which that races what it is put in front of; "" for the rate alone.
      around: of a wrapper, the name under which that races what it is around; "" for SGD with momentum.
    """

    rate: float | None = 1e-2
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    decades: float = 1.0
    schedule: str | None = "warmup_cosine"
    before: str = ""
    around: str = ""


@dataclasses.dataclass(frozen=True)
class Tasks:
    """The numbers of tasks that an aggregator takes.

    Attributes:
      fewest: the smallest number.
      most: the largest number; None where there is none.
      batches: the gradients of every task: 2 for a method that needs two independent batches.
    """

    fewest: int = 1
    most: int | None = None
    batches: int = 1

    def nearest(self, count: int) -> int:
        """The number of tasks nearest to `count` that the method takes.

        >>> Tasks(2, 2).nearest(5), Tasks(4).nearest(3)
        (2, 4)
        """
        return max(self.fewest, count if self.most is None else min(count, self.most))


@dataclasses.dataclass(frozen=True)
class Card:
    """What is known about one public method.

    Attributes:
      function: the public function; its name is the name of the card.
      form: one of `FORMS`. A function (of numbers, arrays or recorded runs, without a state) and a program (one
        around functions of the user's own) have arguments of their own: what they owe is in the test of their paper.
      paper: its source.
      needs: extra arguments of `update` without which it raises.
      words: words of state per parameter (float32 words; scalars are not counted).
      collectives: what a step moves between devices when parameters are sharded: "none"
        (elementwise), "norms" (a few scalars per tensor, packed), "gramian" (one number per pair of
        tasks), "matrices", "replicas".
      sent: of a strategy, the words per parameter that a replica sends when a round ends, uncompressed.
      delay: of what replicas exchange, or a server is sent: how late it may come. "": a round waits for the last.
      golden: the independent trajectories that pin it, as "group/file".
      example: keyword arguments with which the contract builds it.
      wraps: of a wrapper, what it goes around: "optimizer", or "direction", which a learning rate follows.
      only: of a primitive, the leaves it is for: "matrices", or "" for all; others are refused.
      opt_outs: checks of the contract that it cannot meet by its nature -> the reason.
      same_as: the method that this is another name of, or the heart of, and is tested as.
      tasks: of an aggregator, the numbers of tasks that it takes.
      notes: one line that a reader should see first.
      race: how it enters a race: rate, spread of the grid, schedule, arguments. None: with its `example` around a rate
        of 0.01.
      variants: further names under which it races, with other arguments.
      served: of a method of another library, how it is written there, such as "optax.radam".
      checked: of such a method, what a test of this library compares. "": nothing.
      unchecked: of such a method, what no test does, or what to take instead.
    """

    function: Callable[..., Any]
    form: str
    paper: Paper
    needs: tuple[str, ...] = ()
    words: float = 0
    collectives: str = "none"
    sent: float = 1
    delay: str = ""
    golden: tuple[str, ...] = ()
    example: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    wraps: str = "optimizer"
    only: str = ""
    opt_outs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    same_as: str = ""
    tasks: Tasks = Tasks()
    notes: str = ""
    race: Race | None = None
    variants: Mapping[str, Race] = dataclasses.field(default_factory=dict)
    served: str = ""
    checked: str = ""
    unchecked: str = ""

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def evidence(self) -> str:
        """What stands behind it: the test of its paper, and trajectories of independent implementations."""
        return "trajectories" if self.golden else "paper"

    @property
    def is_link(self) -> bool:
        """Whether it goes into a chain as it is. A controller of `gk.batches` decides about batches, and is no link."""
        return self.form in LINKS or (self.form == "controller" and self.room != "batches")

    @property
    def room(self) -> str:
        """The folder the method lives in: "optimizers", "schedules", …"""
        return self.function.__module__.split(".")[1]

    @property
    def public_name(self) -> str:
        """How a user writes it: `gk.lion`, `gk.schedules.wsd`."""
        if self.served:
            return self.served
        return f"gk.{self.name}" if self.room in ("optimizers", "transforms") else f"gk.{self.room}.{self.name}"

    @property
    def file(self) -> str:
        return self.function.__module__.replace(".", "/") + ".py"

    def example_for(self, tasks: int) -> dict[str, Any]:
        """The `example` for a number of tasks, of which the state of some aggregators has one entry each."""
        return {**self.example, **({"num_tasks": tasks} if "num_tasks" in self.example else {})}

    @property
    def paper_check(self) -> str:
        """The test of what the paper claims: one file of tests per file of methods."""
        if self.served:
            return "tests/papers/test_served_by_optax.py" if self.checked else "none"
        return f"tests/papers/test_{self.function.__module__.split('.')[-1]}.py"

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]


_CARDS: dict[str, Card] = {}


def register(function: Callable[..., Any], *, form: str, paper: Paper, **fields: Any) -> Card:
    """Adds a method to the catalogue; called once, beside the method.

    Args:
      function: the public function.
      form: one of `FORMS`.
      paper: its source.
      **fields: any further field of `Card`.

    Returns:
      The card.

    Raises:
      ValueError: an unknown form or kind of collective, or a name that is taken.
    """
    card = Card(function, form, paper, **fields)
    for field, value, allowed in (
        ("form", form, FORMS),
        ("collectives", card.collectives, COLLECTIVES),
        *(("race.schedule", race.schedule, SCHEDULES) for race in (card.race, *card.variants.values()) if race),
    ):
        if value not in allowed:
            raise ValueError(f"{card.name}: {field} must be one of {', '.join(map(str, allowed))}, got {value!r}")
    if card.name in _CARDS and _CARDS[card.name].function.__module__ != function.__module__:
        raise ValueError(f"{card.name} is registered twice: {_CARDS[card.name].file} and {card.file}")
    if form in TRANSFORMATIONS:
        arguments.declare(function)
    _CARDS[card.name] = card
    return card


def cards(form: str | None = None) -> dict[str, Card]:
    """All cards by name, sorted; of one form only where it is given."""
    return {name: card for name, card in sorted(_CARDS.items()) if form is None or card.form == form}


def find(name: str) -> Card:
    """The card of a method.

    Raises:
      ValueError: no method has this name; the message offers the nearest names.
    """
    if name in _CARDS:
        return _CARDS[name]
    offer = checks.nearest(name, _CARDS, quote=str) or "; `gradkit list` shows all of them"
    raise ValueError(f"no method is called {name!r}{offer}")


def by_paper(text: str) -> dict[str, Card]:
    """The cards of the papers that a text means, by name and sorted.

    Args:
      text: words of the title or the authors, the year or the arXiv id, in any order; the beginning of a word will do.

    Raises:
      ValueError: no card is of such a paper; the message offers the nearest papers.

    >>> [name for name, card in by_paper("symbolic discovery 2023").items() if card.form == "optimizer"]
    ['lion']
    """
    found = {name: card for name, card in cards().items() if card.paper.matches(text)}
    if found:
        return found
    offer = nearest_papers(text, (card.paper for card in _CARDS.values())) or "; docs/papers.md lists all of them"
    raise ValueError(f"no method is of a paper with {text!r} in its title, authors, year or arXiv id{offer}")


def nearest_papers(text: str, papers: Iterable[Paper]) -> str:
    """The end of a message that offers papers like those that were meant; empty where none is near.

    >>> nearest_papers("symbolc discovry", [Paper("Symbolic Discovery", "Chen et al.", 2023)])
    "; did you mean 'Symbolic Discovery'?"
    """
    papers = list(dict.fromkeys(papers))
    known = frozenset[str]().union(*(paper.words for paper in papers))
    meant = [w if any(k.startswith(w) for k in known) else _nearest_word(w, known) for w in _words(text)]
    titles = [paper.title for paper in papers if paper.matches(" ".join(meant))] if all(meant) else []
    close = difflib.get_close_matches(text.casefold(), [paper.title.casefold() for paper in papers], n=3, cutoff=0.7)
    titles = titles or [paper.title for paper in papers if paper.title.casefold() in close]
    return f"; did you mean {' or '.join(map(repr, titles[:3]))}?" if titles else ""


def _nearest_word(word: str, known: Iterable[str]) -> str:
    """A word like the one given, or "". Of arXiv ids most digits must agree, or any two of a year would be near."""
    cutoff = 0.9 if word[:1].isdigit() else 0.75
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=cutoff)), "")
