"""Claims of the literature: the bootstrap, runs that are kept, tuning with equal effort, pages that say everything."""

import importlib
import json
import pathlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.claims import pages, protocol, showing, standing, tuning

PAGE = pages.Page(
    claim="A is faster than B.",
    source="Someone. A paper. 2020, arXiv 2001.00001.",
    verdict="reproduced in part",
    found="It is, on one problem of two.",
    protocol="Both are tuned.\n\nVerdict, by the paired bootstrap.",
    figure="a.png",
    table="A  1\nB  2",
    command="python -m experiments.claims --only=a --scale=small",
    versions="jax 0, cpu; 1.0 processor minutes.",
)


def test_means_of_all_resamples_have_the_variance_of_the_closed_form() -> None:
    """The variance of the mean of n draws with replacement is that of the values over n."""
    values = np.array([0.0, 1.0, 4.0, 2.0, 8.0])
    found = tuning.resampled(values)
    assert len(found) == 5**5
    np.testing.assert_allclose([found.mean(), found.var()], [values.mean(), values.var() / 5], rtol=1e-12)


def test_many_values_are_resampled_at_random() -> None:
    values = np.arange(12.0)
    found = tuning.resampled(values)
    # 10000 draws of a mean with the deviation sqrt(var / 12): five standard errors.
    assert abs(found.mean() - values.mean()) < 5 * np.sqrt(values.var() / 12 / 10_000)
    assert found.var() == pytest.approx(values.var() / 12, rel=0.1)


@pytest.mark.parametrize(
    ("first", "second", "order"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0], [1.1, 2.2, 3.1, 4.2, 5.1], "lower"),  # by little, and on every seed
        ([1.1, 2.2, 3.1, 4.2, 5.1], [1.0, 2.0, 3.0, 4.0, 5.0], "higher"),
        ([1.0, 2.0, 3.0, 4.0, 5.0], [1.1, 1.8, 3.2, 3.9, 5.0], "tie"),
        ([1.0, 2.0, 3.0, 4.0, 5.0], [np.inf] * 5, "lower"),
        ([np.inf] * 5, [np.inf] * 5, "tie"),
    ],
)
def test_comparisons_are_paired_by_seed(first: list[float], second: list[float], order: str) -> None:
    assert tuning.compared(first, second) == order


def test_what_is_known_is_not_run_again(tmp_path: pathlib.Path) -> None:
    calls = []

    def compute() -> dict[str, Any]:
        calls.append(1)
        return {"value": 1.5}

    path, key = tmp_path / "a.jsonl", {"contestant": "x", "steps": 3}
    protocol.Record(path)(key, compute)
    row = protocol.Record(path)(dict(reversed(key.items())), compute)
    assert (row["value"], len(calls)) == (1.5, 1)
    # Another claim takes it over, with a line of its own.
    protocol.Record(tmp_path / "b.jsonl", others=[path])(key, compute)
    assert len(calls) == 1
    assert json.loads((tmp_path / "b.jsonl").read_text())["key"] == key
    # Another key is another part, and is not begun when the minutes are over.
    with pytest.raises(protocol.OutOfTime, match="steps"):
        protocol.Record(path, minutes=0.0)({**key, "steps": 4}, compute)
    assert len(path.read_text().splitlines()) == 1


def parabola(seen: list[Any], best: float) -> tuning.Train:
    """A method whose loss is (log2 rate - best)^2, plus what the seed adds; it writes down what it was asked for."""

    def train(grid: dict[str, np.ndarray], seeds: Any) -> tuple[np.ndarray, np.ndarray]:
        seen.append((np.log2(grid["learning_rate"]).round(6).tolist(), list(seeds)))
        ends = (np.log2(grid["learning_rate"])[:, None] - best) ** 2 + 1e-3 * np.array(list(seeds))[None]
        return np.array([1, 2]), np.stack([ends + 1, ends], -1)

    return train


def test_tuning_extends_at_the_edge_and_judges_on_other_seeds(tmp_path: pathlib.Path) -> None:
    seen: list[Any] = []

    def found() -> tuning.Tuned:
        record = protocol.Record(tmp_path / "a.jsonl")
        grid = {"learning_rate": [0.5, 1.0, 2.0]}
        return tuning.tuned(record, {"contestant": "x"}, parabola(seen, 3.0), grid, tuning_seeds=2, seeds=3)

    one = found()
    assert seen == [([-1, 0, 1], [1000, 1001]), ([2, 3], [1000, 1001]), ([4, 5], [1000, 1001]), ([3], [0, 1, 2])]
    assert (one.rate, one.at_edge, one.tuning.shape) == (8.0, False, (7, 2))
    np.testing.assert_allclose(one.finals, [0, 1e-3, 2e-3], atol=1e-9)
    # With everything known, nothing is run.
    assert found().curves.tolist() == one.curves.tolist()
    assert len(seen) == 4


