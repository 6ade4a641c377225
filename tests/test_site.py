"""The site: equations are typeset without a loss, and every method has what its page is made of.

The modules of `docs/_ext` are loaded without Sphinx; `make docs` builds the pages, and fails on a warning or a link
without a target.
"""

import doctest
import html
import importlib
import inspect
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gradkit import catalogue

ROOT = Path(__file__).parents[1]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the site by name, without traces in `sys.modules`."""
    monkeypatch.syspath_prepend(str(ROOT / "docs/_ext"))
    own = [file.stem for file in (ROOT / "docs/_ext").glob("*.py")]
    for name in own:
        assert name not in sys.modules
    yield importlib.import_module
    for name in own:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["signs", "typeset", "docstrings"])
def test_the_examples_of_the_generator_run(name: str, load: Any) -> None:
    module: ModuleType = load(name)
    found = [test for test in doctest.DocTestFinder().find(module, name) if test.examples]
    assert found
    for test in found:
        runner = doctest.DocTestRunner(verbose=False)
        runner.run(test)
        assert not runner.failures, test.name


DRAWN = ("sqrt", "grad", "integral", "sum", "prod")  # as signs that are no letters


def letters(text: str, greek: dict[str, str]) -> Counter[str]:
    """How often each letter and digit is there, with the letters of Greek spelled out one way."""
    spelled = {sign: name for name, sign in greek.items()}
    text = "".join(f" {spelled[c]} " if c in spelled else c for c in text)
    words = re.findall(r"[^\W\d_]+|\d", text)
    words = [spelled[greek[word]] if word in greek else word for word in words if word not in DRAWN]
    return Counter("".join(words))


def test_no_letter_or_digit_of_an_equation_is_lost(load: Any) -> None:
    """Of all methods: what the page shows, read as text, has the letters and digits of the docstring, and no more."""
    docstrings, typeset, pages = load("docstrings"), load("typeset"), load("method_pages")
    greek, count = load("signs").GREEK, 0
    for card in catalogue.cards().values():
        doc = docstrings.parse(inspect.getdoc(card.function) or "")
        equations, _ = docstrings.split_equations(doc, inspect.getmodule(card.function), pages.head_of)
        lines = [line for kind, group in docstrings.groups(equations) if kind == "equations" for line in group]
        for cell in [cell for line in lines for _, cell in typeset.cells(line)]:
            count += 1
            shown = html.unescape(re.sub(r"<[^>]+>", " ", typeset.math(cell, pages.names_of(card.function))))
            assert letters(shown, greek) == letters(cell, greek), (card.name, cell)
    assert count > 1000


@pytest.mark.parametrize(
    ("text", "part"),
    [
        # Only a whole product over one factor is a fraction.
        ("a b / c", "<mfrac><mrow><mi>a</mi>"),
        ("(x + y) / (1 - z)", "<mfrac><mrow><mi>x</mi>"),
        ("b1_t", "<msub><mi>b</mi><mrow><mn>1</mn><mo>,</mo><mi>t</mi></mrow></msub>"),
        ("b1^t", "<msubsup><mi>b</mi><mrow><mn>1</mn></mrow><mrow><mi>t</mi></mrow></msubsup>"),
        ("x_{t-1}", "<msub><mi>x</mi><mrow><mi>t</mi>"),
        ("g_k(x_k)", "<msub><mi>g</mi><mrow><mi>k</mi></mrow></msub>"),
        ("<x, y> >= 0", '<mo stretchy="false">⟨</mo><mi>x</mi>'),
        ("sqrt(v) + eps", "<msqrt><mi>v</mi></msqrt>"),
        ("m^ = 0", '<mover accent="true"><mi>m</mi>'),
        ("the mean of all x", "<mtext>the mean of all&#160;</mtext>"),
        ("Adam's u_t", "<mtext>Adam's&#160;</mtext>"),
    ],
)
def test_what_a_line_becomes(text: str, part: str, load: Any) -> None:
    assert part in load("typeset").math(text)


@pytest.mark.parametrize("text", ["a / b c", "sum_i w_i x / sum_i w_i", "a / b / c"])
def test_what_could_be_read_in_two_ways_stays_on_the_line(text: str, load: Any) -> None:
    assert "<mfrac>" not in load("typeset").math(text)


def test_all_results_have_their_place_on_the_page_of_evidence(load: Any) -> None:
    """With a figure, a command and a verdict; those without a verdict are said to have none."""
    evidence = load("evidence")
    page = evidence.page()
    judged, _, others = page.partition("## Without a verdict yet")
    described = evidence.CLAIMS | evidence.RACES.keys() | evidence.MEASURED.keys()
    for name in evidence.names() - evidence.OTHER:
        part = judged if name in described else others
        assert f"({name.replace('_', '-')})=" in part, name
        assert not (ROOT / f"experiments/results/{name}.png").exists() or f"results/{name}.png" in part
    assert page.count("\npython experiments/") >= len(evidence.names() - evidence.OTHER)


def test_every_claim_has_its_place_on_the_page_of_evidence(load: Any) -> None:
    """With its verdict, its figure and its command."""
    evidence = load("evidence")
    page, claims = evidence.page(), evidence.pages.known()
    assert claims.keys() >= evidence.standing.CLAIMS.keys()
    for name, claim in claims.items():
        part = page.partition(f"({name.replace('_', '-')})=")[2].partition(")=\n")[0]
        assert f"`{claim.verdict}`" in part, name
        assert claim.command in part, name
        assert not claim.figure or claim.figure.removeprefix("../") in part, name
