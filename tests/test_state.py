"""What a state is to the world outside: bytes, buffers to donate, and trees whose nodes can be called."""

import dataclasses
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

import gradkit as gk
from gradkit.catalogue import Card, cards
from gradkit.engine.extras import samples
from gradkit.engine.owned import Owned
from tests.contract.methods import METHODS, SMALL, draw, grads_like, make
from tests.contract.test_aggregators import make as make_aggregator
from tests.contract.test_exchanges import make as make_exchange
from tests.contract.test_strategies import make as make_strategy

# What a key is for in methods that do without one by default.
DRAWS = {"precision": {"rounding": "stochastic"}, "sophia": {"estimator": "hutchinson"}}
KEYED = {
    name: {"key": jax.random.key(3), **DRAWS.get(name, {})}
    for name, card in METHODS.items()
    if "key" in inspect.signature(card.function).parameters
}


def every_state() -> dict[str, Any]:
    """Method -> its fresh state on two small leaves."""
    params = draw(0, SMALL)
    states = {name: make(card).init(params) for name, card in METHODS.items()}
    states |= {f"{name}(key)": make(METHODS[name], **own).init(params) for name, own in KEYED.items()}
    states |= {name: make_strategy(card).init(params) for name, card in cards("strategy").items()}
    states |= {name: make_exchange(card).init(params) for name, card in cards("exchange").items()}
    states |= {name: make_aggregator(card).init(params) for name, card in cards("aggregator").items()}
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    wrapped = {kind: gk.precision(gk.adamw(0.1), state=kind) for kind in ("bfloat16", "int8-block")}
    return states | {f"precision({kind})": tx.init(narrow) for kind, tx in wrapped.items()}


@pytest.fixture(scope="module")
def states() -> dict[str, Any]:
    return every_state()


def numbers(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def test_flax_writes_and_reads_the_state_of_every_method(states: dict[str, Any]) -> None:
    """Bit for bit, into a state of other numbers."""
    for name, state in states.items():
        rng = np.random.default_rng(0)

        def other(x: Any, rng: np.random.Generator = rng) -> Any:
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                return jax.random.clone(x)
            return jnp.asarray(rng.integers(0, 100, x.shape)).astype(x.dtype)

        moved = jax.tree.map(other, state)
        read = serialization.from_bytes(state, serialization.to_bytes(moved))
        assert jax.tree.structure(read) == jax.tree.structure(state), name
        for got, want in zip(jax.tree.leaves(read), jax.tree.leaves(moved), strict=True):
            assert got.dtype == want.dtype, name
            np.testing.assert_array_equal(numbers(got), numbers(want), err_msg=name)


def test_a_run_goes_on_from_bytes() -> None:
    """Of a method whose state is with the owners of matrices, and one with a random key: the updates are the same."""
    params = draw(0, SMALL)
    for tx in (gk.soap(0.1), gk.noisy_sgd(0.1, key=jax.random.key(1))):
        state = tx.init(params)
        for step in range(2):
            _, state = tx.update(grads_like(params, step), state, params)
        read = serialization.from_bytes(tx.init(params), serialization.to_bytes(state))
        want, got = (tx.update(grads_like(params, 2), s, params)[0] for s in (state, read))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(a, b)


def test_rows_in_another_order_are_refused() -> None:
    """As another mesh would have them: read in place they would be another matrix's state."""
    here, there = (Owned(jnp.zeros((2, 3)), (), rows) for rows in (("a[0,0]", "b[0,0]"), ("b[0,0]", "a[0,0]")))
    with pytest.raises(ValueError, match="moves no rows"):
        serialization.from_bytes(here, serialization.to_bytes(there))


def buffers(tree: Any) -> list[int]:
    """Where every array of a tree is, of those that hold anything."""
    arrays = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(tree)
    ]
    return [x.unsafe_buffer_pointer() for x in arrays if isinstance(x, jax.Array) and x.size]


def test_no_two_leaves_of_a_fresh_state_are_one_buffer(states: dict[str, Any]) -> None:
    for name, state in states.items():
        found = buffers(state)
        assert len(set(found)) == len(found), name


