"""Extra arguments: one table, which every loop, wrapper and message reads; any chain gets what it asks for."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.catalogue import Card, cards
from gradkit.engine.extras import EXTRAS, Minibatch, offered, samples
from gradkit.training import TrainConfig, make_train_step, sweep, train
from gradkit.training.methods import build
from gradkit.training.one_step import needs_of, updated
from gradkit.training.run import first_params, start, step_function
from gradkit.workloads import load
from tests.contract.methods import METHODS

PACKAGE = pathlib.Path(gk.__file__).parent
PARAMS = {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)}


def names_read(file: pathlib.Path) -> set[str]:
    """The extra arguments that a file reads by name: `extra.get("x")`, `extra["x"]`, `need(method, extra, "x")`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        name = None
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "extra":
            name = node.slice
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("extra.get", "extra.pop") and node.args:
            name = node.args[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "need" and len(node.args) == 3:
            name = node.args[2]
        if isinstance(name, ast.Constant):
            found.add(str(name.value))
    return found


def test_the_table_has_every_argument_that_is_read_or_needed() -> None:
    read = {name for file in PACKAGE.rglob("*.py") for name in names_read(file)}
    assert {"value", "curvature", "grad_moments", "key"} <= read
    assert read - EXTRAS.keys() == set()
    needed = {name for card in cards().values() for name in card.needs}
    assert {name for name in needed if name not in EXTRAS or EXTRAS[name].sample is None} == set()


@pytest.mark.parametrize("card", [c for c in METHODS.values() if c.needs], ids=lambda card: card.name)
def test_what_is_missing_is_named_with_its_link(card: Card) -> None:
    """And given a sample of what the card names, and nothing else, the update is made."""
    tx = optax.with_extra_args_support(build(card, 0.1))
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"(\w+).* needs (the extra argument (\w+)|a random key)") as raised:
        tx.update(PARAMS, state, PARAMS)
    assert any(name in str(raised.value) for name in card.needs)
    updates, _ = jax.eval_shape(lambda g, s: tx.update(g, s, g, **samples(g, card.needs)), PARAMS, state)
    assert updates["kernel"].shape == (4, 3)


def test_a_link_of_optax_that_misses_an_argument_is_named() -> None:
    tx = optax.with_extra_args_support(optax.chain(gk.clip_by_global_norm(1.0), optax.lbfgs()))
    with pytest.raises(
        ValueError, match=r"scale_by_zoom_linesearch needs the extra argument value: .*offered here: key"
    ):
        updated(tx, PARAMS, tx.init(PARAMS), PARAMS, {"key": jax.random.key(0)})


def test_what_a_loop_makes_is_what_the_table_says() -> None:
    """Functions are those of the minibatch; what costs a pass is made on demand only; what has no maker never."""
    batch = np.arange(8, dtype=np.float32)

    def loss(x: jax.Array, batch: jax.Array) -> jax.Array:
        return jnp.mean((x - batch) ** 2)

    x = jnp.float32(1.0)
    value, grads = jax.value_and_grad(loss)(x, batch)
    step = Minibatch(x, batch, loss, value, grads, lambda p: loss(p, batch), jax.grad(lambda p: loss(p, batch)))
    cheap = offered(step)
    assert set(cheap) == {"value", "grad", "value_fn", "obj_fn", "grad_fn", "hvp_fn"}  # no key, no predictions
    assert float(cheap["hvp_fn"](jnp.float32(3.0))) == 6.0 and float(cheap["value_fn"](x, key=None)) == float(value)
    halves = offered(step, ("grads_a", "grads_b", "curvature"))
    assert float(halves["grads_a"]) == 2 * (1 - 3.0) and float(halves["grads_b"]) == 2 * (1 - 4.0)
    assert "curvature" not in halves


TX = {
    "lbfgs": "optax.lbfgs()",
    "chain of lbfgs": "optax.chain(gk.clip_by_global_norm(1.0), optax.lbfgs(memory_size=3))",
    "sam of optax": "optax.contrib.sam(optax.sgd(0.01), optax.sgd(0.05), opaque_mode=True)",
    "sophia of optax": "optax.contrib.sophia(0.01)",
    "momo of optax": "optax.contrib.momo(0.01)",
    "vr_adam in a chain": "optax.chain(gk.clip_by_global_norm(1.0), gk.vr_adam(0.01))",
}


@pytest.mark.parametrize("name", TX)
def test_any_chain_gets_what_it_asks_for_in_every_loop(name: str, tmp_path: pathlib.Path) -> None:
    problem = load("heavytail")
    file = tmp_path / "chain.py"
    file.write_text(f"import gradkit as gk\nimport optax\nchain = {TX[name]}\n")
    tx = eval(TX[name], {"gk": gk, "optax": optax})
    # optax adds numbers of several dtypes.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        (record,) = train(TrainConfig(workload="heavytail", chain=str(file), steps=10, eval_every=10))
        swept = sweep(problem, lambda learning_rate, steps: tx, [1.0], seeds=1, steps=10, eval_every=10)
        run = start(first_params(problem, jnp.uint32(0)), tx, jnp.uint32(0))
        before, step = problem.metric(run.params), jax.jit(step_function(problem, tx))
        for _ in range(10):
            run, _ = step(run)
        after = problem.metric(run.params)
        # The step of `make_train_step` on one fixed minibatch.
        own = make_train_step(problem.loss, tx, donate=False)
        state = own.init(first_params(problem, jnp.uint32(0)), key=jax.random.key(0))
        batch = problem.batch(jax.random.key(1))
        first, _ = own(state, batch)
    assert after != before
    # Steps of a line search multiply rounding errors of programs of different shapes.
    np.testing.assert_allclose([record["metric"], swept.curves[0, 0, 0]], after, rtol=1e-2)
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (first.params, state.params)), strict=True)]
    assert np.isfinite(moved).all() and (max(moved) > 0 or name == "sam of optax")


def test_needs_do_not_ask_for_what_an_optimizer_answers_for() -> None:
    tx = gk.with_curvature(optax.chain(gk.scale_by_sophia(), optax.scale(-0.1)))
    assert "curvature" in needs_of(tx, PARAMS)  # the link asks; the wrapper in front of it answers, from hvp_fn
    step = make_train_step(lambda p, b: jnp.sum(p["kernel"] ** 2 * b), tx, donate=False)
    state, _ = step(step.init(PARAMS, key=jax.random.key(0)), jnp.float32(1.0))
    assert np.isfinite(state.params["kernel"]).all()
