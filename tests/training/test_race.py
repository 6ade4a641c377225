"""Races: grids that extend, scores from sweeps made by hand, and one small race for real."""

import importlib
import inspect
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.cli import main
from gradkit.training import Sweep, methods, report
from gradkit.training.settings import RaceConfig
from gradkit.workloads import load

pytestmark = pytest.mark.slow

# The package exports the function under the name of its module.
races = importlib.import_module("gradkit.training.race")


def made(rates, steps_to_target, target=0.05):
    """A sweep of three seeds and five evaluations whose runs reach the target when they are told to."""
    hits = np.broadcast_to(np.asarray(steps_to_target, float)[:, None], (len(rates), 3))
    at = np.arange(20, 120, 20)
    curves = np.where(at >= hits[..., None], 0.5 * target, 2 * target)
    return Sweep(
        {"learning_rate": np.asarray(rates)}, np.arange(3), at, curves, hits, np.zeros_like(hits, bool), 1.0, 2.0
    )


@pytest.mark.parametrize(
    ("optimum", "added", "open_edge"), [(0.1, 0, False), (10**0.5, 2, False), (1e-3, 4, False), (1e9, 4, True)]
)
def test_a_grid_extends_by_two_while_its_best_rate_is_at_the_edge(monkeypatch, optimum, added, open_edge):
    def fake(problem, method, grid, **_):
        distance = np.abs(np.log10(np.asarray(grid) / optimum))
        return made(grid, 20 + 20 * np.round(distance, 6))

    monkeypatch.setattr(races, "sweep", fake)
    config = RaceConfig(workloads=("heavytail",), methods=("sgd",), rates=5, decades=1.0, seeds=3)
    seen = []
    result = races.tune(load("heavytail"), methods.find("sgd"), config, seen.append)
    assert result.extended == added and len(result.rates) == 5 + added and result.at_edge == open_edge
    assert result.sweep.curves.shape == (5 + added, 3, 5)
    # The spacing of half a decade goes on into the extension.
    np.testing.assert_allclose(np.diff(np.log10(result.rates)), 0.5, rtol=1e-9)
    if not open_edge:
        np.testing.assert_allclose(result.best_rate, optimum, rtol=1e-9)
    assert sum(event.stage == "extend" for event in seen) == added // 2


