"""The house is in order: names, files, cards and documents agree with each other."""

import ast
import importlib
import inspect
import re
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gradkit as gk
from gradkit import papers
from gradkit.catalogue import Card

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "gradkit").rglob("*.py"))
INITS = [file for file in SOURCES if file.name == "__init__.py"]
CHAIN = ("transforms", "optimizers")  # the rooms whose names stand at the top
# Rooms by name. `linalg` may be one file or a folder.
ROOMS: dict[str, ModuleType] = {
    name: importlib.import_module(f"gradkit.{name}")
    for name in sorted({file.relative_to(ROOT).parts[1] for file in SOURCES if len(file.relative_to(ROOT).parts) > 2})
    if name not in CHAIN
}
TOP: list[str] = list(getattr(gk, "__all__", ()))
CARDS = gk.catalogue.cards()
REMADE = "`python -m gradkit.papers > docs/papers.md` makes the page anew"


def _id(value: Any) -> str:
    return value.name if isinstance(value, Card) else str(value)


def _public() -> dict[str, Any]:
    """Every public name as a user writes it -> what it is. Rooms themselves are left out."""
    top = {f"gk.{name}": getattr(gk, name) for name in TOP}
    rooms = {
        f"gk.{room}.{name}": getattr(module, name)
        for room, module in ROOMS.items()
        for name in getattr(module, "__all__", ())
    }
    return {name: value for name, value in (top | rooms).items() if not inspect.ismodule(value)}


PUBLIC = _public()


def _parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if not name.startswith("_")]


def _sections(doc: str) -> dict[str, str]:
    """The sections of a Google docstring; `Reference: ...` may go on in its line."""
    parts = re.split(r"^(Args|Returns|Raises|Examples?|References?):", doc, flags=re.MULTILINE)
    return {name.rstrip("s"): text for name, text in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_fits_in_one_head(file: Path) -> None:
    """An `__init__.py` is a list of names."""
    assert len(file.read_text().splitlines()) <= (800 if file.name == "__init__.py" else 400)


@pytest.mark.parametrize("file", INITS, ids=lambda file: str(file.relative_to(ROOT)))
def test_an_init_defines_nothing(file: Path) -> None:
    """A docstring, imports, `__all__` and a version; the top may look a room up when it is first asked for."""
    for node in ast.parse(file.read_text()).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        exports = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "__version__")
        lazy = isinstance(node, ast.FunctionDef) and node.name in ("__getattr__", "__dir__")
        lazy = lazy and file.parent.name == "gradkit"
        assert docstring or exports or lazy or isinstance(node, ast.Import | ast.ImportFrom), ast.unparse(node)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_lists_its_names(room: str) -> None:
    module = ROOMS[room]
    own = getattr(module, "__all__", ())
    assert set(own) == {name for name, value in vars(module).items() if name[0] != "_" and not inspect.ismodule(value)}


@pytest.mark.parametrize("room", ["", *(room for room in ROOMS if hasattr(ROOMS[room], "__all__"))])
def test_a_misspelled_name_is_answered_with_the_nearest(room: str) -> None:
    """Of the top and of every room; a method of another room is named with its place."""
    module, written = (ROOMS[room], f"gk.{room}") if room else (gk, "gk")
    known = max(module.__all__, key=len)
    with pytest.raises(
        AttributeError, match=rf"^module .* has no attribute '{known}_'; did you mean .*{written}.{known}"
    ):
        getattr(module, known + "_")
    method, where = ("adam", "gk.adam") if room else ("cagrad", "gk.aggregation.cagrad")
    with pytest.raises(AttributeError, match=rf"has no attribute '{method}'; it is {where}$"):
        getattr(module, method)
    assert not hasattr(module, "_private")


def test_one_name_one_home() -> None:
    homes = defaultdict(list)
    for name in PUBLIC:
        homes[name.rsplit(".", 1)[1]].append(name)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def test_the_top_lists_what_it_imports() -> None:
    """Methods of the groups, links, wrappers and rooms: what `from gradkit import *` brings and `dir(gk)` shows."""
    imported: set[str] = set()
    for node in ast.parse((ROOT / "gradkit/__init__.py").read_text()).body:
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        for alias in node.names:
            if alias.name != "*":
                imported.add(alias.asname or alias.name)
                continue
            group = importlib.import_module(node.module)
            imported |= {name for name in group.__all__ if not isinstance(getattr(group, name), type)}
    assert {name for name in imported if name[0] != "_"} == set(TOP)
    assert len(set(TOP)) == len(TOP) and all(hasattr(gk, name) for name in TOP)
    assert dir(gk) == sorted([*TOP, "__version__"])


def test_the_top_holds_what_goes_into_a_chain() -> None:
    assert TOP
    for name in TOP:
        value = getattr(gk, name)
        # The one argument of matrix methods that has a type of its own is a class of the engine.
        if not inspect.ismodule(value) and value is not gk.MatrixSharding:
            assert value.__module__.split(".")[1] in CHAIN, name
    missing = [card.public_name for card in CARDS.values() if card.room in CHAIN and card.public_name not in PUBLIC]
    assert missing == []


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_is_documented(name: str) -> None:
    """A function has an example that runs, and says what each argument means; a class says what it is."""
    value = PUBLIC[name]
    assert inspect.getdoc(value) or not (inspect.isfunction(value) or inspect.isclass(value))
    if not inspect.isfunction(value):
        return
    doc = inspect.getdoc(value) or ""
    assert ">>> " in doc
    arguments = _sections(doc).get("Arg", "")
    undocumented = [p for p in _parameters(value) if not re.search(rf"^\s*\*{{0,2}}{p}\b.*:", arguments, re.MULTILINE)]
    assert undocumented == []


