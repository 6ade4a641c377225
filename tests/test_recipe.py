"""docs/recipes.md: every method in it is added as it says, passes points of the contract, and trains in every loop.

A block of code whose first line is the name of a file is executed as that file, and the catalogue has its cards while a
test runs. Nothing else of the package is touched: what a loop must know, it reads from the method.
"""

import doctest
import functools
import importlib
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit import catalogue
from gradkit.catalogue import Card
from gradkit.training import TrainConfig, make_train_step, race, sweep, train
from gradkit.training.methods import find
from tests.contract import test_aggregators, test_composition, test_narrow_state, test_numbers, test_program

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/recipes.md").read_text()
FILES = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL))
METHODS = ("adabelief", "schedule_free_sgd", "mgda", "reduce_on_plateau")


@pytest.fixture(autouse=True)
def cards(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Card]]:
    """The catalogue with the page's methods, also where the package has methods of these names by now."""
    monkeypatch.setattr(catalogue, "_CARDS", {n: c for n, c in catalogue._CARDS.items() if n not in _names()})
    for file, text in FILES.items():
        if file.startswith("gradkit/"):
            name = file.removesuffix(".py").replace("/", ".")
            module = types.ModuleType(name)
            monkeypatch.setitem(sys.modules, name, module)
            exec(compile(text, file, "exec"), vars(module))
    yield {name: catalogue.find(name) for name in METHODS}


@functools.cache
def _names() -> frozenset[str]:
    """The names that the page registers."""
    return frozenset(re.findall(r"^register\(\s*(\w+),", PAGE, re.MULTILINE))


def test_the_page_has_the_four_methods_and_adabelief_takes_four_files() -> None:
    """Its file, its check, the group that lists the name, and the changelog: no other file of the package names a
    method of this kind that is there already."""
    assert set(METHODS) <= _names()
    assert [file for file in FILES if "adabelief" in file] == [
        "gradkit/optimizers/adaptive/adabelief.py",
        "tests/papers/test_adabelief.py",
    ]
    own = {ROOT / "gradkit/optimizers/adaptive" / name for name in ("adamax.py", "__init__.py")}
    naming = {
        file
        for file in (ROOT / "gradkit").rglob("*.py")
        if re.search(r"^(?!\s*>>>).*[\"' (]adamax[\"',)(]", file.read_text(), re.MULTILINE)
    }
    assert naming == own
    assert "adamax" in gk.__all__ and gk.adamax
    assert max(len(line) for text in FILES.values() for line in text.splitlines()) <= 120


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("gradkit/")])
def test_the_examples_of_the_page_run(file: str) -> None:
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    found = [test for test in doctest.DocTestFinder().find(module, module.__name__) if test.examples]
    assert found
    for test in found:
        runner = doctest.DocTestRunner(verbose=False)
        runner.run(test)
        assert not runner.failures, test.name


