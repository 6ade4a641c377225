"""The guard: a harmful step leaves no trace, on one device, in scans, over replicas and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradkit as gk
from gradkit.transforms.guard import GuardState
from tests.contract.methods import same

X = {"kernel": np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4), "bias": np.ones(4, np.float32)}


def gradients(seed: int, steps: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [{name: rng.standard_normal(x.shape).astype(np.float32) for name, x in X.items()} for _ in range(steps)]


def broken(g: dict, number: float) -> dict:
    """One entry is no number."""
    kernel = g["kernel"].copy()
    kernel[3, 1] = number
    return {**g, "kernel": kernel}


def run(tx: optax.GradientTransformation, given: list, **extra: object) -> tuple:
    tx = optax.with_extra_args_support(tx)
    update = jax.jit(tx.update)
    params, state = X, tx.init(X)
    for g in given:
        updates, state = update(g, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize(
    "inner",
    [
        gk.adamw(gk.schedules.wsd(0.1, warmup_steps=2), weight_decay=0.1),
        gk.soap(0.1, update_interval=1),
        optax.chain(gk.add_noise(0.1, key=jax.random.key(0)), gk.sgd(0.1, momentum=0.9), gk.polyak_average()),
    ],
    ids=["schedule", "soap", "key and average"],
)
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_skipped_step_leaves_no_trace(inner: optax.GradientTransformation, number: float) -> None:
    """The run is that of the good gradients alone, bit for bit: state, schedule, key, average and parameters."""
    good = gradients(0, 4)
    given = [good[0], broken(good[1], number), good[1], good[2], broken(good[0], -number), good[3]]
    params, state = run(gk.guard(inner), given)
    want, alone = run(gk.guard(inner), good)
    same((params, state.inner), (want, alone.inner))
    assert gk.diagnostics.metrics(state)["skipped_total"] == 2
    same(gk.eval_params(state, params), gk.eval_params(alone, want))


def test_the_loss_and_the_update_are_watched_too() -> None:
    """A loss that is no number; and an update that is none although its gradient is."""
    g = gradients(1, 1)[0]
    params, state = run(gk.guard(gk.sgd(0.1)), [g], value=jnp.float32(np.nan))
    same(params, jax.tree.map(jnp.asarray, X))
    assert float(state.metrics["skipped"]) == 1
    # The logarithm of a negative entry.
    logarithm = optax.stateless(lambda u, p: jax.tree.map(jnp.log, u))
    params, state = run(gk.guard(logarithm), [g, jax.tree.map(np.abs, g)])
    assert float(state.metrics["skipped_total"]) == 1 and float(state.metrics["skipped"]) == 0
    np.testing.assert_allclose(params["bias"], X["bias"] + np.log(np.abs(g["bias"])), rtol=1e-6)


def test_what_is_not_finite_is_never_accepted_and_the_end_of_the_budget_is_said() -> None:
    bad = broken(gradients(2, 1)[0], np.nan)
    for steps, exhausted in ((2, 0.0), (3, 1.0), (7, 1.0)):
        params, state = run(gk.guard(gk.adam(0.1), max_skips=3), [bad] * steps)
        same(params, jax.tree.map(jnp.asarray, X))
        assert float(state.metrics["guard_exhausted"]) == exhausted
        assert float(state.metrics["skipped_in_a_row"]) == steps
    _, state = run(gk.guard(gk.adam(0.1), max_skips=3), [bad] * 5 + gradients(2, 1))
    assert [float(state.metrics[k]) for k in ("guard_exhausted", "skipped_in_a_row", "skipped_total")] == [0, 0, 5]


def by_numpy(norms: np.ndarray, losses: np.ndarray, sigma: float, window: int, budget: int) -> list[bool]:
    """The rule over whole histories."""
    skipped, row = [], 0
    for t in range(len(norms)):
        spike = False
        for series in (norms, losses):
            before = series[max(0, t - window) : t]
            if len(before) >= max(2, window // 2):
                spike |= bool(series[t] - before.mean() > sigma * before.std(ddof=1))
        skip = spike and row < budget
        row = row + 1 if skip else 0
        skipped.append(skip)
    return skipped


def test_spikes_are_those_of_the_rolling_window(x64: None) -> None:
    """Against the rule written out over the history: planted spikes of norm and of loss, a window that has turned over,
    a new level, and a growth that is let through once the budget is spent."""
    rng = np.random.default_rng(0)
    steps, window, sigma, budget = 60, 8, 4.0, 3
    norms, losses = 1 + 0.1 * rng.random(steps), 2 + 0.1 * rng.random(steps)
    norms[[3, 20, 31]] *= 30  # the first before the window knows anything
    losses[26] += 5
    norms[40:] *= 10
    norms[50:56] = 100 * 10.0 ** np.arange(6)  # spikes: three are skipped, one passes, two are skipped
    want = by_numpy(norms, losses, sigma, window, budget)
    assert [t for t in range(steps) if want[t]] == [20, 26, 31, 40, 50, 51, 52, 54, 55]
    tx = gk.guard(optax.sgd(1.0), "spike", sigma=sigma, window_size=window, max_skips=budget)

    def step(carry: tuple, now: tuple) -> tuple:
        x, state = carry
        norm, loss = now
        u, state = tx.update(norm * jnp.array([0.6, 0.8]), state, x, value=loss)
        return (x + u, state), (state.metrics["skipped"], x + u)

    start = jnp.zeros(2)
    _, (skipped, path) = jax.jit(lambda n: jax.lax.scan(step, (start, tx.init(start)), n))((norms, losses))
    assert [bool(s) for s in skipped] == want
    moved = np.cumsum(np.where(want, 0, norms))
    np.testing.assert_allclose(path[:, 0], -0.6 * moved, rtol=1e-12)


def test_constant_numbers_are_no_spikes() -> None:
    """The deviation of equal norms is rounding; the next equal one must not count."""
    g = {name: np.full(x.shape, 0.1, np.float32) for name, x in X.items()}
    _, state = run(gk.guard(gk.sgd(0.1), "spike", window_size=4), [g] * 9, value=jnp.float32(0.3))
    assert float(state.metrics["skipped_total"]) == 0
    _, state = run(gk.guard(gk.sgd(0.1), "spike", window_size=4), [g] * 4 + [{k: 2 * v for k, v in g.items()}])
    assert float(state.metrics["skipped_total"]) == 1


@pytest.mark.parametrize("together", [False, True])
def test_replicas_skip_alone_or_together(together: bool) -> None:
    """Under vmap every member decides for itself; with the name of the axis, all for all."""
    tx = gk.guard(gk.sgd(0.5), axis_name="replica" if together else None)
    x, g = jnp.ones((3, 2)), jnp.ones((3, 2)).at[1, 0].set(jnp.nan)
    state = jax.vmap(tx.init)(x)
    updates, state = jax.vmap(tx.update, axis_name="replica")(g, state, x)
    assert isinstance(state, GuardState)
    assert state.metrics["skipped"].tolist() == ([1, 1, 1] if together else [0, 1, 0])
    assert np.asarray(updates)[:, 0].tolist() == ([0, 0, 0] if together else [-0.5, 0, -0.5])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_all_devices_decide_alike(kind: AxisType) -> None:
    """A number that is none on one device stops the step on all."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    tx = gk.guard(gk.adam(0.1), "spike", window_size=4)
    x = jax.device_put(jnp.ones((8, 2)), rows)
    g = jax.device_put(jnp.ones((8, 2)), rows)
    bad = jax.device_put(jnp.ones((8, 2)).at[5, 1].set(jnp.nan), rows)
    with jax.set_mesh(mesh):
        state = jax.jit(tx.init)(x)
        for each, expected in ((g, 0.0), (bad, 1.0)):
            updates, state = jax.jit(tx.update)(each, state, x)
            assert updates.sharding.is_equivalent_to(rows, 2)
            flags = [float(piece.data) for piece in state.metrics["skipped"].addressable_shards]
            assert flags == [expected] * len(flags) and len(flags) == 8
            assert np.all(np.asarray(updates) == 0) == bool(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on": "spikes"}, "did you mean 'spike'"),
        ({"max_skips": 0}, "max_skips must be an integer >= 1"),
        ({"sigma": 0.0}, r"sigma must be in \(0, inf\)"),
        ({"window_size": 3}, "window_size must be an integer >= 4"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gk.guard(gk.sgd(0.1), **arguments)


def test_clipping_to_zero_is_not_skipping() -> None:
    """What `clip_by_global_norm(nonfinite="zero")` says: with momentum behind it, parameters move; in a guard not."""
    tx = optax.chain(gk.clip_by_global_norm(1.0, nonfinite="zero"), gk.sgd(0.1, momentum=0.9))
    good = gradients(3, 1)[0]
    bad = broken(good, np.nan)
    assert np.abs(run(tx, [good, bad])[0]["bias"] - run(tx, [good])[0]["bias"]).max() > 0
    same(run(gk.guard(tx), [good, bad])[0], run(gk.guard(tx), [good])[0])
