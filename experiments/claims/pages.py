"""The page of a claim, and the overview: written here, and read by the documentation.

NAME.md has, in this order: the claim, its verdict and what was found, its source, the protocol, the figure, the table,
the command and the versions. Only a run that is complete has a page; the overview says which claims have none.
"""

import ast
import inspect
import pathlib
import re
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = ROOT / "experiments" / "claims"
RESULTS = ROOT / "experiments" / "results" / "claims"
VERDICTS = ("reproduced", "reproduced in part", "not reproduced here", "cannot be tested at this scale")
# Modules of the folder that are no claims.
MACHINERY = frozenset({"__init__", "__main__", "pages", "protocol", "showing", "small", "standing", "tuning"})


class Page(NamedTuple):
    """What a page says.

    Attributes:
      claim: one sentence.
      source: the paper.
      verdict: one of `VERDICTS`.
      found: what was found, in a sentence or two.
      protocol: what was tuned, over what, with how many seeds; and the rule of the verdict.
      figure: the picture, as a path from the folder of the pages; "" for none.
      table: plain text.
      command: what makes the results again.
      versions: of what made them, and how long it took.
    """

    claim: str
    source: str
    verdict: str
    found: str
    protocol: str
    figure: str
    table: str
    command: str
    versions: str


def docstring(file: pathlib.Path) -> tuple[str, str]:
    """The claim and the protocol of a module, without importing it."""
    text = inspect.cleandoc(ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "")
    claim, _, protocol = text.partition("\n\n")
    return " ".join(claim.split()), protocol.strip()


def claims() -> dict[str, pathlib.Path]:
    """The modules of the claims by name."""
    return {file.stem: file for file in sorted(SCRIPTS.glob("*.py")) if file.stem not in MACHINERY}


def text_of(page: Page) -> str:
    """The page as Markdown.

    Raises:
      ValueError: a verdict that is none of `VERDICTS`, or a part that is empty.
    """
    if page.verdict not in VERDICTS:
        raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}, got {page.verdict!r}")
    if empty := [name for name, part in page._asdict().items() if not part and name != "figure"]:
        raise ValueError(f"a page must say all of its parts, got nothing for {', '.join(empty)}")
    figure = ["## Figure", "", f"![{page.claim}]({page.figure})", ""] if page.figure else []
    lines = [
        f"# {page.claim}", "",
        f"**Verdict: {page.verdict}.** {page.found}", "",
        f"Source: {page.source}", "",
        "## Protocol", "", page.protocol, "",
        *figure,
        "## Table", "", "```text", page.table.strip("\n"), "```", "",
        "## Command", "", "```sh", page.command, "```", "",
        page.versions,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


FORM = re.compile(
    r"# (?P<claim>[^\n]+)\n\n\*\*Verdict: (?P<verdict>[^.*]+)\.\*\* (?P<found>.*?)\n\nSource: (?P<source>[^\n]+)\n\n"
    r"## Protocol\n\n(?P<protocol>.*?)\n\n(?:## Figure\n\n!\[[^\n]*\]\((?P<figure>[^)\n]+)\)\n\n)?"
    r"## Table\n\n```text\n(?P<table>.*?)\n```\n\n## Command\n\n```sh\n(?P<command>.*?)\n```\n\n(?P<versions>.*)\n",
    re.DOTALL,
)


def read(text: str) -> Page:
    """The page that a text is.

    Raises:
      ValueError: a text of another form.
    """
    found = FORM.fullmatch(text)
    if found is None:
        raise ValueError("a page must have the form that experiments/claims/pages.py writes: write it with its claim")
    return Page(**{name: found[name] or "" for name in Page._fields})


def known(results: pathlib.Path = RESULTS) -> dict[str, Page]:
    """The pages that are there, by name."""
    files = [file for file in sorted(results.glob("*.md")) if file.stem != "README"]
    return {file.stem: read(file.read_text(encoding="utf-8")) for file in files}


def overview(results: pathlib.Path = RESULTS) -> str:
    """All claims with their verdicts, and those that were not run yet."""
    pages = known(results)
    waiting = {name: docstring(file)[0] for name, file in claims().items() if name not in pages}
    count = {verdict: sum(page.verdict == verdict for page in pages.values()) for verdict in VERDICTS}
    lines = [
        "# Claims of the literature, run again", "",
        "`python -m experiments.claims` runs what has no result yet and writes this page. Every claim stands with its "
        "source, its protocol, its figure and its verdict on a page of its own, whether it came out or not. A verdict "
        "is about the problems and the scale of that page: small models on two processor cores.", "",
        f"Claims with a verdict: {len(pages)}, of which "
        + ", ".join(f"{number} {verdict}" for verdict, number in count.items()) + ".", "",
        "| claim | verdict |", "|---|---|",
    ]  # fmt: skip
    for verdict in VERDICTS:
        lines += [
            f"| [{page.claim}]({name}.md) | {verdict} |" for name, page in pages.items() if page.verdict == verdict
        ]
    lines += [f"| {claim} (`{name}`) | not run yet |" for name, claim in waiting.items()]
    lines += ["", "What was found, claim by claim:", ""]
    lines += [
        f"- [{page.claim}]({name}.md) *{page.verdict}*. {' '.join(page.found.split())}" for name, page in pages.items()
    ]
    return "\n".join(lines) + "\n"
