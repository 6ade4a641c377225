"""The Sphinx extension: makes the generated pages before a build, links names of methods, and checks links after it.

Generated are `methods/`, `api/`, the gallery, the indexes and the evidence. Git ignores them; a page is written where
its text has changed, so that a second build reads only what is new.
"""

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

# Small programs that run once: compiled as cheaply as XLA can.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false",
)

import drawings
import evidence
import figures
import indexes
import method_pages
import pictures
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging

from gradkit import catalogue

LOG = logging.getLogger(__name__)
DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")


def generate(app: Sphinx) -> None:
    """Writes all generated pages."""
    del app
    paths = pictures.paths(LOG.info)
    drawn = {name: drawings.svg(path, f"{name}: {drawings.caption(path)}") for name, path in paths.items()}
    pages = {
        f"methods/{card.name}.md": method_pages.page(card, drawn.get(card.name, ""), _caption(paths, card.name))
        for card in catalogue.cards().values()
    }
    pages |= {f"api/{room}.md": text for room, text in indexes.tools().items()}
    pages |= {
        "gallery.md": indexes.gallery(drawn), "rooms.md": indexes.rooms(), "forms.md": indexes.forms(),
        "arxiv.md": indexes.arxiv(),
        "contributing.md": _repository((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")),
        "changelog.md": _repository((ROOT / "CHANGELOG.md").read_text(encoding="utf-8")),
        "evidence.md": evidence.page(), "tools.md": _tools(), "leaderboard.md": _leaderboard(),
    }  # fmt: skip
    for name, text in pages.items():
        _write(DOCS / name, text)
    for folder in ("methods", "api"):
        for file in (DOCS / folder).glob("*.md"):
            if f"{folder}/{file.name}" not in pages:
                file.unlink()
    _write(DOCS / "_static" / "valley.svg", drawings.background("#8b93a7"))
    _copy_notebooks(sorted((ROOT / "notebooks").glob("*.ipynb")))


def _copy_notebooks(files: list[Path]) -> None:
    """Puts executed notebooks where Sphinx reads them, with a page that lists them."""
    own = [*files, ROOT / "notebooks" / "colab.svg"]
    for file in own:
        _write(DOCS / "notebooks" / file.name, file.read_text(encoding="utf-8"))
    for file in (DOCS / "notebooks").iterdir():
        if file.name not in {each.name for each in own}:
            file.unlink()
    _write(DOCS / "notebooks.md", _list_of_notebooks(files))


def _list_of_notebooks(files: list[Path]) -> str:
    """The page that has the title and the first paragraph of every notebook."""
    items = []
    for file in files:
        first = json.loads(file.read_text(encoding="utf-8"))["cells"][0]["source"]
        title, *paragraphs = "".join(first).removeprefix("# ").split("\n\n")
        said = next(text for text in paragraphs if not text.startswith("[!["))
        items.append(f"[{title}](notebooks/{file.name})\n: {' '.join(said.split())}\n")
    head = [
        "# Notebooks",
        "",
        "Each runs in less than five minutes on two cores, on Colab or on a machine without a network.",
        "",
    ]
    return "\n".join([*head, *items])


def _caption(paths: dict[str, pictures.Path], name: str) -> str:
    return drawings.caption(paths[name]) if name in paths else ""


def _tools() -> str:
    rows = [f"- [{method_pages.ROOMS[room]}](api/{room}.md): " + ", ".join(f"`{_full(room, name)}`" for name in own)
            for room, own in method_pages.public_without_card().items()]  # fmt: skip
    return "\n".join(["# Tools", "", "What is public besides the methods of papers, room by room.", "", *rows, ""])


def _full(room: str, name: str) -> str:
    return f"gk.{name}" if room == "transforms" else f"gk.{room}.{name}"


def _leaderboard() -> str:
    """The page of results as a page of the site."""
    text = (figures.RESULTS / "leaderboard.md").read_text(encoding="utf-8").replace("](../../docs/", "](")
    return text.replace("](leaderboard_", "](../experiments/results/leaderboard_")


def _repository(text: str) -> str:
    """A document of the repository's root as a page of the site."""
    return text.replace("](docs/", "](")


def insert_races(app: Sphinx, docname: str, source: list[str]) -> None:
    """Puts the figure of a race where a page has a line <!-- race: NAME, COUNT -->, and makes links into the repository
    links of the site, or no links."""
    del app, docname

    def figure(match: re.Match[str]) -> str:
        rows = figures.rows_of(figures.RESULTS / f"{match[1]}.txt.jsonl")
        drawn = figures.race(rows, match[1], int(match[2]))
        return f'```{{raw}} html\n<figure class="wide">{drawn}</figure>\n```'

    source[0] = re.sub(r"\]\((?:\.\./)+CONTRIBUTING\.md", "](/contributing.md", source[0])
    source[0] = re.sub(r"\]\((?:\.\./)+experiments/results/leaderboard\.md", "](/leaderboard.md", source[0])
    source[0] = re.sub(r"\[([^\]]+)\]\((?:\.\./)+experiments/\w+\)", r"\1", source[0])
    source[0] = re.sub(r"<!-- race: (\w+), (\d+) -->", figure, source[0])


_NAMES: dict[str, str] = {}


def link_names(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Code that names something public becomes a link to its page."""
    if not _NAMES:
        _NAMES.update(indexes.public_names())
    for node in list(doctree.findall(nodes.literal)):
        text = re.sub(r"\(.*\)$", "", node.astext())
        target = _NAMES.get(text)
        # A guide may speak of another library's lion.
        if not text.startswith("gk.") and docname.startswith(("guides/", "notebooks/")):
            continue
        if target is None or isinstance(node.parent, nodes.reference | nodes.title) or node.parent.tagname == "term":
            continue
        page, _, anchor = target.partition("#")
        if page == docname:
            continue
        where = app.builder.get_relative_uri(docname, page) + (f"#{anchor}" if anchor else "")
        reference = nodes.reference("", "", internal=True, refuri=where)
        node.replace_self(reference)
        reference += node


HREF = re.compile(r"""(?:href|src|srcset)="([^"]*)\"""")
IDS = re.compile(r"""\bid="([^"]*)\"""")
# What a page would have to load from elsewhere before it can be read.
REMOTE = re.compile(r"""<(?:script|img|link|iframe|source)\b[^>]*\b(?:src|href)="(?:https?:)?//""")


