"""The suite: its trials, how it is scored, that it goes on where it was stopped, and the leaderboard."""

import dataclasses
import importlib.util
import json
import pathlib

import numpy as np
import optax
import pytest

from gradkit.cli import main
from gradkit.diagnostics import algoperf_score
from gradkit.training import methods, suite
from gradkit.training.report import suite as shown
from gradkit.workloads import available, load
from gradkit.workloads.registry import SUITES

ROOT = pathlib.Path(__file__).parents[2]
SIX = SUITES["six"]


def record(workload="bytelm", method="lion", **changes):
    given = {
        "suite": "six", "version": suite.VERSION, "workload": workload, "method": method, "trials": 2, "studies": 3,
        "rates": [0.1, 0.03], "steps": [[30, None, 50], [40, 20, None]], "final": [[1.0, None, 1.0], [1.0, 1.0, 2.0]],
        "seconds_per_step": 0.3, "baseline_seconds_per_step": 0.2, "budget_steps": 100, "target": 1.0, "error": "",
        "gradkit": "0", "jax": "0", "device": "cpu",
    }  # fmt: skip
    return suite.Record(**{**given, **changes})


def line(**changes):
    return json.dumps({**dataclasses.asdict(record()), **changes})


def test_a_suite_has_six_workloads_and_they_are_there():
    assert len(set(SIX)) == 6 and set(SIX) <= set(available())


def test_the_trials_of_a_budget_are_the_first_of_every_larger_one_and_cover_two_decades():
    rates = suite.trial_rates(0.02, 64)
    for n in (1, 2, 5, 31):
        np.testing.assert_array_equal(suite.trial_rates(0.02, n), rates[:n])
    places = np.sort(np.log10(rates / 0.02))
    assert rates[0] == 0.02 and len(set(rates)) == 64 and places[0] > -1 and places[-1] < 1
    # 2^k - 1 trials are spread evenly.
    spread = np.sort(np.log10(suite.trial_rates(1.0, 15)))
    np.testing.assert_allclose(spread, np.arange(1, 16) / 8 - 1, atol=1e-12)


def test_scores_are_those_of_algoperf_over_studies_and_trials_and_times_are_relative():
    records = [record(w, "lion") for w in SIX] + [record(w, "slow", seconds_per_step=0.2) for w in SIX]
    records += [record(SIX[0], "half"), *(record(w, "other", version=suite.VERSION + 1) for w in SIX)]
    records[6] = record(SIX[0], "slow", steps=[[None, None, 90], [None, None, None]], seconds_per_step=0.2)
    found = suite.standings(records, "six", 2, 3)
    # Least of trials: 30, 20, 50, whose median is 30; of the one record 90 in one of three studies, which is a miss.
    steps = {"lion": [30.0] * 6, "slow": [np.inf, *[30.0] * 5]}
    times = {"lion": [45.0] * 6, "slow": [np.inf, *[30.0] * 5]}
    assert found.methods == ("lion", "slow") and found.workloads == SIX
    np.testing.assert_allclose(found.steps, [steps[name] for name in found.methods])
    np.testing.assert_allclose(found.times, [times[name] for name in found.methods])
    np.testing.assert_allclose(found.score_by_steps, algoperf_score([steps["lion"], steps["slow"]]))
    np.testing.assert_allclose(found.score_by_time, [(1 + 5 * 2.5 / 3) / 6, 5 / 6])
    assert found.profile("time", [1.0, 1.6]).tolist() == [[1 / 6, 1.0], [5 / 6, 5 / 6]]
    text = shown.markdown(found)
    assert "| slow | 0.833 | 0.833 | 5 of 6 |" in text and "| slow | miss | **30** (1.00) |" in text
    assert "lion" in shown.plain(found) and "30 · 9.0 s" in shown.plain(found)
    with pytest.raises(ValueError, match="no method has records of all workloads of six with 3 trials"):
        suite.standings(records, "six", 3, 3)
    assert suite.budgets(records) == [("six", 2, 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "this is not JSON"),
        ("[]", "a record has the fields suite, version, .* got list"),
        ('{"suite": "six"}', r"a record has the fields .* got \['suite'\]"),
        (line(suite="sixx"), "suite must be"),
        (line(workload="bytlem"), "workload must be"),
        (line(studies=0), "studies must be"),
        (line(rates=[0.1, 0.2, 0.3]), "rates must be 2, one per trial, got 3"),
        (line(steps=[[1, 2, 3]]), r"steps must be of shape \(2, 3\), got \(1, 3\)"),
        (line(steps=[[1, 2, 101], [1, 2, 3]]), "steps must be from 1 to budget_steps=100"),
        (line(steps=[[0, 2, 1], [1, 2, 3]]), "steps must be from 1 to budget_steps=100"),
        (line(baseline_seconds_per_step=0.0), "baseline_seconds_per_step must be"),
    ],
)
def test_a_line_that_is_no_record_is_refused(text, message):
    with pytest.raises(ValueError, match=f"here: .*{message}|here.*{message}"):
        suite.parse(text, "here")


