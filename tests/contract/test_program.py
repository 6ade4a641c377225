"""Contract 1, 2 and 9: a method is a pure program: jit, scan and vmap change nothing, nothing is compiled twice, memory
is what the card says. Steps that are compiled one by one, donated and restored are with the meshes, in
tests/parallel/test_shardings.py.

Every point is a plain function of a card, which tests/contract/test_planted.py calls with methods that are wrong.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.catalogue import Card
from tests.by_numpy import by_numpy, op_by_op
from tests.contract.methods import SMALL, as_it_is, close, draw, grads_like, in_float64, make, methods, run, supplied
from tests.contract.shared import STEPS, shared

# Two programs of the same float64 arithmetic differ by a few roundings (2^-53) per operation and step.
F64 = 1e-12


def types(tree: Any) -> Any:
    """What `jit` knows of the leaves; where it changes, the program is compiled again."""
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x), getattr(x, "weak_type", False)), tree)


@pytest.mark.slow
@methods("jit")
@in_float64
def test_jit_equals_eager(card: Card) -> None:
    """One compiled program, and Python that does one operation after the other, compute the same steps."""
    with op_by_op():
        params, state = run(shared(card).tx, draw(0, SMALL, np.float64), steps=STEPS, how=as_it_is)
    compiled, its_state = shared(card).compiled
    close(params, compiled, F64, F64)
    close(state, its_state, F64, F64)


@methods("jit")
def test_a_step_compiles_once(card: Card) -> None:
    """The state comes out with the structure, shapes, dtypes and weak types it went in with, so that the program of the
    first step is that of all: for float32, for bfloat16, and for float64 where that is enabled."""
    for dtype in (np.float32, jnp.bfloat16, np.float64):
        with jax.enable_x64(dtype == np.float64):
            params = draw(0, SMALL, dtype)
            # As `init` makes it outside of a trace: a Python number in it would have a weak type.
            with op_by_op():
                state = shared(card).tx.init(params)
            _, (updates, after) = shared(card).update.program(grads_like(params, 0), state, params)
            assert jax.tree.structure(after) == jax.tree.structure(state)
            assert types(after) == types(state)
            assert types(updates) == types(params)


@pytest.mark.slow
@methods("scan")
@in_float64
def test_scan_equals_loop(card: Card) -> None:
    """A compiled scan over the step leads where NumPy comes with one step after the other."""
    _, params, state = shared(card).reference[-1]
    scanned, its_state = shared(card).compiled
    close(params, scanned, F64, F64)
    close(state, its_state, F64, F64)


@pytest.mark.slow
@methods("vmap")
@in_float64
def test_vmap_over_learning_rates(card: Card) -> None:
    """Each of three rates, in one program, leads where it leads alone."""
    params, rates = draw(0, SMALL, np.float64), np.array([0.003, 0.01, 0.3])
    grads = jax.tree.map(lambda *g: np.stack(g), *[grads_like(params, step) for step in range(STEPS)])

    def one(rate: jax.Array, params: Any, grads: Any) -> Any:
        tx = make(card, rate)

        def step(carry: tuple[Any, Any], g: Any) -> tuple:
            return shared(card).step(*carry, g, tx), None

        return jax.lax.scan(step, (params, tx.init(params)), grads)[0][0]

    many = by_numpy(jax.vmap(one, (0, None, None)))(rates, params, grads)
    alone = {1: shared(card).reference[-1][1], 2: run(make(card, 0.3), params)[0]}
    for i, want in alone.items():
        close(want, jax.tree.map(lambda x, i=i: np.asarray(x)[i], many), F64, F64)


@methods("inject")
def test_injected_hyperparameters_do_not_recompile(card: Card) -> None:
    """Every number in the state, with bfloat16 parameters; a new rate is no new program."""
    params = draw(0, SMALL, jnp.bfloat16)
    tx = gk.inject_hyperparams(lambda learning_rate: make(card, learning_rate))(0.5)
    state, update = by_numpy(tx.init)(params), by_numpy(tx.update)
    update(grads_like(params, 0), state, params)
    state.hyperparams["learning_rate"] = jnp.asarray(0.01, jnp.float32)
    slower, _ = update(grads_like(params, 0), state, params)
    assert len(update.programs) == 1
    fresh, _ = shared(card).update(grads_like(params, 0), shared(card).init(params), params)
    close(fresh, slower, rtol=2**-7)  # one rounding to bfloat16
    assert all(u.dtype == jnp.bfloat16 for u in jax.tree.leaves(slower))


@methods(
    "inject all", lambda card: card.form == "optimizer", "what has no learning rate of its own is injected in a chain"
)
def test_every_hyperparameter_can_be_injected(card: Card) -> None:
    """With all numbers traced, in float32 with bfloat16 parameters, the update is that of the Python numbers."""
    params = draw(0, SMALL, jnp.bfloat16)
    injected = supplied(card, gk.inject_hyperparams(card.function)(0.01, **card.example))
    with op_by_op():
        state = injected.init(params)
    got, _ = by_numpy(injected.update)(grads_like(params, 0), state, params)
    want, _ = shared(card).update(grads_like(params, 0), shared(card).init(params), params)
    close(want, got, rtol=2**-6, atol=2e-8)


@methods("schedule")
@in_float64
def test_schedule_for_the_learning_rate(card: Card) -> None:
    """schedule(0) is the rate of the first update: what the later steps would be at does not change it."""
    params = draw(0, SMALL, np.float64)
    scheduled = run(make(card, lambda step: jnp.where(step == 0, 0.01, 0.5)), params, steps=1)[0]
    close(shared(card).reference[0][1], scheduled, F64, F64)


@methods("abstract")
def test_abstract_init(card: Card) -> None:
    """init works on shapes alone, and agrees with eval_shape and with init on arrays."""
    params, tx = draw(0), shared(card).tx
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    describe = lambda tree: jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)  # noqa: E731
    with op_by_op():
        assert describe(tx.init(params)) == describe(jax.eval_shape(tx.init, params)) == describe(tx.init(shapes))


@methods("words")
def test_state_words_are_those_of_the_card(card: Card) -> None:
    """A matrix has as many words of state per entry as its card says."""
    side = 24 if card.name == "block_leaves" else 256  # whose blocks are of 3 by 3, so that small trees have some
    params = {"kernel": jax.ShapeDtypeStruct((side, side), jnp.float32)}
    state = jax.eval_shape(make(card).init, params)
    words = sum(x.size for x in jax.tree.leaves(state)) / side**2
    inner = {"direction": 2, "optimizer": 1}[card.wraps] if card.form == "wrapper" else 0
    assert abs(words - inner - card.words) < 0.01  # counters and numbers per tensor are not counted
