"""Every golden trajectory whose method this library has, replayed in float64.

GRADKIT_GOLDEN=FOLDER replays another folder of the same layout: same methods, other seeds and hyperparameters.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.golden import build, fixture
from tests.golden.fixture import Golden

FILES = {name: fixture.read(path) for name, path in fixture.files().items()}


def _known(table: dict, modes: tuple[str, ...]) -> list:
    return [
        pytest.param(golden, id=name)
        for name, golden in FILES.items()
        if golden.method in table and golden.meta["mode"] in modes
    ]


@pytest.mark.parametrize("golden", _known(build.TRANSFORMATIONS, ("replay", "closure")))
def test_transformation(golden: Golden, x64: None) -> None:
    start = fixture.params(golden)
    tx = optax.with_extra_args_support(build.TRANSFORMATIONS[golden.method](golden.meta["hyper"]))
    update = jax.jit(tx.update, static_argnames="grad_fn")
    x = {leaf: jnp.asarray(value) for leaf, value in start.items()}
    state = build.STARTS.get(golden.method, lambda state, extra: state)(tx.init(x), golden.extra())
    worst = 0.0
    for t, want in enumerate(golden.steps):
        extra: dict[str, Any] = {}
        if golden.meta["mode"] == "replay":
            g = {leaf: jnp.asarray(value) for leaf, value in fixture.grads(golden, t).items()}
        else:

            def loss(x: Any, t: int = t) -> jax.Array:
                return fixture.loss(golden, t, x)

            extra["value"], g = jax.value_and_grad(loss)(x)
            grad_fn = jax.grad(loss)
            if golden.method in build.CALLS_BACK:
                extra["grad_fn"] = grad_fn
        if golden.method in build.EXTRAS:
            extra |= build.EXTRAS[golden.method](golden, t, x)
        updates, state = update(g, state, x, **extra)
        x = optax.apply_updates(x, updates)
        worst = max(worst, fixture.error(x, want, start))
    assert worst < golden.bound

    true = {name[5:]: value for name, value in golden.extra().items() if name.startswith("true/")}
    if true:
        assert fixture.error(gk.eval_params(state, x), true, start) < golden.bound


@pytest.mark.parametrize("golden", _known(build.PROBLEMS, ("problem",)))
def test_regression(golden: Golden, x64: None) -> None:
    """|y - X b|^2 / (2 n) with an intercept; the first entry is where the gradient of iteration 4 is taken."""
    X, y, b = (jnp.asarray(golden.extra()[name]) for name in ("X", "y", "b0"))
    tx = build.PROBLEMS[golden.method](golden.meta["hyper"])
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
    assert worst < golden.bound


@pytest.mark.parametrize("golden", _known(build.FIXED, ("closure_t0",)))
def test_fixed_loss(golden: Golden, x64: None) -> None:
    """A solver on one loss, and the radius it holds before every step."""
    start = fixture.params(golden)
    tx = build.FIXED[golden.method](golden.meta["hyper"])

    def loss(x: Any) -> jax.Array:
        return fixture.loss(golden, 0, x)

    grad_fn = jax.grad(loss)
    update = jax.jit(lambda x, state: tx.update(grad_fn(x), state, x, value_fn=loss, grad_fn=grad_fn))
    x: Any = {leaf: jnp.asarray(value) for leaf, value in start.items()}
    state: Any = tx.init(x)
    for t, want in enumerate(golden.steps):
        np.testing.assert_allclose(state[0].gamma, golden.extra()["gamma"][t], rtol=1e-14)
        np.testing.assert_allclose(loss(x), golden.extra()["value"][t], rtol=golden.bound)
        updates, state = update(x, state)
        x = optax.apply_updates(x, updates)
        assert fixture.error(x, want, start) < golden.bound


@pytest.mark.parametrize("golden", _known(build.ADAPTERS, ("lora",)))
def test_adapter(golden: Golden, x64: None) -> None:
    """Torch's layout: A = `wide` (r, in), B = `kernel` (out, r), W = scaling B A. Of step t, g[kernel] g[wide] is the
    gradient of W."""
    start, hyper = fixture.params(golden), golden.meta["hyper"]
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
    assert worst < golden.bound


@pytest.mark.parametrize("golden", _known(build.SOURCES, ("closure",)))
def test_source(golden: Golden, x64: None) -> None:
    start = fixture.params(golden)
    source, tx = build.SOURCES[golden.method](golden.meta["hyper"])
    x = {leaf: jnp.asarray(value) for leaf, value in start.items()}
    state = tx.init(x)
    worst = 0.0
    for t, want in enumerate(golden.steps):
        value, g = source(lambda x, t=t: fixture.loss(golden, t, x))(x)
        np.testing.assert_allclose(value, fixture.loss(golden, t, x), rtol=1e-14)
        updates, state = tx.update(g, state, x)
        x = optax.apply_updates(x, updates)
        worst = max(worst, fixture.error(x, want, start))
    assert worst < golden.bound


@pytest.mark.parametrize("golden", _known(build.SCHEDULES, ("table", "schedule")))
def test_schedule(golden: Golden, x64: None) -> None:
    schedules = build.SCHEDULES[golden.method](golden.meta["hyper"])
    for name, want in golden.extra().items():
        got = np.asarray(jax.jit(jax.vmap(schedules[name]))(jnp.arange(len(want))))
        assert np.abs(got - want).max() < golden.bound * np.abs(want).max(), name


@pytest.mark.parametrize("golden", _known(build.ANSWERS, ("per-example", "schedule")))
def test_answer(golden: Golden, x64: None) -> None:
    """Every number of the file; those that count something must be the same."""
    answers = build.ANSWERS[golden.method](golden)
    for name, want in golden.extra().items():
        got = np.asarray(answers[name])
        bound = 0 if np.issubdtype(want.dtype, np.integer) else golden.bound
        assert np.abs(got - want).max() <= bound * np.abs(want).max(), name


@pytest.mark.parametrize("golden", _known(build.FUNCTIONS, ("function",)))
def test_function(golden: Golden, x64: None) -> None:
    for name, got in build.FUNCTIONS[golden.method](golden.meta["hyper"], golden.extra()).items():
        want = golden.extra()[name]
        assert np.abs(np.asarray(got) - want).max() < golden.bound * np.abs(want).max(), name


@pytest.mark.slow
@pytest.mark.parametrize("golden", _known(build.AGGREGATORS, ("matrix",)))
def test_aggregator(golden: Golden, x64: None) -> None:
    for case in golden.meta["cases"]:
        matrix, want = golden.arrays[f"matrix/{case}"], golden.arrays[f"output/{case}"]
        tx = build.AGGREGATORS[golden.method](golden.meta["hyper"], golden.arrays.get(f"order/{case}"))
        # Two leaves: inner products run over the whole tree.
        stacked = {"a": jnp.asarray(matrix[:, :5]), "b": jnp.asarray(matrix[:, 5:]).reshape(len(matrix), -1, 1)}
        params = jax.tree.map(lambda g: jnp.zeros(g.shape[1:]), stacked)
        updates, _ = tx.update(stacked, tx.init(params), params)
        got = np.concatenate([np.asarray(updates["a"]), np.asarray(updates["b"]).ravel()])
        assert np.abs(got - want).max() <= golden.bound * max(np.abs(want).max(), np.abs(matrix).max()), case


@pytest.mark.slow
@pytest.mark.parametrize("golden", _known(build.STRATEGIES, ("closure",)))
def test_strategy(golden: Golden, x64: None) -> None:
    """Worker w has the losses of seed + 1000 (w + 1); all start alike."""
    start, extra = fixture.params(golden), golden.extra()
    workers = golden.meta["hyper"]["workers"]
    seeds = [{**golden.meta, "seed": golden.meta["seed"] + 1000 * (w + 1)} for w in range(workers)]
    tx = build.STRATEGIES[golden.method](golden.meta["hyper"])
    update = jax.jit(jax.vmap(tx.update, axis_name="replica"))
    x = gk.parallel.replicate(start, workers)
    state = gk.parallel.init_replicas(tx, x)
    worst = 0.0
    for t, first in enumerate(golden.steps):

        def losses(x: dict, t: int = t) -> jax.Array:
            own = [{leaf: value[w] for leaf, value in x.items()} for w in range(workers)]
            apart = [fixture.loss(golden._replace(meta=m), t, mine) for m, mine in zip(seeds, own, strict=True)]
            return jnp.sum(jnp.stack(apart))

        g = jax.grad(losses)(x)
        updates, state = update(g, state, x)
        x = optax.apply_updates(x, updates)
        wanted = [first] + [{leaf: extra[f"worker{w}/t{t + 1}/{leaf}"] for leaf in first} for w in range(1, workers)]
        for w, want in enumerate(wanted):
            worst = max(worst, fixture.error({leaf: value[w] for leaf, value in x.items()}, want, start))
        if f"global/t{t + 1}/bias" in extra and not isinstance(state.start, optax.MaskedNode):
            want = {leaf: extra[f"global/t{t + 1}/{leaf}"] for leaf in first}
            worst = max(worst, fixture.error({leaf: value[0] for leaf, value in state.start.items()}, want, start))
    assert worst < golden.bound


def test_every_file_of_a_card_is_here() -> None:
    """A card that names a trajectory names one that exists, and that is replayed."""
    replayed = {
        **build.TRANSFORMATIONS,
        **build.FIXED,
        **build.PROBLEMS,
        **build.ADAPTERS,
        **build.SOURCES,
        **build.SCHEDULES,
        **build.ANSWERS,
        **build.FUNCTIONS,
        **build.AGGREGATORS,
        **build.STRATEGIES,
    }
    own = {
        f"{path.parent.name}/{path.stem}": path
        for path in (fixture.Path(fixture.__file__).parent / "data").glob("*/*.npz")
    }
    for name, card in gk.catalogue.cards().items():
        for file in card.golden:
            assert file in own, f"{name}: {file}"
            assert fixture.read(own[file]).method in replayed, f"{name}: {file} is not replayed"
