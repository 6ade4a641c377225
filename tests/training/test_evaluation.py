"""Every loop judges a method at the parameters that it means: `gk.eval_params`, in any wrapper and any group."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.leaves import by_path, groups
from gradkit.training import TrainConfig, make_train_step, sweep, train
from gradkit.training.run import Run, first_params, start, step_function
from gradkit.workloads import load
from tests.by_numpy import by_numpy

X = {"a": {"w": jnp.array([1.0, -2.0], jnp.float32)}, "b": jnp.array([[3.0], [4.0]], jnp.float32)}


def mean_of_iterates(tx: optax.GradientTransformation, params: object, steps: int) -> tuple:
    """The parameters and state after some steps with the gradient x, and the mean of all iterates."""
    state, update, path = tx.init(params), by_numpy(tx.update), []
    for _ in range(steps):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return params, state, jax.tree.map(lambda *x: np.mean(np.stack(x), 0), *path)


def test_a_group_is_evaluated_at_its_own_point_and_others_stay() -> None:
    """Leaves that no averaging method was given are masked in its state."""
    average = optax.chain(gk.sgd(0.5), gk.polyak_average())
    tx = groups([(by_path("a/.*"), average)], default=gk.sgd(0.25))
    params, state, mean = mean_of_iterates(tx, X, 3)
    found = gk.eval_params(state, params)
    np.testing.assert_allclose(found["a"]["w"], mean["a"]["w"], rtol=1e-6)  # three roundings of float32
    assert found["b"] is params["b"]
    # A leaf that is a tree by itself, masked or not, is no counter.
    tx = groups([(by_path("x"), average)], default=optax.set_to_zero())
    one = {"x": jnp.float32(2.0), "y": jnp.float32(1.0)}
    params, state, mean = mean_of_iterates(tx, one, 3)
    found = gk.eval_params(state, params)
    np.testing.assert_allclose(found["x"], mean["x"], rtol=1e-6)
    assert found["y"] is params["y"]


def test_two_groups_are_both_evaluated_however_deep() -> None:
    """Also inside one another, in MultiSteps, in a named chain, and kept encoded by `precision`."""
    average = optax.chain(gk.sgd(0.25), gk.polyak_average())
    wrapped = gk.precision(optax.MultiSteps(average, 1, use_grad_mean=False).gradient_transformation(), master=True)
    tx = groups([(by_path("a/.*"), optax.named_chain(("deep", groups([(by_path("a/w"), average)])))),
                 (by_path("b"), wrapped)])  # fmt: skip
    with jax.numpy_dtype_promotion("standard"):  # which MultiSteps asks for
        params, state, mean = mean_of_iterates(tx, X, 3)
    found = gk.eval_params(state, params)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_one_mask_for_a_subtree() -> None:
    tx = optax.masked(optax.chain(gk.sgd(0.5), gk.polyak_average()), {"a": True, "b": False})
    params, state, mean = mean_of_iterates(tx, {"a": X["a"], "b": {"c": X["b"], "d": X["b"]}}, 2)
    found = gk.eval_params(state, params)
    np.testing.assert_allclose(found["a"]["w"], mean["a"]["w"], rtol=1e-6)
    assert found["b"]["c"] is params["b"]["c"] and found["b"]["d"] is params["b"]["d"]


def test_nag_and_schedule_free_of_optax_in_groups() -> None:
    """x = y - 0.9 v for the one, optax's own function for the other."""
    free = optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.9)
    tx = groups([(by_path("a/.*"), gk.nag(0.1)), (by_path("b"), free)])
    params, state, _ = mean_of_iterates(tx, X, 3)
    found = gk.eval_params(state, params)
    alone = mean_of_iterates(free, X["b"], 3)
    np.testing.assert_array_equal(found["b"], optax.contrib.schedule_free_eval_params(alone[1], alone[0]))
    alone = mean_of_iterates(gk.nag(0.1), X["a"], 3)
    np.testing.assert_array_equal(found["a"]["w"], alone[0]["w"] - alone[1][0].shift["w"])