def test_no_leaf_of_a_fresh_state_is_the_callers() -> None:
    """Neither a parameter nor the learning rate, which donation of the state would delete."""
    params, rate = draw(0, SMALL), jnp.asarray(0.01, jnp.float32)
    for name, card in METHODS.items():
        state = make(card, rate).init(params)
        assert not set(buffers(state)) & set(buffers((params, rate))), name


@pytest.mark.parametrize("name", ["egn", "oasis", "adam", "soap"])
def test_a_fresh_state_can_be_donated(name: str) -> None:
    """Also what the program does not read."""
    params = draw(0, SMALL)
    state = make(METHODS[name]).init(params)
    touch = jax.jit(lambda s: jax.tree.map(lambda x: x + x, s), donate_argnums=0, keep_unused=True)
    jax.block_until_ready(touch(state))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Net:
    """A model that is its own tree of parameters, as in Equinox: calling it is no way to read it."""

    bias: Any
    kernel: Any

    def __call__(self, *args: Any) -> Any:
        raise AssertionError("a tree was called")


def as_net(tree: dict[str, Any]) -> Any:
    return Net(tree["bias"], tree["kernel"])


@pytest.mark.parametrize("card", [pytest.param(card, id=name) for name, card in METHODS.items()])
def test_parameters_that_can_be_called_are_never_called(card: Card) -> None:
    """Parameters, gradients, and every argument that is a tree like them."""
    params = draw(0, SMALL)
    net = as_net(params)
    example = {
        k: as_net(v) if isinstance(v, dict) and v.keys() == params.keys() else v for k, v in card.example.items()
    }
    tx = make(card, **example)

    def step(x: Any, g: Any) -> Any:
        extra = {} if card.needs else samples(g, ("curvature",))
        return tx.update(g, tx.init(x), x, **extra)

    updates, _ = jax.eval_shape(step, net, net)
    assert isinstance(updates, Net)


def test_curvature_that_can_be_called_is_a_tree() -> None:
    """The numbers are those of the same tree as a dictionary; a function is still called."""
    x, g, h = draw(0, SMALL), draw(1, SMALL), jax.tree.map(jnp.abs, draw(2, SMALL))
    for tx in (gk.sophia_g(0.1), gk.adahessian(0.1), gk.oasis(0.1, adaptive=False)):
        want = tx.update(g, tx.init(x), x, curvature=h)[0]
        got = tx.update(as_net(g), tx.init(as_net(x)), as_net(x), curvature=as_net(h))[0]
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(a, b)
    tx = gk.sophia_g(0.1)
    partial: Any = jax.tree_util.Partial(lambda h: h, h)
    want, *got = (tx.update(g, tx.init(x), x, curvature=c)[0] for c in (h, lambda: h, partial))
    for one in got:
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(a, b)
    boxed: Any = jax.tree_util.Partial(abs, x)  # parameters that are a Partial
    state = tx.init(boxed)
    tx.update(boxed, state, boxed, curvature=jax.tree.map(jnp.abs, boxed))


def test_masks_and_labels_that_can_be_called_are_trees() -> None:
    x = as_net(draw(0, SMALL))
    mask = Net(False, True)
    tx: Any = gk.add_decayed_weights(1.0, weight_decay_mask=mask)
    u, _ = tx.update(jax.tree.map(jnp.zeros_like, x), tx.init(x), x)
    assert not np.asarray(u.bias).any() and np.asarray(u.kernel).all()
    state: Any = gk.scale_by_agvm(labels=Net("head", "body"), reference="body").init(x)
    assert set(state.factors) == {"head", "body"}


LONG = {(1_000_000,): 16, (1_000_000, 1): 16, (1_000_000, 2): 80, (50_000, 8): 80}


@pytest.mark.parametrize("shape", LONG)
def test_no_state_explodes_on_a_long_axis(shape: tuple[int, ...]) -> None:
    """Words per parameter of vectors and thin matrices: a quadratic statistic of a long axis, or of all its blocks,
    would be thousands."""
    for name, card in METHODS.items():
        # The first keeps a window of 100 gradients; the others ask for a module of matrices or for small vectors, or
        # cut into blocks of 2.
        if name in ("grokfast_ma", "agvm", "agvm_adamw", "project_out_history", "block_leaves"):
            continue
        state = jax.eval_shape(make(card).init, {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)})
        words = sum(math.prod(x.shape) for x in jax.tree.leaves(state)) / math.prod(shape)
        assert words <= LONG[shape], name
