"""Running statistics of a model follow the parameters that a method evaluates."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import gradkit as gk
from gradkit.training import TrainConfig, make_train_step, statistics_at, sweep, train
from gradkit.training.inspection import inspect

pytestmark = pytest.mark.slow

rng = np.random.default_rng(0)
X = jnp.asarray(rng.standard_normal((64, 3)) * [1.0, 3.0, 0.3] + [1.0, 0.0, -2.0], jnp.float32)
Y = jnp.asarray(rng.standard_normal(64), jnp.float32)


class Net(nn.Module):
    """A linear layer, BatchNorm, and a sum of its tanh."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        h = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(nn.Dense(4, name="dense")(x))
        return jnp.sum(jnp.tanh(h), axis=-1)


NET = Net()
VARIABLES = NET.init(jax.random.key(0), X[:2], train=False)
PARAMS, STATE = VARIABLES["params"], VARIABLES["batch_stats"]


def loss(params: Any, state: Any, batch: Any) -> tuple[jax.Array, Any]:
    x, y = batch
    out, new = NET.apply({"params": params, "batch_stats": state}, x, train=True, mutable=["batch_stats"])
    return jnp.mean(jnp.square(out - y)), new["batch_stats"]


def moments(params: Any, batches: Any) -> dict[str, np.ndarray]:
    """The mean moments over batches of what comes out of the first layer."""
    kernel, bias = (np.asarray(params["dense"][name], np.float64) for name in ("kernel", "bias"))
    hidden = [np.asarray(x, np.float64) @ kernel + bias for x, _ in batches]
    return {"mean": np.mean([h.mean(0) for h in hidden], 0), "var": np.mean([h.var(0) for h in hidden], 0)}


def near(got: Any, want: dict[str, np.ndarray]) -> None:
    # Moments of 64 numbers below 30, of which 1 - m = 0.1 is taken and given back: a float32 rounding of each.
    for name, x in want.items():
        np.testing.assert_allclose(got["norm"][name], x, rtol=2e-5, atol=30 * 10 * 2**-24)


def schedule_free() -> optax.GradientTransformation:
    return optax.contrib.schedule_free(optax.sgd(0.3), learning_rate=0.3, b1=0.9)


@pytest.mark.parametrize("make", [schedule_free, lambda: optax.chain(gk.sgd(0.3), gk.polyak_average())])
def test_a_step_offers_the_statistics_of_the_evaluation_parameters(make: Any) -> None:
    """After some steps the running moments are of parameters that were left behind; over given batches they are not."""
    step = make_train_step(loss, make(), donate=False)
    state = step.init(PARAMS, model_state=STATE)
    for _ in range(4):
        state, _ = step(state, (X, Y))
    batches = [(X[:32], Y[:32]), (X[32:], Y[32:])]
    point = step.eval_params(state)
    want, trained = moments(point, batches), moments(state.params, batches)
    near(step.eval_model_state(state, batches), want)
    # A hundred times what `near` allows.
    assert np.abs(want["mean"] - trained["mean"]).max() > 5e-3
    assert step.eval_model_state(state, ()) is state.model_state
    with pytest.raises(ValueError, match=r"running statistics.*got no batches.*step\.model\(state, batches\)"):
        step.eval_model_state(state)


def test_a_method_that_evaluates_where_it_trains_needs_no_batches() -> None:
    step = make_train_step(loss, gk.sgd(0.1), donate=False)
    state, _ = step(step.init(PARAMS, model_state=STATE), (X, Y))
    assert step.eval_model_state(state) is state.model_state is step.eval_model_state(state, [(X, Y)])


def test_an_nnx_model_for_evaluation_has_them() -> None:
    class Module(nnx.Module):
        def __init__(self) -> None:
            self.dense = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
            self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=nnx.Rngs(1))
            self.drop = nnx.Dropout(0.1, rngs=nnx.Rngs(2))

        def __call__(self, x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.tanh(self.drop(self.norm(self.dense(x)))), axis=-1)

    def nnx_loss(model: Any, batch: Any) -> jax.Array:
        return jnp.mean(jnp.square(model(batch[0]) - batch[1]))

    step = make_train_step(nnx_loss, optax.chain(gk.sgd(0.3), gk.polyak_average()), donate=False)
    state = step.init(Module())
    for _ in range(3):
        state, _ = step(state, (X, Y))
    model = step.model(state, [(X, Y)])
    point = {"dense": {"kernel": model.dense.kernel[...], "bias": model.dense.bias[...]}}
    near({"norm": {"mean": model.norm.mean[...], "var": model.norm.var[...]}}, moments(point, [(X, Y)]))
    counts = [m.drop.rngs.count[...] for m in (model, step.model(state, ()))]
    assert counts[0] == counts[1] == 3
    with pytest.raises(ValueError, match="running statistics"):
        step.model(state)


