"""The harness itself, on files made here: what a file may hold, and that a wrong method does not pass."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.golden import build, drive, extras, fixture
from tests.golden.fixture import Golden
from tests.golden.test_golden import drives, missing

META = {"method": "sgd", "mode": "replay", "seed": 3, "leaves": ["bias", "kernel"], "hyper": {"learning_rate": 0.1}}


def descent(scale: Any = None, rates: Any = None, steps: int = 3, **meta: Any) -> Golden:
    """Gradient descent by NumPy."""
    golden = Golden({**META, **meta, "steps": steps}, [{}] * steps, {})
    x, rows = fixture.params(golden), []
    for t in range(steps):
        g = fixture.grads(golden, t)
        factor = 1.0 if scale is None else scale[t]
        rate = 0.1 if rates is None else rates[t]
        x = {leaf: x[leaf] - rate * factor * g[leaf] for leaf in x}
        rows.append(x)
    return golden._replace(steps=rows)


def with_arrays(golden: Golden, **arrays: Any) -> Golden:
    return golden._replace(arrays={f"extra/{name}": np.asarray(a) for name, a in arrays.items()})


def test_a_wrong_rate_is_seen(x64: None) -> None:
    worst, unread = drive.transformation(descent())
    assert worst < 1e-14 and not unread
    assert drive.transformation(descent(hyper={"learning_rate": 0.1001}))[0] > 1e-4


def test_rates_and_factors_of_every_step(x64: None) -> None:
    scale, rates = np.array([1.0, -2.0, 0.5]), np.array([0.1, 0.2, 0.05])
    golden = descent(scale, rates, hyper={})
    worst, unread = drive.transformation(with_arrays(golden, gradient_scale=scale, learning_rate=rates))
    assert worst < 1e-14 and not unread


def test_arrays_are_handed_step_by_step(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number, a tree by leaf, a tree by step and leaf, and stacked tensors; under the names of the arguments."""
    rng = np.random.default_rng(0)
    seen: list[Any] = []

    class Spy:
        def init(self, x: Any) -> Any:
            return ()

        def update(self, g: Any, state: Any, x: Any = None, **extra: Any) -> Any:
            seen.append(extra)
            return {leaf: -0.1 * v for leaf, v in g.items()}, state

    monkeypatch.setitem(build.TRANSFORMATIONS, "sgd", lambda hyper: Spy())
    monkeypatch.setitem(build.HANDED, "sgd", {"z": "direction"})
    monkeypatch.setattr(drive.jax, "jit", lambda f, **_: f)
    monkeypatch.setattr(drive.optax, "with_extra_args_support", lambda tx: tx)
    loss, logits = rng.standard_normal(3), rng.standard_normal((3, 2))
    arrays = {"loss": loss, "logits/a": logits, "moment/stack/0": np.eye(3), "moment/stack/1": 2 * np.eye(3)}
    z = {f"z{t + 1}/bias": rng.standard_normal(4) for t in range(3)}
    worst, unread = drive.transformation(with_arrays(descent(), **arrays, **z))
    assert worst < 1e-14 and not unread
    for t, extra in enumerate(seen):
        assert extra.keys() == {"value", "logits", "input_moment", "direction"}
        np.testing.assert_array_equal(extra["value"], loss[t])
        np.testing.assert_array_equal(extra["logits"]["a"], logits[t])
        np.testing.assert_array_equal(extra["input_moment"]["stack"], np.stack([np.eye(3)[t], 2 * np.eye(3)[t]]))
        np.testing.assert_array_equal(extra["direction"]["bias"], z[f"z{t + 1}/bias"])


def test_arrays_that_nothing_reads_are_named(x64: None) -> None:
    golden = with_arrays(descent(), surprise=np.zeros(3), loss=np.zeros(3))
    assert drive.transformation(golden)[1] == ["surprise"]


