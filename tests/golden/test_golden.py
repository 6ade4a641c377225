"""Every golden trajectory whose method this library has, replayed in float64.

GRADKIT_GOLDEN=FOLDER replays another folder of the same layout: same methods, other seeds and hyperparameters.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.golden import build, drive, fixture
from tests.golden.fixture import Golden

FILES = {name: fixture.read(path) for name, path in fixture.files().items()}


# Table of `build` -> the modes of the files that it drives.
MODES = {
    "TRANSFORMATIONS": ("replay", "closure"),
    "OF_FILES": ("replay", "closure"),
    "PROBLEMS": ("problem",),
    "FIXED": ("closure_t0",),
    "ADAPTERS": ("lora",),
    "SOURCES": ("closure",),
    "SCHEDULES": ("table", "schedule"),
    "ANSWERS": ("per-example", "schedule", "table"),
    "FUNCTIONS": ("function", "arrays"),
    "AGGREGATORS": ("matrix",),
    "WEIGHTS": ("matrix",),
    "STRATEGIES": ("closure", "replay"),
    "SERVERS": ("closure",),
    "EVENTS": ("events",),
    "RUNS": ("closure",),
}
Record = Callable[[str, object], None]


def drives(golden: Golden) -> bool:
    """Whether a table has an entry that drives this file."""
    return any(
        golden.method in getattr(build, table) and golden.meta["mode"] in modes for table, modes in MODES.items()
    )


def missing(name: str, golden: Golden) -> list[str]:
    """The words of a file's method that have no card; none where a card names the file."""
    cards = gk.catalogue.cards()
    if any(name in card.golden for card in cards.values()):
        return []
    words = set(re.findall(r"[a-z]\w*", golden.method)) - {"after", "and", "then", "with"}
    return sorted(words - set(cards))


def _known(table: str) -> list:
    return [
        pytest.param(golden, id=name)
        for name, golden in FILES.items()
        if golden.method in getattr(build, table) and golden.meta["mode"] in MODES[table]
    ]


def judge(golden: Golden, worst: float, record: Record) -> None:
    """Compares the largest error with the bound of the file, and leaves both for the report."""
    record("error", float(worst))
    record("bound", float(golden.bound))
    assert worst < golden.bound


@pytest.mark.parametrize("golden", [*_known("TRANSFORMATIONS"), *_known("OF_FILES")])
def test_transformation(golden: Golden, x64: None, record_property: Record) -> None:
    worst, unread = drive.transformation(golden)
    judge(golden, worst, record_property)
    assert not unread, f"nothing reads or compares these arrays: {unread}"


@pytest.mark.parametrize("golden", _known("PROBLEMS"))
def test_regression(golden: Golden, x64: None, record_property: Record) -> None:
    """|y - X b|^2 / (2 n) with an intercept; the first entry is where the gradient of iteration 4 is taken."""
    X, y, b = (jnp.asarray(golden.extra()[name]) for name in ("X", "y", "b0"))
    tx = build.PROBLEMS[golden.method](golden.hyper())
    update = jax.jit(tx.update)
    x: Any = {"intercept": b[:1], "coef": b[1:]}
    start = {"coef": np.asarray(b)}
    state: Any = tx.init(x)
    worst = 0.0
    for t in range(3 + len(golden.steps) - 1):
        g = X.T @ (X @ jnp.asarray(jnp.concatenate([x["intercept"], x["coef"]])) - y) / len(y)
        updates, state = update({"intercept": g[:1], "coef": g[1:]}, state, x)
        x = optax.apply_updates(x, updates)
        if t >= 2:
            worst = max(
                worst,
                fixture.error(
                    {"coef": np.asarray(jnp.concatenate([x["intercept"], x["coef"]]))}, golden.steps[t - 2], start
                ),
            )
    judge(golden, worst, record_property)