def test_the_check_of_the_paper_runs(x64: None) -> None:
    checks: dict[str, Any] = {"__name__": "test_adabelief"}
    exec(compile(FILES["tests/papers/test_adabelief.py"], "tests/papers/test_adabelief.py", "exec"), checks)
    checks["test_three_steps_of_the_algorithm"](None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adabelief", "schedule_free_sgd", "reduce_on_plateau"])
def test_a_link_passes_the_contract(name: str, cards: dict[str, Card]) -> None:
    card = cards[name]
    assert card.is_link
    for point in (
        test_program.test_jit_equals_eager,
        test_program.test_a_step_compiles_once,
        test_program.test_scan_equals_loop,
        test_composition.test_inside_other_transformations,
        test_composition.test_extra_arguments_pass_through,
        test_numbers.test_bfloat16_parameters_are_computed_in_float32,
        test_numbers.test_gradients_that_do_not_match_are_refused,
        test_program.test_abstract_init,
        test_program.test_state_words_are_those_of_the_card,
        test_numbers.test_zero_gradients_and_zero_parameters_stay_finite,
        test_numbers.test_descends_on_a_quadratic_and_on_digits,
    ):
        point(card)
    test_narrow_state.test_every_floating_state_is_coded_and_nothing_else_changes(card, "bfloat16")
    for bad in (np.nan, -1.0, "high"):
        test_numbers.test_bad_hyperparameters_are_refused_by_name(card, bad)


@pytest.mark.slow
def test_the_aggregator_passes_its_contract(cards: dict[str, Card]) -> None:
    card = cards["mgda"]
    for point in (
        test_aggregators.test_jit_equals_eager_and_the_axis_is_gone,
        test_aggregators.test_scan_equals_loop_in_a_chain_with_adam,
        test_aggregators.test_gradients_that_are_computed_as_they_are_asked_for_give_the_same,
        test_aggregators.test_conflict_is_a_matter_of_the_whole_tree,
    ):
        with jax.enable_x64(True):
            point(card, None)


def last(**settings: Any) -> dict[str, Any]:
    return list(train(TrainConfig(**settings)))[-1]


@pytest.mark.slow
def test_every_loop_knows_the_optimizer() -> None:
    """By name in `train`, `race` and `describe`."""
    assert last(workload="heavytail", method="adabelief", steps=40)["metric"] < 1
    found = race("heavytail", ["adabelief", "gk.sgd"], rates=2, seeds=1, steps=20, extensions=0)
    assert [row.method for row in found.results] == ["adabelief", "sgd"]
    assert gk.leaves.describe(find("adabelief").make(0.1), {"w": jnp.ones(3)}).rows[0].method == "adabelief"


@pytest.mark.slow
def test_every_loop_evaluates_the_schedule_free_method_at_its_average(cards: dict[str, Card]) -> None:
    """Under no schedule, and with the statistics of a model there."""
    assert find("schedule_free_sgd").schedule is None
    tx = cards["schedule_free_sgd"].function(0.5)

    def metric(params: Any) -> jax.Array:
        return jnp.square(params["w"]).sum()

    start = {"w": jnp.full(2, 1.0)}
    mine = gk.workloads.problem(
        start, lambda p, batch: 0.5 * metric(p), {"none": jnp.zeros(1)}, metric, 0.0, steps=4, eval_every=4
    )
    z = x = y = np.ones(2)
    for t in range(1, 5):
        z = z - 0.5 * y
        x = x + (z - x) / (t + 1)
        y = 0.1 * z + 0.9 * x
    assert np.sum(x**2) > 1.1 * np.sum(y**2)
    curves = sweep(mine, lambda learning_rate: tx, [1.0], seeds=1).curves
    # Ten float32 roundings of numbers below 1.
    np.testing.assert_allclose(curves[0, 0, -1], np.sum(x**2), rtol=10 * 2**-23)
    step = make_train_step(lambda p, batch: 0.5 * metric(p), tx, donate=False)
    state = step.init(start)
    for _ in range(4):
        state, _ = step(state, None)
    np.testing.assert_allclose(step.eval_params(state)["w"], x, rtol=10 * 2**-23)
    np.testing.assert_allclose(state.params["w"], y, rtol=20 * 2**-23)


@pytest.mark.slow
def test_every_loop_gives_the_aggregator_its_source() -> None:
    by_name = last(workload="multitask", aggregator="mgda", steps=20, eval_every=20)
    assert by_name["metric"] != last(workload="multitask", steps=20, eval_every=20)["metric"]
    tx = optax.chain(catalogue.find("mgda").function(), gk.sgd(0.1))

    def losses(x: jax.Array) -> jax.Array:
        return jnp.stack([jnp.square(x - 1).sum(), jnp.square(x + 1).sum()])

    step = make_train_step(lambda x, batch: losses(x), tx, donate=False)
    x = jnp.array([3.0, 0.0])
    state, _ = step(step.init(x), None)
    # Gradients (4, -2) and (8, 2): 0.95 and 0.05 of them are shortest, (4.2, -1.8).
    g = np.array([[4.0, -2.0], [8.0, 2.0]])
    w = np.clip((g[1] - g[0]) @ g[1] / np.sum((g[1] - g[0]) ** 2), 0, 1)
    np.testing.assert_allclose(state.params, np.array([3.0, 0.0]) - 0.1 * (w * g[0] + (1 - w) * g[1]), rtol=1e-5)


@pytest.mark.slow
def test_every_loop_tells_the_controller_the_loss(cards: dict[str, Card]) -> None:
    """A run whose loss cannot fall has its scale halved again and again, and says so in its metrics."""
    link = functools.partial(cards["reduce_on_plateau"].function, patience=2)
    step = make_train_step(lambda x, batch: 1.0 + 0 * x.sum(), optax.chain(link(), gk.sgd(0.1)), donate=False)
    state = step.init(jnp.ones(2))
    seen = []
    for _ in range(6):
        state, metrics = step(state, None)
        seen.append(float(metrics["scale"]))
    assert seen == [1, 1, 0.5, 0.5, 0.25, 0.25]
    record = last(workload="heavytail", method="reduce_on_plateau", learning_rate=1e-6, steps=40, eval_every=20)
    assert record["scale"] < 1
    with pytest.raises(ValueError, match="reduce_on_plateau needs the extra argument value"):
        link().update(jnp.ones(2), link().init(jnp.ones(2)))
