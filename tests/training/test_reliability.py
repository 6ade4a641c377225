"""`experiments/reliability.py` in small: a corruption of every kind, and wrong values for a few callables."""

import importlib
import json
import pathlib
import random
from types import ModuleType
from typing import Any

import pytest

from gradkit.cli import main
from gradkit.training import Checkpoints

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return lambda name: importlib.import_module(f"reliability_parts.{name}")


# Of every kind one, by the number of a trial; the seventh is an empty folder, the eighth the files of another step.
@pytest.mark.parametrize("number", [0, 3, 5, 6, 7, 8, 9, 12])
def test_a_corruption_is_refused_by_one_line_and_the_run_goes_on(number: int, load: Any) -> None:
    outcome, said = load("corruptions").trial([number, "library"])
    assert outcome in ("refused", "restored right"), said


@pytest.mark.parametrize("kind", ["folder", "swapped", "edited"])
def test_these_corruptions_are_always_refused(kind: str, load: Any, tmp_path: pathlib.Path) -> None:
    module: ModuleType = load("corruptions")
    outcome, said = module.library(getattr(module, kind), random.Random(kind), tmp_path / "run")
    assert outcome == "refused", said


@pytest.mark.slow
def test_the_command_goes_on_from_the_step_that_it_names(load: Any) -> None:
    """The newest folder is empty: before this was said, a run went on from the step before, and could not write."""
    outcome, said = load("corruptions").trial([6, "command"])
    assert outcome == "refused" and "it has no file 60/about/about.json" in said, said


def test_folders_that_are_called_otherwise_are_no_steps(tmp_path: pathlib.Path) -> None:
    for name in ("²", "007", "x", "60.set-aside"):
        (tmp_path / name).mkdir()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == () and checkpoints.latest() is None
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        checkpoints.restore({})


def test_the_only_checkpoint_is_broken(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line says how to begin anew, as no step is left to go on from."""
    (tmp_path / "20").mkdir()
    run = ["gradkit", "train", "--workload=heavytail", "--steps=20", f"--checkpoint_dir={tmp_path}"]
    assert main(run) == 2
    said = capsys.readouterr().err
    assert f"there is no other: rename {tmp_path / '20'} to begin anew; nothing was deleted" in said
    assert said.count("\n") == 1
    (tmp_path / "20").rename(tmp_path / "broken")
    assert main(run) == 0


def test_a_step_that_is_a_link_is_taken_away_and_what_it_links_to_stays(tmp_path: pathlib.Path) -> None:
    import jax.numpy as jnp

    runs = tmp_path / "runs"
    with Checkpoints(runs, keep=1) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(2)})
        checkpoints.wait()
        (runs / "1").rename(tmp_path / "elsewhere")
        (runs / "1").symlink_to(tmp_path / "elsewhere")
        checkpoints.save(2, {"x": jnp.ones(2)})
    assert [entry.name for entry in runs.iterdir()] == ["2"]
    assert (tmp_path / "elsewhere" / "about" / "about.json").exists()


# A transformation, a wrapper, a schedule, a source, an aggregator, a rule, a diagnostic, a layer, and settings.
CALLABLES = ["gk.lion", "gk.guard", "gk.schedules.wsd", "gk.gradients.sam", "gk.aggregation.upgrad"]
CALLABLES += ["gk.batches.linear_scaling", "gk.diagnostics.hvp", "gk.MatrixSharding"]


@pytest.mark.parametrize("name", CALLABLES)
def test_wrong_values_are_refused_by_the_name_of_the_argument(name: str, load: Any) -> None:
    """All that the signature makes: texts, numbers, arrays, functions and whatever else is of another kind."""
    values = load("values")
    items = values.items([name])
    assert items
    missed = [(*item[1:], *said) for item in items if (said := values.trial(item))[0] != "named"]
    # Of a hundred values one may be taken for what it is nearly.
    assert len(missed) <= len(items) / 100, missed


def test_a_child_that_dies_or_hangs_is_written_down_and_the_next_goes_on(load: Any, tmp_path: pathlib.Path) -> None:
    (tmp_path / "trials.py").write_text(
        "import os, time\nfrom reliability_parts.children import serve\n"
        "serve(lambda item: os._exit(3) if item == 1 else (time.sleep(60) if item == 2 else ('fine', '')))\n"
    )
    children, file = load("children"), tmp_path / "records.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        assert children.drive("trials", [0, 1, 2, 3], file, silence=3.0)
        assert children.drive("trials", [0, 1, 2, 3], file, silence=3.0)
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["outcome"] for row in found] == ["fine", "aborts", "hangs", "fine"]
