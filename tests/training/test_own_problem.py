"""A problem, a method and a chain of one's own, in every tool; and optax's optimizers beside them."""

import functools
import json
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.catalogue import Race, cards
from gradkit.cli import main
from gradkit.training import methods, race, report, sweep
from gradkit.training.settings import RaceConfig


@pytest.fixture(autouse=True)
def loose() -> Iterator[None]:
    """optax mixes dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


X = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
W = np.array([1.0, -2.0, 0.5], np.float32)


def mine(**changes: object) -> gk.workloads.Workload:
    """Linear regression on 64 examples; the metric is the distance from the truth."""
    given = {"batch_size": 16, "steps": 40, "eval_every": 20, "name": "mine", "metric_name": "distance"}
    return gk.workloads.problem(
        {"w": np.zeros(3, np.float32)},
        lambda params, batch: jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2),
        (X, X @ W),
        metric=lambda params: jnp.linalg.norm(params["w"] - W),
        target=0.05,
        **{**given, **changes},  # pyright: ignore[reportArgumentType]
    )


def clipped(learning_rate: object) -> optax.GradientTransformation:
    return optax.chain(optax.clip(10.0), optax.sgd(learning_rate))  # pyright: ignore[reportArgumentType]


SHORT = {"rates": 3, "seeds": 2, "extensions": 0, "timing_rounds": 1}


def test_a_race_of_ones_own() -> None:
    fixed = optax.chain(gk.clip_by_global_norm(10.0), gk.sgd(0.2))
    found = race(mine(), ["lion", gk.sgd, optax.sgd, "optax.contrib.dog", clipped, ("fixed", fixed)], **SHORT)
    names = ["lion", "sgd", "optax.sgd", "optax.contrib.dog", "clipped", "fixed"]
    assert [row.method for row in found.results] == names and found.workloads == ("mine",)
    rows = {row.method: row for row in found.results}
    # The same method from two libraries, at the same rates: twelve roundings of each step, and vmapped programs alike.
    np.testing.assert_allclose(rows["sgd"].sweep.curves, rows["optax.sgd"].sweep.curves, rtol=1e-4, atol=1e-6)
    assert len(rows["fixed"].rates) == 1 and not rows["fixed"].at_edge and rows["fixed"].steps == 20
    assert np.isfinite(rows["sgd"].steps) and rows["sgd"].seconds_per_step > 0
    text = report.plain(found)
    assert "mine: distance <= 0.05 within 40 steps" in text and all(name in text for name in names)
    page = report.page(found, "")
    assert "no card: a method of your own" in page and "optax.contrib.dog" in page


def test_self_tuning_methods_race_without_a_schedule() -> None:
    assert [methods.find(name).schedule for name in ("sania", "oasis", "optax.contrib.prodigy", "optax.lbfgs")] == [
        None
    ] * 4
    assert methods.find("adamw").schedule == "warmup_cosine"
    seen = []

    def spy(learning_rate: object) -> optax.GradientTransformation:
        seen.append(learning_rate)
        return optax.sgd(0.1)

    methods.Method("spy", spy, schedule=None).scheduled(0.5, 10)
    methods.Method("spy", spy).scheduled(0.5, 10)
    assert seen[0] == 0.5 and callable(seen[1])
    with pytest.raises(ValueError, match="must make a transformation of a learning rate, got 3"):
        methods.Method("bad", lambda learning_rate: 3).scheduled(0.5, 10)  # pyright: ignore[reportArgumentType]


def test_methods_are_found_by_name_factory_chain_and_card() -> None:
    for method in ("lion", "gk.lion", gk.lion):
        found = methods.find(method)
        assert (found.name, found.centre, found.card) == ("lion", 2e-3, cards()["lion"])
    some = methods.find(functools.partial(gk.adamw, weight_decay=0.5))
    assert (some.name, some.centre) == ("adamw", 5e-3)
    params = {"w": jnp.ones(2)}
    updates, _ = some.make(0.1).update(params, some.make(0.1).init(params), params)
    np.testing.assert_allclose(
        np.asarray(jax.tree.leaves(updates)[0]), -0.1 * 1.5, rtol=1e-5
    )  # the sign of the gradient, and the decay
    # A variant on the card of a primitive is put in front of the optimizer that it names.
    before = methods.find("agc_nesterov")
    assert before.card is cards()["adaptive_grad_clip"] and len(before.make(0.1).init({"w": jnp.ones((2, 2))})) == 2
    # A primitive races with the rate behind it, and gives leaves that it is not for to Adam.
    only = methods.find("scale_by_muon").make(0.1)
    assert jax.tree.leaves(only.init({"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}))
    assert methods.find("optax.contrib.muon").centre == methods.find("muon").centre == 1e-2


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("lyon", "did you mean 'lion'"),
        ("optax.adamv", r"optax has no optimizer called 'optax.adamv'; did you mean 'optax.adam"),
        ("optax.nothing.adam", "optax has no optimizer called"),
        (3, "a method must be a name, a function of a learning rate, a transformation"),
        (lambda: optax.sgd(0.1), "must be a function of a learning rate, got one without arguments"),
    ],
)
def test_what_is_no_method_is_refused(method: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.find(method)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1"),
        ({"metric": 3}, "metric must be callable, got 3"),
        ({"batches": (X, W)}, "one leading axis of examples, got lengths"),
    ],
)
def test_a_bad_problem_is_refused(changes: dict, message: str) -> None:
    given = {"init": W, "loss": lambda p, b: 0.0, "batches": X, "metric": lambda p: 0.0, "target": 1.0, "batch_size": 2}
    with pytest.raises(ValueError, match=message):
        gk.workloads.problem(**{**given, **changes})


def test_a_problem_without_examples_is_full_batch() -> None:
    full = mine(batch_size=None, steps=1000, eval_every=None)
    assert full.eval_every == 20 and full.batch(jax.random.key(0))[0].shape == (64, 3)


def test_sweeps_take_factories_and_names() -> None:
    rates = [0.01, 0.1]
    by_factory = sweep(mine(), gk.adamw, rates, seeds=1)
    by_optax = sweep(mine(), functools.partial(optax.adamw, weight_decay=0.01), {"learning_rate": rates}, seeds=1)
    assert by_factory.curves.shape == (2, 1, 2) and not np.array_equal(by_factory.curves[0], by_factory.curves[1])
    # gk.adamw decays by 0.01 as well; forty steps of rounding.
    np.testing.assert_allclose(by_factory.curves, by_optax.curves, rtol=1e-4)
    by_name = sweep(mine(), "adamw", rates, seeds=1)  # under the schedule of its card
    assert not np.allclose(by_name.curves, by_factory.curves, rtol=1e-3)
    with pytest.raises(ValueError, match="did you mean 'adamw'"):
        sweep(mine(), "adamww", rates)


FILE = """
import jax.numpy as jnp
import optax
import gradkit as gk