def test_a_best_rate_that_stays_at_the_edge_is_said(tmp_path: pathlib.Path) -> None:
    record = protocol.Record(tmp_path / "a.jsonl")
    grid = {"learning_rate": [0.5, 1.0, 2.0]}
    one = tuning.tuned(record, {"contestant": "x"}, parabola([], -9.0), grid, tuning_seeds=1, seeds=2)
    assert (one.rate, one.at_edge) == (2.0**-5, True)
    assert "(edge)" in showing.table(showing.lines([one]))


def test_a_page_is_read_as_it_was_written() -> None:
    assert pages.read(pages.text_of(PAGE)) == PAGE
    assert pages.read(pages.text_of(PAGE._replace(figure=""))) == PAGE._replace(figure="")


@pytest.mark.parametrize("part", [name for name in pages.Page._fields if name != "figure"])
def test_a_page_says_all_of_its_parts(part: str) -> None:
    with pytest.raises(ValueError, match=part):
        pages.text_of(PAGE._replace(**{part: ""}))


def test_a_verdict_is_one_of_four() -> None:
    assert len(pages.VERDICTS) == 4
    with pytest.raises(ValueError, match="verdict must be one of reproduced, reproduced in part, "):
        pages.text_of(PAGE._replace(verdict="mostly reproduced"))


def module(calls: list[int]) -> Any:
    """A claim that is cheap, under the name of one whose docstring there is."""

    def measure(record: protocol.Record, s: protocol.Settings) -> list[float]:
        def compute() -> dict[str, Any]:
            calls.append(1)
            return {"value": 2.0}

        return [record({"part": i, "steps": s["steps"]}, compute)["value"] for i in range(2)]

    return SimpleNamespace(
        __name__="experiments.claims.momo_rates",
        CLAIM=protocol.Claim("Someone. 2020.", {"small": {"steps": 3}}),
        measure=measure,
        judge=lambda data, s: protocol.Judgement("reproduced", f"{data[0]} in {s['steps']}", "table"),
        draw=lambda data, s, figure: figure.subplots().plot(data),
    )


def test_a_partial_run_has_no_page_and_goes_on(tmp_path: pathlib.Path) -> None:
    calls: list[int] = []
    with pytest.raises(protocol.OutOfTime):
        protocol.run(module(calls), tmp_path, minutes=0.0)
    assert not list(tmp_path.glob("*.md"))
    assert "| not run yet |" in pages.overview(tmp_path)
    page = protocol.run(module(calls), tmp_path)
    assert protocol.run(module(calls), tmp_path) == page
    assert len(calls) == 2
    assert pages.known(tmp_path) == {"momo_rates": page}
    assert (tmp_path / "momo_rates.png").exists()
    assert page.protocol.endswith("Settings: steps 3.")
    assert "Claims with a verdict: 1, of which 1 reproduced, 0 reproduced in part" in pages.overview(tmp_path)


def test_other_settings_are_kept_apart(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="another folder"):
        protocol.run(module([]), changes={"steps": 4})
    with pytest.raises(ValueError, match="settings must be of steps, got rates"):
        protocol.run(module([]), tmp_path, changes={"rates": 4})
    assert "2.0 in 4" in protocol.run(module([]), tmp_path, changes={"steps": 4}).found


def test_pages_of_experiments_that_were_run_before_are_those_of_their_results() -> None:
    found = pages.known()
    for name in standing.CLAIMS:
        assert found[name] == standing.page(name), f"python -m experiments.claims --overview writes {name}.md"
    assert (pages.RESULTS / "README.md").read_text(encoding="utf-8") == pages.overview()


@pytest.mark.parametrize("name", sorted(pages.claims().keys() & pages.known().keys()))
def test_a_verdict_follows_from_the_runs_that_are_kept(name: str) -> None:
    """The protocol that stands in the module, applied to the committed jsonl, gives the committed page."""
    claim, page = importlib.import_module(f"experiments.claims.{name}"), pages.known()[name]
    settings = claim.CLAIM.scales["small"]

    class Kept(protocol.Record):
        def __call__(self, key: Any, compute: Any) -> dict[str, Any]:
            return super().__call__(key, lambda: pytest.fail(f"{name} has a page, and no run of {key}"))

    data = claim.measure(Kept(pages.RESULTS / f"{name}.jsonl"), settings)
    assert claim.judge(data, settings) == (page.verdict, page.found, page.table)
    assert (pages.RESULTS / page.figure).exists()
    assert (page.claim, page.protocol.partition("\n\nSettings: ")[0]) == pages.docstring(pages.claims()[name])