def test_what_cannot_be_evaluated_is_said() -> None:
    both = optax.chain(gk.nag(0.1), gk.polyak_average())
    with pytest.raises(ValueError, match=r"ShiftedParameters and IterateAverage both have .* leaf 'a/w'"):
        gk.eval_params(both.init(X), X)
    for wrapped in (gk.block_leaves(gk.nag(0.1), max_dim=1), gk.weight_normalized(gk.nag(0.1))):
        with pytest.raises(ValueError, match="ShiftedParameters has an evaluation point for other parameters"):
            gk.eval_params(wrapped.init(X), X)


PROBLEM = load("heavytail")
CHAINS = {
    "polyak": lambda rate: optax.chain(gk.sgd(rate), gk.polyak_average()),
    "nag": gk.nag,
    "schedule_free": lambda rate: optax.contrib.schedule_free(optax.sgd(rate), rate),
    "group": lambda rate: groups([(by_path(".*"), optax.chain(gk.sgd(rate), gk.params_ema(0.9)))]),
    "lookahead": lambda rate: optax.chain(gk.sgd(rate), gk.lookahead_in_chain()),
}


def by_hand(tx: optax.GradientTransformation, steps: int) -> tuple[float, float]:
    """The metric where the method means it, and where its parameters are."""
    params = first_params(PROBLEM, np.uint32(0))
    state = start(params, tx, jnp.uint32(0))
    step = jax.jit(lambda run: step_function(PROBLEM, tx)(run)[0])
    for _ in range(steps):
        state = step(state)
    assert isinstance(state, Run)
    return float(PROBLEM.metric(gk.eval_params(state.opt_state, state.params))), float(PROBLEM.metric(state.params))


@pytest.mark.parametrize("name", CHAINS)
def test_every_loop_judges_at_the_evaluation_parameters(name: str, tmp_path: pathlib.Path) -> None:
    want, held = by_hand(CHAINS[name](0.01), 20)
    # Lookahead evaluates where it holds its parameters; for the others the difference is what the test is about.
    assert name == "lookahead" or abs(want - held) > 1e-3
    swept = sweep(PROBLEM, lambda learning_rate, steps: CHAINS[name](learning_rate), [0.01], seeds=1, steps=20)
    # Rounding of 20 steps of sums of 50 products in programs of other shapes: 20 x 50 x 2^-24.
    np.testing.assert_allclose(swept.curves[0, 0, -1], want, rtol=1e-4)
    body = {
        "polyak": "optax.chain(gk.sgd(0.01), gk.polyak_average())",
        "nag": "gk.nag(0.01)",
        "schedule_free": "optax.contrib.schedule_free(optax.sgd(0.01), 0.01)",
        "group": "gk.leaves.groups([(gk.leaves.by_path('.*'), optax.chain(gk.sgd(0.01), gk.params_ema(0.9)))])",
        "lookahead": "optax.chain(gk.sgd(0.01), gk.lookahead_in_chain())",
    }[name]
    file = tmp_path / "chain.py"
    file.write_text(f"import gradkit as gk\nimport optax\nchain = {body}\n")
    (record,) = train(TrainConfig(workload="heavytail", chain=str(file), steps=20, eval_every=20))
    np.testing.assert_allclose(record["metric"], want, rtol=1e-4)


def test_a_training_step_hands_out_the_evaluation_parameters() -> None:
    step = make_train_step(lambda x, batch: jnp.mean((x - batch) ** 2), CHAINS["polyak"](0.25), donate=False)
    state, path = step.init(jnp.zeros(())), []
    for _ in range(3):
        state, _ = step(state, jnp.ones(4))
        path.append(float(state.params))
    np.testing.assert_allclose(step.eval_params(state), np.mean(path), rtol=1e-6)


@pytest.mark.parametrize("tx", [gk.adam(0.1), gk.schedule_free_sgd(0.1), optax.sgd(0.1)], ids=["adam", "free", "optax"])
def test_state_and_parameters_in_the_other_order_are_refused(tx: optax.GradientTransformation) -> None:
    x = {"kernel": jnp.ones(2)}
    state = tx.init(x)
    with pytest.raises(ValueError, match=r"in the other order; write eval_params\(opt_state, params\)"):
        gk.eval_params(x, state)
    assert gk.eval_params(x, x) is x
