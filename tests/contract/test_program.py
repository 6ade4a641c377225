"""Contract 1, 2 and 9: a method is a pure program: jit, scan and vmap change nothing, nothing is compiled twice, memory
is what the card says. Donated steps and restored runs are with the meshes, in tests/parallel/test_shardings.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.catalogue import Card
from tests.by_numpy import by_numpy
from tests.contract.methods import SMALL, as_it_is, close, draw, grads_like, make, methods, run, supplied

pytestmark = pytest.mark.slow

# Two programs of the same float64 arithmetic differ by a few roundings (2^-53) per operation and step.
F64 = 1e-12


@methods("jit")
def test_jit_equals_eager_and_compiles_once(card: Card, x64: None) -> None:
    params, tx, traces = draw(0, SMALL, np.float64), make(card), []

    def counted(*args: object) -> object:
        traces.append(1)
        return tx.update(*args)

    eager, eager_state = run(tx, params, steps=2, how=as_it_is)
    jitted, state = run(optax.GradientTransformation(tx.init, counted), params, steps=2, how=jax.jit)
    assert len(traces) == 1
    close(eager, jitted, F64, F64)
    close(eager_state, state, F64, F64)
    # Other tests have it computed by NumPy.
    numbers, its_state = run(tx, params, steps=2)
    close(numbers, jitted, F64, F64)
    close(its_state, state, F64, F64)


@methods("scan")
def test_scan_equals_loop_and_state_is_stable(card: Card, x64: None) -> None:
    params, tx = draw(0, SMALL, np.float64), make(card)
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *[grads_like(params, step) for step in range(3)])

    def step(carry: tuple, g: object) -> tuple:
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (optax.apply_updates(params, updates), state), None

    # scan itself refuses a state whose structure, shapes, dtypes or weak types change.
    (scanned, _), _ = jax.jit(lambda p, s, g: jax.lax.scan(step, (p, s), g))(params, tx.init(params), stacked)
    close(run(tx, params)[0], scanned, F64, F64)


@methods("vmap")
def test_vmap_over_learning_rates(card: Card, x64: None) -> None:
    params, rates = draw(0, SMALL, np.float64), jnp.array([0.003, 0.03, 0.3])
    many = jax.jit(jax.vmap(lambda rate: run(make(card, rate), params, how=as_it_is)[0]))(rates)
    for i in (0, 2):
        alone = run(make(card, float(rates[i])), params)[0]
        close(alone, jax.tree.map(lambda x, i=i: x[i], many), F64, F64)


@methods("inject")
def test_injected_hyperparameters_do_not_recompile(card: Card) -> None:
    """Every number in the state, with bfloat16 parameters; a new rate is no new program."""
    params = draw(0, SMALL, jnp.bfloat16)
    tx = gk.inject_hyperparams(lambda learning_rate: make(card, learning_rate))(0.5)
    update = jax.jit(tx.update)
    state = tx.init(params)
    updates, _ = update(grads_like(params, 0), state, params)
    state.hyperparams["learning_rate"] = jnp.asarray(0.25, jnp.float32)
    halved, _ = update(grads_like(params, 0), state, params)
    assert update._cache_size() == 1
    fresh, _ = by_numpy(make(card, 0.25).update)(grads_like(params, 0), make(card, 0.25).init(params), params)
    close(fresh, halved, rtol=2**-7)  # one rounding to bfloat16
    assert all(u.dtype == jnp.bfloat16 for u in jax.tree.leaves(updates))


@methods("inject")
def test_every_hyperparameter_can_be_injected(card: Card) -> None:
    """With all numbers traced, in float32 with bfloat16 parameters, the update is that of the Python numbers."""
    if card.form != "optimizer":
        return
    params = draw(0, SMALL, jnp.bfloat16)
    injected = supplied(card, gk.inject_hyperparams(card.function)(0.5, **card.example))
    got, _ = by_numpy(injected.update)(grads_like(params, 0), injected.init(params), params)
    want, _ = by_numpy(make(card, 0.5).update)(grads_like(params, 0), make(card, 0.5).init(params), params)
    close(want, got, rtol=2**-6, atol=1e-6)


@methods("schedule")
def test_schedule_for_the_learning_rate(card: Card, x64: None) -> None:
    """schedule(0) is the rate of the first update: a rate of 0 from the second step on stops the run there,
    but for what momentum carries on."""
    params = draw(0, SMALL, np.float64)
    scheduled = run(make(card, lambda step: jnp.where(step == 0, 0.01, 0.5)), params, steps=1)[0]
    close(run(make(card, 0.01), params, steps=1)[0], scheduled, F64, F64)


@methods("abstract")
def test_abstract_init(card: Card) -> None:
    """init works on shapes alone, and agrees with eval_shape and with init on arrays."""
    params, tx = draw(0), make(card)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    describe = lambda tree: jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)  # noqa: E731
    assert describe(tx.init(params)) == describe(jax.eval_shape(tx.init, params)) == describe(tx.init(shapes))


@methods("words")
def test_state_words_are_those_of_the_card(card: Card) -> None:
    params = {"kernel": jax.ShapeDtypeStruct((256, 256), jnp.float32)}
    state = jax.eval_shape(make(card).init, params)
    words = sum(x.size for x in jax.tree.leaves(state)) / 256**2
    inner = {"direction": 2, "optimizer": 1}[card.wraps] if card.form == "wrapper" else 0
    assert abs(words - inner - card.words) < 0.01  # counters and numbers per tensor are not counted