# Folders whose functions have their equations in their own docstrings.
def test_equations_stand_in_the_docstring_of_the_function() -> None:
    """`help` of a function shows its equations, and does not refer to the docstring of its file."""
    docs = {name: inspect.getdoc(value) or "" for name, value in PUBLIC.items() if inspect.isroutine(value)}
    assert len(docs) > 600
    assert [name for name, doc in docs.items() if "at the head of" in " ".join(doc.split())] == []


# They put transformations together, as `optax.chain` does, and are of no paper.
TOOLS = {
    "gk.aggregation.aggregate",
    "gk.inject_hyperparams",
    "gk.leaves.groups",
    "gk.leaves.layerwise_decay",
    "gk.parallel.inside_shard_map",
    "gk.parallel.outer_nesterov",
}


def test_every_public_factory_of_a_transformation_has_a_card_and_every_card_a_public_name() -> None:
    made = {
        name
        for name, value in PUBLIC.items()
        if inspect.isfunction(value) and "GradientTransformation" in str(value.__annotations__.get("return"))
    }
    assert "gk.scale_by_muon" in made
    carded = {card.public_name for card in CARDS.values()}
    assert made - carded - TOOLS == set()
    assert carded - PUBLIC.keys() == set()


@pytest.mark.parametrize("card", CARDS.values(), ids=_id)
def test_a_method_has_all_its_parts(card: Card) -> None:
    assert PUBLIC.get(card.public_name) is card.function
    sections = _sections(inspect.getdoc(card.function) or "")
    assert {"Return", "Example", "Reference"} <= set(sections)
    if card.paper.arxiv:
        assert card.paper.arxiv in sections["Reference"]
    assert str(card.paper.year) in sections["Reference"]
    assert (ROOT / card.file).is_file()
    assert (ROOT / card.paper_check).is_file()
    assert [g for g in card.golden if not (ROOT / "tests/golden/data" / f"{g}.npz").is_file()] == []


def test_a_paper_check_belongs_to_one_paper() -> None:
    """The check of a paper is found by the name of its file: two files of one name share the check, so a paper."""
    papers: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for card in CARDS.values():
        papers[card.paper_check][card.file].add(card.paper.title)
    assert [check for check, files in papers.items() if not set.intersection(*files.values())] == []
    stems = {file.stem for file in SOURCES}
    orphans = [f.name for f in (ROOT / "tests/papers").glob("test_*.py") if f.stem.removeprefix("test_") not in stems]
    assert orphans == []


def test_every_paper_is_on_the_page_of_papers() -> None:
    """With the names that serve it, or the reason why none does."""
    page = (ROOT / "docs/papers.md").read_text()
    text = " ".join(page.split())
    for card in CARDS.values():
        assert card.paper.title.rstrip(".") in text and f"`{card.public_name}`" in text, f"{card.name}: {REMADE}"
        assert f"/abs/{card.paper.arxiv})" in text or card.paper.arxiv is None
    assert page == papers.page(), REMADE


def test_papers_differ_and_their_arxiv_ids_are_well_formed() -> None:
    known = {card.paper for card in CARDS.values()} | papers.WITHOUT_METHOD.keys()
    ids = [paper.arxiv for paper in known if paper.arxiv is not None]
    # Year and month, then four digits until 2014 and five since.
    assert [
        i for i in ids if not re.fullmatch(r"(0[7-9]|1[0-4])(0[1-9]|1[0-2])\.\d{4}|\d\d(0[1-9]|1[0-2])\.\d{5}", i)
    ] == []
    titles = [paper.title.casefold() for paper in known]
    assert len(ids) == len(set(ids)) and len(titles) == len(set(titles))
    assert all(reason.endswith(".") for reason in papers.WITHOUT_METHOD.values())


def test_a_file_of_optimizers_registers_them() -> None:
    registered = {card.file for card in CARDS.values()}
    files = {str(f.relative_to(ROOT)) for f in (ROOT / "gradkit/optimizers").rglob("*.py") if f.name != "__init__.py"}
    assert files - registered == {
        "gradkit/optimizers/gauss_newton/predictions.py",
        "gradkit/optimizers/matrix/beside_adamw.py",
        "gradkit/optimizers/matrix/factor_pairs.py",
        "gradkit/optimizers/matrix/rate_inside.py",
        "gradkit/optimizers/matrix/kl_direction.py",
    }


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/papers.md",
        "docs/recipes.md",
        "docs/replicas.md",
        "docs/trainers.md",
        "docs/index.md",
        *sorted(str(file.relative_to(ROOT)) for file in (ROOT / "docs/guides").glob("*.md")),
        *sorted(str(file.relative_to(ROOT)) for file in (ROOT / "notebooks/src").glob("*.py")),
    ],
)
def test_a_document_names_what_exists(document: str) -> None:
    """Every `gk.name` and every path in backticks is there; words in capitals stand for the reader's own."""
    text = (ROOT / document).read_text()
    for name in re.findall(r"\bgk((?:\.[a-z]\w*)+)", text):
        value: Any = gk
        for part in name[1:].split("."):
            value = getattr(value, part)
    paths = [p for p in re.findall(r"`([\w.-]+/[\w./-]*)`", text) if not re.search("[A-Z]{2}", p)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_imports_run_down_the_floors() -> None:
    cli = pytest.importorskip("importlinter.cli")
    status = cli.lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=None, no_cache=True)
    assert status == cli.EXIT_STATUS_SUCCESS