def check_links(app: Sphinx, exception: Exception | None) -> None:
    """Every link inside of the site has a target, and no page loads anything from elsewhere.

    Raises:
      ExtensionError: with the first of the pages and links that have none.
    """
    if exception is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    texts = {file.resolve(): file.read_text(encoding="utf-8") for file in out.rglob("*.html")}
    ids = {file: frozenset(IDS.findall(text)) for file, text in texts.items()}
    broken: dict[str, str] = {}
    known: set[Path] = set()
    for file, text in texts.items():
        if remote := REMOTE.search(text):
            broken[f"{file.relative_to(out.resolve())} loads"] = remote[0]
        for link in set(HREF.findall(text)):
            if re.match(r"[a-z][a-z+.-]*:|//", link) or link in ("", "#"):
                continue
            path, _, anchor = link.partition("#")
            target = (file.parent / unquote(path.partition("?")[0])).resolve() if path else file
            if target not in known and not target.exists():
                broken[str(file.relative_to(out.resolve()))] = link
                continue
            known.add(target)
            if anchor and target in ids and unquote(anchor) not in ids[target]:
                broken[str(file.relative_to(out.resolve()))] = link
    if broken:
        shown = "; ".join(f"{page}: {link}" for page, link in list(broken.items())[:12])
        raise ExtensionError(f"{len(broken)} pages have links without a target: {shown}")
    LOG.info(f"links of {len(texts)} pages have their targets")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("builder-inited", generate)
    app.connect("source-read", insert_races)
    app.connect("doctree-resolved", link_names)
    app.connect("build-finished", check_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
