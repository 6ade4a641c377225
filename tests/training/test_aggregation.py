"""Aggregators in every loop: `gradkit train --aggregator`, races, and chains from a file."""

import pathlib

import numpy as np
import pytest

import gradkit as gk
from gradkit.cli import main
from gradkit.training import RaceConfig, TrainConfig, race, train
from gradkit.training.methods import aggregated, find

pytestmark = pytest.mark.slow


def records(**settings: object) -> list[dict]:
    config = TrainConfig(workload="multitask", steps=20, eval_every=20, **settings)  # pyright: ignore[reportArgumentType]
    return list(train(config))


def test_train_aggregates_the_gradients_of_tasks(tmp_path: pathlib.Path) -> None:
    """By a flag or in a chain of one's own it is the same run, and another than with the sum of the losses."""
    file = tmp_path / "mine.py"
    file.write_text(
        "import gradkit as gk, optax\n"
        "def chain(learning_rate):\n"
        "    return optax.chain(gk.aggregation.upgrad(), gk.adamw(learning_rate))\n"
    )
    by_flag, by_file, plain = (
        records(**settings, learning_rate=0.01)[-1] for settings in ({"aggregator": "upgrad"}, {"chain": str(file)}, {})
    )
    assert by_flag["metric"] == by_file["metric"] != plain["metric"]
    assert np.isfinite(by_flag["metric"]) and by_flag["loss"] != plain["loss"]


def test_a_race_has_every_method_behind_every_aggregator() -> None:
    found = race("multitask", ["sgd", "adam"], aggregator=("sum", "pcgrad"), rates=2, seeds=1, steps=10, extensions=0)
    assert [row.method for row in found.results] == ["sgd", "adam", "pcgrad+sgd", "pcgrad+adam"]
    plain, behind = found.results[0].sweep, found.results[2].sweep
    assert plain.grid["learning_rate"].tolist() == behind.grid["learning_rate"].tolist()
    assert not np.allclose(plain.curves, behind.curves)
    assert aggregated("upgrad", find("muon")).centre == find("muon").centre


def test_aggregators_with_a_state_per_task_are_made_for_the_tasks_of_a_problem() -> None:
    """Two and six tasks, in one race; the command line needs no number of them."""
    found = race(
        ("multitask", "multitask_six"), ["sgd"], aggregator=("gradvac", "uncertainty_weighting"), rates=2, seeds=1,
        steps=10, extensions=0,
    )  # fmt: skip
    assert [row.method for row in found.results] == ["gradvac+sgd", "uncertainty_weighting+sgd"] * 2
    assert all(np.isfinite(row.sweep.curves).all() for row in found.results)
    record = list(train(TrainConfig(workload="multitask_six", aggregator="dwa", steps=20, eval_every=20)))[-1]
    assert np.isfinite(record["metric"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--aggregator=upgard"], "did you mean 'upgrad'"),
        (["train", "--aggregator=differentially_private_aggregate"], "needs no arguments.*--chain"),
        (["train", "--aggregator=upgrad"], "the workload digits_mlp has one loss.*multitask"),
        (["train", "--workload=multitask", "--aggregator=upgrad", "--microbatch=64"], "aggregator must be left out"),
        (["race", "--aggregator=sum,upgrad"], "aggregator must be left out on the workload digits_mlp"),
        (["race", "--aggregator=sum,upgard"], "did you mean 'upgrad'"),
        (["train", "--aggregator=modo", "--workload=multitask"], "needs no arguments"),
        (["train", "--aggregator=bloop", "--workload=multitask_six"], "one for 6 tasks, got bloop, which takes 2"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gradkit", *arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(error)


def test_a_race_without_aggregators_is_what_it_was() -> None:
    assert RaceConfig(methods=("sgd",)).method_names == ("sgd",)
    assert gk.training.RaceConfig(methods=("sgd",), aggregator=("sum",)).method_names == ("sgd",)