def test_a_score_is_read_off_the_best_rate():
    steps = np.array([[np.inf, np.inf, 60], [40, 60, 80], [100, 120, np.inf], [200, 200, 200]], float)
    sweep = made([1e-3, 1e-2, 1e-1, 1.0], np.ones(4))._replace(steps_to_target=steps)
    result = races.score("heavytail", "sgd", sweep)
    assert (result.best, result.steps, result.spread, result.robust) == (1, 60, (40, 80), 2)
    missed = races.score("heavytail", "sgd", made([0.1, 1.0], [np.inf, np.inf]))
    assert np.isinf(missed.steps) and missed.robust == 0 and missed.final == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workloads": ()}, "workloads must be one name or more"),
        ({"methods": ("adam", "adam")}, "methods must be one name or more, each once"),
        ({"methods": ("adm",)}, "did you mean 'adam'"),
        ({"rates": 1}, "rates must be an integer >= 2"),
        ({"decades": float("nan")}, r"decades must be in \(0, 6\]"),
        ({"steps": 0}, "steps must be an integer >= 1 or None"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RaceConfig(**changes)


@pytest.fixture(scope="module")
def small():
    config = RaceConfig(
        workloads=("heavytail", "sensing"), methods=("clipped_sgd", "lion"), rates=3, seeds=2, steps=60,
        eval_every=20, extensions=0, timing_rounds=2,
    )  # fmt: skip
    events = []
    return races.race_config(config, events.append), events


def test_a_race_scores_every_method_on_every_workload(small):
    result, events = small
    assert [(row.workload, row.method) for row in result.results] == [
        (workload, method) for workload in ("heavytail", "sensing") for method in ("clipped_sgd", "lion")
    ]
    for row in result.results:
        assert row.sweep.curves.shape == (3, 2, 3) and row.seconds_per_step > 0 and row.compile_seconds > 0
        assert row.seconds == row.steps * row.seconds_per_step
    assert {event.stage for event in events} == {"sweep", "scored", "compile", "time", "done"}
    assert set(result.step_profile.area) == {"clipped_sgd", "lion"}
    assert [row.steps for row in result.of("heavytail")] == sorted(row.steps for row in result.of("heavytail"))


def test_seconds_come_from_runs_that_do_the_work(small):
    # One run and `count` steps of it are what is timed: the counter of the state proves it.
    problem = load("sensing")
    program, state = races._one_run(problem, methods.find("lion"), 1e-3, 60)
    after = program(state, np.int32(7))
    assert int(after.step) == 7
    assert float(problem.metric(after.params)) != float(problem.metric(state.params))


def test_tables_and_pages_name_every_method_and_show_a_miss_as_a_miss(small):
    result, _ = small
    lost = [row._replace(steps=np.inf, seconds=np.inf) if row.method == "lion" else row for row in result.results]
    result = result._replace(results=tuple(lost))
    table, page = report.plain(result), report.page(result, "gradkit race --methods=<b>")
    for text in (table, page):
        assert all(name in text for name in ("clipped_sgd", "lion", "heavytail", "sensing", "miss"))
    assert "2302.06675" in page and "1211.5063" in page  # the papers of both methods
    assert "gradkit race --methods=&lt;b&gt;" in page
    assert page.count("<svg") == 8  # three charts per workload, two profiles
    assert "http://" not in page.replace("http://www.w3.org/", "") and "https://" not in page and "src=" not in page


def test_labels_that_collide_move_apart_and_stay_inside():
    from gradkit.training.report.charts import spread_out

    moved = spread_out([0.5, 0.02, 0.51, 0.52, 0.99], 0.1, 0.0, 1.0)
    assert np.diff(np.sort(moved)).min() > 0.1 - 1e-12 and moved.min() >= 0 and moved.max() <= 1
    assert np.argsort(moved).tolist() == [1, 0, 2, 3, 4]


@pytest.mark.slow
def test_a_method_without_a_rate_to_tune_runs_once_per_seed_at_its_own_point():
    """No grid, no extension of it, no schedule; what is evaluated is the average that the paper evaluates."""
    free = methods.find("averaged_dog")
    assert free.centre is None and free.schedule is None
    config = RaceConfig(
        workloads=("heavytail",), methods=("dog", "averaged_dog", "sgd"), rates=3, seeds=2, steps=40, eval_every=20,
        extensions=1, timing_rounds=1,
    )  # fmt: skip
    rows = {row.method: row for row in races.race_config(config).results}
    for name in ("dog", "averaged_dog"):
        assert rows[name].sweep.curves.shape[0] == 1 and rows[name].extended == 0 and not rows[name].at_edge
    assert rows["sgd"].sweep.curves.shape[0] >= 3
    assert not np.array_equal(rows["dog"].sweep.curves, rows["averaged_dog"].sweep.curves)


@pytest.mark.parametrize("name", ["dog", "ldog", "u_dog", "a_dog", "averaged_dog"])
def test_a_factor_is_one_where_none_is_given(name):
    """`gradkit train --method=dog` has no rate to hand over."""
    tx = methods.find(name).make(None)
    x = {"w": jnp.ones(3)}
    one = methods.find(name).make(1.0)
    for made in (tx, one):
        made.init(x)
    extra = {"grad_fn": lambda x: x}
    ours, theirs = (m.update(x, m.init(x), x, **extra)[0] for m in map(optax.with_extra_args_support, (tx, one)))
    np.testing.assert_array_equal(ours["w"], theirs["w"])


@pytest.mark.parametrize(
    "kind", ["momo", "momo_adam", "schedule_free_sgd", "schedule_free_adamw", "schedule_free_radam"]
)
def test_untuned_is_at_the_default_of_the_method(kind):
    """No grid, no schedule, and the rate of its signature; a factor of it is a factor, also as a schedule."""
    method, factory = methods.find(f"default_{kind}"), getattr(gk, kind)
    assert method.centre is None and method.schedule is None
    x = {"w": jnp.ones(3)}

    def first(tx):
        # The first updates of RAdam are silent.
        update, state = optax.with_extra_args_support(tx).update, tx.init(x)
        for _ in range(7):
            u, state = update(x, state, x, value=jnp.array(1.5))
        return np.asarray(u["w"])

    rate = inspect.signature(factory).parameters["learning_rate"].default
    for factor, wanted in ((None, factory()), (1.0, factory()), (0.5, factory(0.5 * rate))):
        np.testing.assert_array_equal(first(method.make(factor)), first(wanted))
    np.testing.assert_array_equal(first(method.make(lambda count: 0.5)), first(factory(0.5 * rate)))
    assert np.abs(first(method.make(None))).max() > 0


@pytest.mark.slow
def test_a_race_that_was_killed_goes_on_from_the_methods_that_finished(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in the third method, and with half a line written; other settings do not take what is there."""
    tuned, real = [], races.tune

    class Killed(BaseException):
        pass

    def tune(problem: Any, method: Any, *rest: Any) -> Any:
        tuned.append(method.name)
        if method.name == "lamb" and tuned.count("lamb") == 1:
            raise Killed
        return real(problem, method, *rest)

    monkeypatch.setattr(races, "tune", tune)
    monkeypatch.chdir(tmp_path)
    common = ["gradkit", "race", "--workloads=heavytail", "--rates=2", "--seeds=1", "--steps=20", "--extensions=0"]
    common.append("--timing_rounds=1")
    with pytest.raises(Killed):
        main([*common, "--methods=sgd,lion,lamb"])
    kept = tmp_path / "race" / "001" / "finished.jsonl"
    with kept.open("a") as stream:
        stream.write('{"result": {"workload": "heav')
    capsys.readouterr()
    assert main([*common, "--methods=sgd,lion,lamb"]) == 0
    out = capsys.readouterr().out
    assert "going on in race/001: sgd on heavytail, lion on heavytail had finished" in out
    assert tuned == ["sgd", "lion", "lamb", "lamb"]
    results = json.loads((tmp_path / "race" / "001" / "results.json").read_text())["results"]
    assert [row["method"] for row in results] == ["sgd", "lion", "lamb"] and len(results[0]["rates"]) == 2
    assert not kept.exists()
    # What a race from the start finds of the first method.
    assert main([*common, "--methods=sgd", "--out=alone"]) == 0
    alone = json.loads((tmp_path / "alone" / "results.json").read_text())["results"][0]
    assert {name: alone[name] for name in ("curves", "rates", "best_rate", "steps_to_target", "spread")} == {
        name: results[0][name] for name in ("curves", "rates", "best_rate", "steps_to_target", "spread")
    }
    kept.write_text('{"race": "another"}\n')
    assert main([*common, "--methods=sgd", "--out=race/001"]) == 2
    assert "holds an earlier report" in capsys.readouterr().err