def test_points_of_evaluation_and_metrics_are_compared(x64: None) -> None:
    golden = descent()
    after = {f"eval_t{t + 1}/{leaf}": x for t, row in enumerate(golden.steps) for leaf, x in row.items()}
    assert drive.transformation(with_arrays(golden, **after))[0] < 1e-14
    after["eval_t2/bias"] = after["eval_t2/bias"] + 1e-6
    assert drive.transformation(with_arrays(golden, **after))[0] > 1e-8
    tx = gk.clip_by_global_norm(1.0)
    g = {"w": jnp.asarray([3.0, 4.0])}
    _, state = tx.update(g, tx.init(g), g)
    reader = extras.Reader(with_arrays(descent(steps=1), gradient_norm=[5.0]))
    assert extras.measured(reader, 0, state, g, g) == 0.0 and not reader.unread()
    wrong = extras.Reader(with_arrays(descent(steps=1), gradient_norm=[5.1]))
    assert extras.measured(wrong, 0, state, g, g) > 1e-3


def test_a_hyperparameter_may_be_a_table_by_case(x64: None) -> None:
    """One case has a preference, the other the default; each as if it had its file."""
    rng = np.random.default_rng(1)
    matrices = {case: rng.standard_normal((3, 8)) for case in ("one", "two")}
    given = {"one": [0.5, 0.2, 0.3]}
    meta = {"method": "upgrad", "mode": "matrix", "seed": 0, "cases": ["one", "two"], "hyper": {"pref_vector": given}}

    def answer(case: str) -> np.ndarray:
        tx = gk.aggregation.upgrad(pref_vector=given.get(case))
        rows = jnp.asarray(matrices[case])
        return np.asarray(tx.update(rows, tx.init(rows[0]))[0])

    arrays = {f"matrix/{case}": m for case, m in matrices.items()} | {f"output/{c}": answer(c) for c in matrices}
    golden = Golden(meta, [], arrays)
    assert golden.hyper("one") == {"pref_vector": given["one"]} and golden.hyper("two") == {"pref_vector": None}
    for case in matrices:
        assert drive.aggregator(golden, case) < 1e-13
    swapped = golden._replace(arrays={**arrays, "output/one": answer("two")})
    assert drive.aggregator(swapped, "one") > 1e-3


def test_a_sequence_keeps_its_state_and_is_handed_its_arrays(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running mean of the sums over tasks, times a number that comes with each step."""

    class Mean:
        def init(self, x: Any) -> Any:
            return {k: jnp.zeros_like(v) for k, v in x.items()}

        def update(self, g: Any, state: Any, x: Any = None, *, uniform: Any) -> Any:
            state = {k: 0.5 * state[k] + v.sum(0) for k, v in g.items()}
            return {k: uniform * v for k, v in state.items()}, state

    monkeypatch.setitem(build.AGGREGATORS, "mean", lambda hyper, arrays: Mean())
    rng = np.random.default_rng(2)
    G, uniform = rng.standard_normal((4, 3, 7)), rng.standard_normal(4)
    state, out = np.zeros(7), []
    for t in range(4):
        state = 0.5 * state + G[t].sum(0)
        out.append(uniform[t] * state)
    meta = {"method": "mean", "mode": "matrix", "seed": 0, "cases": ["seq"], "hyper": {}}
    golden = Golden(meta, [], {"matrix/seq": G, "output/seq": np.array(out), "uniform/seq": uniform})
    assert drive.aggregator(golden, "seq") < 1e-14


def test_a_file_may_loosen_its_bound() -> None:
    assert descent().bound == 1e-10 and descent(tolerance=1e-3).bound == 1e-3


def test_what_is_not_driven_is_waited_for_or_missed() -> None:
    """Methods without a card wait; a mode that nothing drives, of a method that is here, is a failure."""
    waits = descent(method="adamw after no_such_link")
    assert not drives(waits) and missing("modern/none", waits) == ["no_such_link"]
    lost = descent(method="adamw", mode="events")
    assert not drives(lost) and not missing("adaptive/none", lost)
    assert drives(descent())