def test_a_stopped_suite_goes_on_after_the_last_line(tmp_path, monkeypatch, capsys):
    calls = []

    def measure(name, problem, method, trials, studies):
        calls.append((problem.name, method.name))
        if len(calls) == 9:
            raise KeyboardInterrupt
        steps = [[10 * len(calls)] * studies] * trials
        rates = suite.trial_rates(1.0, trials).tolist()
        given = {"trials": trials, "studies": studies, "rates": rates, "steps": steps, "final": steps}
        return record(problem.name, method.name, budget_steps=1000, **given)

    monkeypatch.setattr(suite, "measure", measure)
    monkeypatch.setattr(suite, "load", lambda name: dataclasses.replace(load("heavytail"), name=name))
    command = ["gradkit", "race", "--suite=six", "--budget=2", "--seeds=1", "--methods=lion,adamw", f"--out={tmp_path}"]
    assert main(command) == 130
    assert "what has finished is kept" in capsys.readouterr().err
    assert [len((tmp_path / f"{m}.jsonl").read_text().splitlines()) for m in ("lion", "adamw")] == [6, 2]
    assert main(command) == 0
    assert calls == [*((w, "lion") for w in SIX), *((w, "adamw") for w in (*SIX[:3], *SIX[2:]))]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "adamw.jsonl", "lion.jsonl", "profiles.png", "standings.md",
    ]  # fmt: skip
    assert main(command) == 0 and len(calls) == 13
    # A line that was damaged by hand is an error, and not a result.
    (tmp_path / "lion.jsonl").write_text("{}\n")
    assert main(command) == 2
    assert "lion.jsonl, line 1: a record has the fields" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite=sixx"], "suite must be"),
        (["--budget=3"], "budget must be left out without suite"),
        (["--suite=six", "--budget=0"], "budget must be"),
        (["--suite=six", "--rates=3"], "rates must be left out with suite=six, whose rules fix it"),
        (["--suite=six", "--workloads=bytelm"], "workloads must be left out with suite=six"),
        (["--suite=six", "--out=file"], "--out=file is a file"),
    ],
)
def test_what_the_rules_fix_is_no_setting(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert main(["gradkit", "race", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_a_record_has_all_trials_and_studies_and_the_time_of_a_step_beside_adamw():
    problem = dataclasses.replace(load("heavytail"), budget_steps=60, target=0.9)
    found = suite.measure("six", problem, methods.find("clipped_sgd"), 2, 2)
    assert suite.parse(json.dumps(dataclasses.asdict(found)), "here") == found
    assert found.rates == suite.trial_rates(methods.find("clipped_sgd").centre, 2).tolist()
    assert found.seconds_per_step > 0 and found.baseline_seconds_per_step > 0 and found.error == ""
    assert np.isfinite(np.asarray(found.final, np.float64)).all()
    reached = [n for row in found.steps for n in row if n is not None]
    assert reached and all(n % problem.eval_every == 0 for n in reached)


def test_a_method_that_cannot_train_on_a_workload_has_missed_it():
    def refuses(learning_rate):
        raise ValueError("this method asks for\nmore")

    found = suite.measure("six", load("heavytail"), methods.find(("mine", refuses)), 2, 3)
    assert found.error == "this method asks for more" and found.steps == [[None] * 3] * 2
    assert suite.parse(json.dumps(dataclasses.asdict(found)), "here").relative_time == np.inf
    assert suite.outcome(found) == found.error

    own = methods.find(("chain", optax.sgd(0.1)))
    assert suite.trial_rates(own.centre, 5).tolist() == [1.0]


def test_the_leaderboard_is_made_of_its_files():
    """Every file reads, methods are complete, and the page is what the script writes."""
    spec = importlib.util.spec_from_file_location("leaderboard", ROOT / "experiments/leaderboard.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    records = suite.read(ROOT / "experiments/leaderboard")
    results = ROOT / "experiments/results"
    assert script.page(records) == (results / "leaderboard.md").read_text()
    for budget in suite.budgets(records):
        ran = {r.method for r in records if (r.suite, r.trials, r.studies) == budget}
        assert ran == set(suite.standings(records, *budget).methods)
        assert (results / script.picture(*budget)).exists()
    for each in records:
        problem = load(each.workload)
        assert (each.budget_steps, each.target) == (problem.budget_steps, problem.target)