@pytest.mark.parametrize("golden", _known("FIXED"))
def test_fixed_loss(golden: Golden, x64: None, record_property: Record) -> None:
    """A solver on one loss, and the radius it holds before every step."""
    start = fixture.params(golden)
    tx = build.FIXED[golden.method](golden.hyper())

    def loss(x: Any) -> jax.Array:
        return fixture.loss(golden, 0, x)

    grad_fn = jax.grad(loss)
    update = jax.jit(lambda x, state: tx.update(grad_fn(x), state, x, value_fn=loss, grad_fn=grad_fn))
    x: Any = {leaf: jnp.asarray(value) for leaf, value in start.items()}
    state: Any = tx.init(x)
    worst = 0.0
    for t, want in enumerate(golden.steps):
        np.testing.assert_allclose(state[0].gamma, golden.extra()["gamma"][t], rtol=1e-14)
        np.testing.assert_allclose(loss(x), golden.extra()["value"][t], rtol=golden.bound)
        updates, state = update(x, state)
        x = optax.apply_updates(x, updates)
        worst = max(worst, fixture.error(x, want, start))
    judge(golden, worst, record_property)


@pytest.mark.parametrize("golden", _known("ADAPTERS"))
def test_adapter(golden: Golden, x64: None, record_property: Record) -> None:
    """Torch's layout: A = `wide` (r, in), B = `kernel` (out, r), W = scaling B A. Of step t, g[kernel] g[wide] is the
    gradient of W."""
    start, hyper = fixture.params(golden), golden.hyper()
    if hyper["b_init_zero"]:
        start["kernel"] = np.zeros_like(start["kernel"])
    tx = build.ADAPTERS[golden.method](hyper)
    update = jax.jit(tx.update)
    x = {"lora_a": jnp.asarray(start["wide"].T), "lora_b": jnp.asarray(start["kernel"].T)}
    state = tx.init(x)
    worst = 0.0
    for t, want in enumerate(golden.steps):
        g = fixture.grads(golden, t)
        G = hyper["scaling"] * jnp.asarray((g["kernel"] @ g["wide"]).T)
        updates, state = update({"lora_a": G @ x["lora_b"].T, "lora_b": x["lora_a"].T @ G}, state, x)
        x = optax.apply_updates(x, updates)
        got = {"wide": x["lora_a"].T, "kernel": x["lora_b"].T}
        worst = max(worst, fixture.error(got, want, start))
    judge(golden, worst, record_property)


@pytest.mark.parametrize("golden", _known("SOURCES"))
def test_source(golden: Golden, x64: None, record_property: Record) -> None:
    start = fixture.params(golden)
    source, tx = build.SOURCES[golden.method](golden.hyper())
    x = {leaf: jnp.asarray(value) for leaf, value in start.items()}
    state = tx.init(x)
    worst = 0.0
    for t, want in enumerate(golden.steps):
        value, g = source(lambda x, t=t: fixture.loss(golden, t, x))(x)
        np.testing.assert_allclose(value, fixture.loss(golden, t, x), rtol=1e-14)
        updates, state = tx.update(g, state, x)
        x = optax.apply_updates(x, updates)
        worst = max(worst, fixture.error(x, want, start))
    judge(golden, worst, record_property)


@pytest.mark.parametrize("golden", _known("SCHEDULES"))
def test_schedule(golden: Golden, x64: None, record_property: Record) -> None:
    schedules = build.SCHEDULES[golden.method](golden.hyper())
    errors = []
    for name, want in golden.extra().items():
        got = np.asarray(jax.jit(jax.vmap(schedules[name]))(jnp.arange(len(want))))
        errors.append(np.abs(got - want).max() / np.abs(want).max())
    judge(golden, max(errors), record_property)


@pytest.mark.parametrize("golden", _known("ANSWERS"))
def test_answer(golden: Golden, x64: None, record_property: Record) -> None:
    """Every number of the file; those that count something must be the same."""
    answers, errors = build.ANSWERS[golden.method](golden), [0.0]
    for name, want in golden.extra().items():
        got = np.asarray(answers[name])
        if np.issubdtype(want.dtype, np.integer):
            np.testing.assert_array_equal(got, want, err_msg=name)
        else:
            errors.append(np.abs(got - want).max() / np.abs(want).max())
    judge(golden, max(errors), record_property)


