"""The protocol of `experiments/record_race.py`: as many trials for every entrant, entrants that are what they say."""

import importlib.util
import itertools
import pathlib
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk

PATH = pathlib.Path(__file__).parents[2] / "experiments/record_entrants.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_entrants", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_of(stage: str, rate: float, second: float, arrived: float) -> dict[str, float | str]:
    return {"stage": stage, "rate": rate, "second": second, "arrived": arrived, "final": 1.0}


@pytest.mark.parametrize("best", range(4))
def test_every_entrant_has_eight_trials_wherever_its_best_rate_is(script: ModuleType, best: int) -> None:
    for name, entrant in script.ENTRANTS.items():
        if not entrant.tuned:
            continue
        first = script.trials_of(entrant, "rates", [])
        rows = [run_of("rates", rate, value, 100.0 + abs(i - best)) for i, (rate, value) in enumerate(first)]
        second = script.trials_of(entrant, "beside", rows)
        assert len({*first, *second}) == 8, name
        rates = sorted(rate for rate, value in [*first, *second] if value == entrant.values[0])
        # Six rates; beside the best or beyond the edge they are a factor of 2 apart.
        assert len(rates) == 6
        assert any(np.isclose(max(rate, first[best][0]) / min(rate, first[best][0]), 2) for rate in rates)
        assert {value for _, value in second} == set(entrant.values)
        rows += [run_of("beside", rate, value, 50.0 + i) for i, (rate, value) in enumerate(second)]
        assert script.trials_of(entrant, "report", rows) == [second[0]]


def test_a_resample_is_of_pairs_and_a_miss_has_a_number(script: ModuleType) -> None:
    """Of two seeds there are four resamples; the seeds are far apart, and their differences are not."""
    a, b = np.array([100.0, 300.0]), np.array([120.0, np.inf])
    mean, low, high = script.difference(a, b, 330.0)
    means = [np.mean(draw) for draw in itertools.product([-20.0, -30.0], repeat=2)]
    assert mean == -25 and (low, high) == tuple(np.quantile(means, (0.025, 0.975)))
    assert low < high < 0


def test_scion_and_soap_are_their_own_optimizers(script: ModuleType) -> None:
    """Scion with a pull of 1 is the constrained one; SOAP on matrices is `gk.soap`, whose vectors have AdamW."""
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "bias": jnp.zeros(3)}
    grads = [jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params) for _ in range(3)]

    def moved(tx, names):
        @jax.jit
        def run(params):
            state = tx.init(params)
            for grad in grads:
                updates, state = tx.update(grad, state, params)
                params = jax.tree.map(jnp.add, params, updates)
            return params

        return [np.asarray(run(params)[name]) for name in names]

    make = {name: entrant.make for name, entrant in script.ENTRANTS.items()}
    pairs = [
        (make["scion"](1e-2, 1.0, 10), gk.scion(1e-2), ("kernel", "bias")),
        (make["soap"](1e-2, 0.1, 10), gk.soap(1e-2, weight_decay=0.1), ("kernel",)),
        (make["soap"](1e-2, 0.1, 10), gk.adamw(1e-2, b2=0.95, weight_decay=0.1), ("bias",)),
    ]
    for ours, other, names in pairs:
        for x, y in zip(moved(ours, names), moved(other, names), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)