def test_what_is_no_running_moment_stays() -> None:
    """Constants, counters, keys and the vector of a power iteration; two layers may have two momenta."""

    def apply(state: dict, x: jax.Array) -> dict:
        u = x.T @ (x @ state["u"])
        return {
            "slow": 0.99 * state["slow"] + 0.01 * x.mean(0),
            "fast": 0.5 * state["fast"] + 0.5 * x.var(0),
            "fresh": x.max(0),
            "u": u / jnp.linalg.norm(u),
            "table": state["table"],
            "n": state["n"] + 1,
            "key": jax.random.split(state["key"])[0],
            "none": state["none"],
        }

    state = {
        "slow": jnp.full(3, 1e3),
        "fast": jnp.full(3, 1e3),
        "fresh": jnp.zeros(3),
        "u": jnp.array([0.6, 0.8, 0.0]),
        "table": jnp.array([0.0, 5.0]),
        "n": jnp.array(3),
        "key": jax.random.key(1),
        "none": jnp.zeros((0,)),
    }
    batches = [X[:32], X[32:]]
    found = statistics_at(apply, state, batches)
    parts = [np.asarray(x, np.float64) for x in batches]
    # Of 1 - m = 0.01 the difference of two float32 numbers near 1 keeps 1e-7 / 0.01.
    np.testing.assert_allclose(found["slow"], np.mean([x.mean(0) for x in parts], 0), rtol=5e-5, atol=1e-5)
    np.testing.assert_allclose(found["fast"], np.mean([x.var(0) for x in parts], 0), rtol=1e-5)
    np.testing.assert_allclose(found["fresh"], np.mean([x.max(0) for x in parts], 0), rtol=1e-6)
    for name in ("u", "table", "n", "none"):
        np.testing.assert_array_equal(found[name], state[name])
    assert bool((jax.random.key_data(found["key"]) == jax.random.key_data(state["key"])).all())
    with pytest.raises(ValueError, match="batches must hold one batch or more"):
        statistics_at(apply, state, [])


def metric(params: Any, state: Any) -> jax.Array:
    out = NET.apply({"params": params, "batch_stats": state}, X, train=False)
    return jnp.mean(jnp.square(out - Y))


def problem() -> gk.workloads.Workload:
    """A batch of all examples, so that the moments over minibatches are those of the data."""
    return gk.workloads.problem(
        PARAMS,
        loss,
        lambda key: (X, Y),
        metric,
        0.1,
        batch_size=64,
        steps=6,
        eval_every=3,
        model_state=STATE,
        name="norm",
    )


def by_hand(tx: optax.GradientTransformation, steps: int) -> tuple[float, float]:
    """The metric at the evaluation parameters with their own moments, and with those that the steps left behind."""

    @jax.jit
    def step(params: Any, opt_state: Any, state: Any) -> Any:
        g, state = jax.grad(loss, has_aux=True)(params, state, (X, Y))
        updates, opt_state = tx.update(g, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, state

    params, opt_state, state = PARAMS, tx.init(PARAMS), STATE
    for _ in range(steps):
        params, opt_state, state = step(params, opt_state, state)
    point = gk.eval_params(opt_state, params)
    own = {"norm": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), moments(point, [(X, Y)]))}
    return float(metric(point, own)), float(metric(point, state))


@pytest.mark.parametrize("name", ["schedule_free", "polyak"])
def test_every_loop_evaluates_with_the_statistics_of_the_evaluation_parameters(name: str, tmp_path: Any) -> None:
    """`train` and `sweep`; a run from a checkpoint goes on with the model's state."""
    lines = {
        "schedule_free": "optax.contrib.schedule_free(optax.sgd(0.3), learning_rate=0.3, b1=0.9)",
        "polyak": "optax.chain(gk.sgd(0.3), gk.polyak_average())",
    }
    file = tmp_path / "chain.py"
    file.write_text(f"import gradkit as gk, optax\nchain = {lines[name]}\n")
    tx = eval(lines[name], {"gk": gk, "optax": optax})
    want, wrong = by_hand(tx, 6)
    folder = str(tmp_path / "run")
    mine = TrainConfig(problem(), chain=str(file), checkpoint_dir=folder)  # pyright: ignore[reportArgumentType]
    records = list(train(mine))
    curves = sweep(problem(), lambda learning_rate: tx, [1.0], seeds=1).curves
    # A mean of 64 squares of sums of float32, through 6 steps.
    np.testing.assert_allclose([records[-1]["metric"], curves[0, 0, -1]], want, rtol=1e-4)
    assert abs(want - wrong) > 1e-2 * want
    longer = TrainConfig(problem(), chain=str(file), checkpoint_dir=folder, steps=9)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose([record["metric"] for record in train(longer)], by_hand(tx, 9)[0], rtol=1e-4)


def test_a_plain_method_is_evaluated_with_its_running_statistics_and_can_be_inspected() -> None:
    (_, last) = train(TrainConfig(problem(), method="sgd", learning_rate=0.1))  # pyright: ignore[reportArgumentType]
    _, running = by_hand(gk.training.methods.find("sgd").scheduled(0.1, 6), 6)
    np.testing.assert_allclose(last["metric"], running, rtol=1e-4)
    assert inspect("adamw", problem(), mesh="data=1").state_bytes > 0