@pytest.mark.parametrize("golden", _known("FUNCTIONS"))
def test_function(golden: Golden, x64: None, record_property: Record) -> None:
    """What a function gives for the arrays of the file: all that are called `output`, and any other it answers."""
    arrays = golden.extra() or golden.arrays
    answers = build.FUNCTIONS[golden.method](golden.hyper(), arrays)
    assert {name for name in arrays if name.split("/")[0].startswith("output")} <= answers.keys() and answers
    errors = [np.abs(np.asarray(got) - arrays[n]).max() / np.abs(arrays[n]).max() for n, got in answers.items()]
    judge(golden, max(errors), record_property)


@pytest.mark.slow
@pytest.mark.parametrize("golden", _known("AGGREGATORS"))
def test_aggregator(golden: Golden, x64: None, record_property: Record) -> None:
    errors = {case: drive.aggregator(golden, case) for case in golden.meta["cases"]}
    worst = max(errors, key=lambda case: errors[case])
    judge(golden, errors[worst], record_property)


@pytest.mark.slow
@pytest.mark.parametrize("golden", _known("WEIGHTS"))
def test_weights_of_tasks(golden: Golden, x64: None, record_property: Record) -> None:
    """What an aggregator makes of losses, or of a Gramian of two batches: every array that is an output."""
    answers = build.WEIGHTS[golden.method](golden)
    assert {name for name in golden.arrays if name.startswith("output/")} <= answers.keys()
    errors = [
        np.abs(np.asarray(got) - golden.arrays[n]).max() / np.abs(golden.arrays[n]).max() for n, got in answers.items()
    ]
    judge(golden, max(errors), record_property)


@pytest.mark.slow
@pytest.mark.parametrize("golden", _known("STRATEGIES"))
def test_strategy(golden: Golden, x64: None, record_property: Record) -> None:
    judge(golden, drive.strategy(golden), record_property)


@pytest.mark.slow
@pytest.mark.parametrize("golden", _known("SERVERS"))
def test_server(golden: Golden, x64: None, record_property: Record) -> None:
    judge(golden, build.SERVERS[golden.method](golden), record_property)


@pytest.mark.parametrize("golden", _known("EVENTS"))
def test_events(golden: Golden, x64: None, record_property: Record) -> None:
    judge(golden, build.EVENTS[golden.method](golden), record_property)


@pytest.mark.parametrize("golden", _known("RUNS"))
def test_run(golden: Golden, x64: None, record_property: Record) -> None:
    """A program around the loss of every step, whose random directions are those of the file."""
    judge(golden, build.RUNS[golden.method](golden), record_property)


def test_every_file_of_a_method_that_is_built_is_driven(record_property: Record) -> None:
    """A file of a method without a card waits for it, and is listed; one that is here has an entry that drives it."""
    idle = {name: missing(name, golden) for name, golden in FILES.items() if not drives(golden)}
    record_property("waits", {name: words for name, words in idle.items() if words})
    lost = [f"{n} ({FILES[n].method}, mode {FILES[n].meta['mode']})" for n, words in idle.items() if not words]
    assert not lost, f"their methods are here, and no entry of build.py drives them: {lost}"


def test_every_file_of_a_card_is_here() -> None:
    """A card that names a trajectory names one that exists, and that is replayed."""
    own = {
        f"{path.parent.name}/{path.stem}": path
        for path in (fixture.Path(fixture.__file__).parent / "data").glob("*/*.npz")
    }
    for name, card in gk.catalogue.cards().items():
        for file in card.golden:
            assert file in own, f"{name}: {file}"
            assert drives(fixture.read(own[file])), f"{name}: {file} is not replayed"