X = jnp.linspace(-1.0, 1.0, 32)[:, None]
problem = gk.workloads.problem(
    {"w": jnp.zeros(1)}, lambda p, b: jnp.mean((b @ p["w"] - 2 * b[:, 0]) ** 2), X,
    metric=lambda p: jnp.abs(p["w"][0] - 2.0), target=0.1, batch_size=8, steps=20, eval_every=10, name="line")
def chain(learning_rate):
    return optax.chain(gk.clip_by_global_norm(1.0), optax.sgd(learning_rate))
race = gk.catalogue.Race(0.3, decades=0.5)
wrong = 3
"""


def test_the_command_line_races_files(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "own.py", tmp_path / "out"
    file.write_text(FILE)
    flags = ["--rates=3", "--seeds=1", "--extensions=0", "--timing_rounds=1"]
    command = [
        "gradkit",
        "race",
        f"--problem={file}",
        f"--chain={file}",
        "--methods=optax.adamw",
        *flags,
        f"--out={out}",
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "line: " in said and "optax.adamw" in said and "own.py" in said
    (adamw, own) = json.loads((out / "results.json").read_text())["results"]
    assert adamw["workload"] == "line" and own["method"] == "own.py"
    np.testing.assert_allclose(own["rates"], [0.3 * 10**-0.5, 0.3, 0.3 * 10**0.5], rtol=1e-6)
    for flag, message in (
        (f"--problem={file}:wrong", "problem must be what gk.workloads.problem(...) returns, got 3"),
        (f"--problem={file}:problm", "did you mean 'problem'?"),
        (f"--chain={file}:wrong", "wrong must be a transformation or a function, got 3"),
        ("--chain=nowhere.py", "there is no file nowhere.py"),
    ):
        assert main(["gradkit", "race", flag]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_the_command_line_inspects_and_trains_optax(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gradkit", "inspect", "optax.adamw", "--mesh=fsdp=8", "--workload=heavytail"]) == 0
    said = capsys.readouterr().out
    assert "optax.adamw: the update of all parameters" in said and "collectives  none" in said
    for method in ("gk.lion", "optax.lion"):
        assert main(["gradkit", "train", "--workload=heavytail", f"--method={method}", "--steps=20"]) == 0
    assert main(["gradkit", "inspect", "optax.adamv"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_a_card_with_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"race.schedule must be one of warmup_cosine, None, got 'linear'"):
        gk.catalogue.register(
            test_a_race_of_ones_own, form="rule", paper=gk.catalogue.Paper("", "", 2026), race=Race(schedule="linear")
        )


def test_configurations_hold_objects_and_names() -> None:
    config = RaceConfig(workloads=(mine(),), methods=("lion", ("mine", gk.sgd)))  # pyright: ignore[reportArgumentType]
    assert config.method_names == ("lion", "mine") and [p.name for p in config.problems()] == ["mine"]
    with pytest.raises(ValueError, match="methods must be one name or more, each once"):
        RaceConfig(methods=("lion", gk.lion))  # pyright: ignore[reportArgumentType]
