"""Leaves that are no arrays of JAX, or of another kind than their gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.catalogue import Card, cards
from gradkit.engine.matching import check_leaves, check_match
from gradkit.leaves import names
from tests.contract.methods import make

CHAINS = {name: card for name, card in cards().items() if card.is_link}


def step(card: Card, t: Any, grad: Any) -> Any:
    """Shapes and dtypes of the state, updates and new state, with these for one leaf and its gradient."""

    def run(w: jax.Array) -> Any:
        tx, params = make(card), {"k": w, "t": t}
        state = tx.init(params)
        return state, *tx.update({"k": w, "t": grad}, state, params)

    return jax.tree.map(lambda x: (x.shape, x.dtype), jax.eval_shape(run, jnp.ones((6, 4))))


@pytest.mark.parametrize(
    "kind",
    [float, np.float32, lambda x: np.array(x, np.float32), np.float64],
    ids=["float", "float32", "array", "float64"],
)
def test_a_number_is_a_leaf(kind: Any) -> None:
    """As optax takes them: a Python float, or a NumPy array or scalar, is the array it stands for. Every method."""
    for name, card in CHAINS.items():
        one = jnp.ones(())
        assert step(card, kind(1), kind(1)) == step(card, one, one), name


def test_numbers_are_updated_as_by_optax() -> None:
    """Eagerly, with `optax.apply_updates`, for some steps."""
    ours, theirs = ({"t": 1.0, "w": np.array([2.0, -1.0], np.float32)} for _ in range(2))
    a, b = gk.adam(0.1), optax.adam(0.1)
    state_a, state_b = a.init(ours), b.init(theirs)
    for _ in range(3):
        u, state_a = a.update({"t": 0.5, "w": ours["w"]}, state_a, ours)
        with jax.numpy_dtype_promotion("standard"):  # optax adds Python's 0.5 to arrays of its own
            v, state_b = b.update({"t": 0.5, "w": theirs["w"]}, state_b, theirs)
        ours: Any = optax.apply_updates(ours, u)
        theirs: Any = optax.apply_updates(theirs, v)
    # optax takes 1 - 0.999^t in float32, at t = 1 off by 6e-5 of it, half of that under the root; three steps of 0.1.
    np.testing.assert_allclose(ours["t"], theirs["t"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours["w"], theirs["w"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("leaf", [1, True, "one", np.array([1])])
def test_what_cannot_be_trained_is_named(leaf: Any) -> None:
    """Integers, booleans and what is no number at all."""
    with pytest.raises(ValueError, match=r"adam: the leaf 'b/c' .*; only floating point leaves can be trained"):
        gk.adam(0.1).init({"a": jnp.ones(2), "b": {"c": leaf}})


def test_a_complex_gradient_of_a_real_parameter_is_refused() -> None:
    """Its imaginary part would be dropped. Every method, the leaf named."""
    for name, card in CHAINS.items():
        if "grads_a" in card.needs:  # the sample of its argument cannot be made of a complex gradient
            continue
        with pytest.raises(ValueError, match=r"'t'.*complex") as error:
            step(card, jnp.ones(()), jnp.ones((), jnp.complex64))
        assert "AttributeError" not in str(error.value), name


def test_a_real_gradient_of_a_complex_parameter() -> None:
    """It is the gradient of a loss that the imaginary part does not enter."""
    x = jnp.array([1.0 + 1.0j])
    updates, _ = gk.sgd(0.5).update(jnp.array([2.0]), gk.sgd(0.5).init(x), x)
    np.testing.assert_array_equal(updates, [-1.0])


def test_checks_read_the_tree_in_front_of_them() -> None:
    """Names are kept by structure, shapes and dtypes are not: a second tree of one structure is checked as well."""
    good, bad = {"a": jnp.ones(2), "b": jnp.ones(3)}, {"a": jnp.ones(2), "b": jnp.ones(4)}
    check_match("f", good, good)
    with pytest.raises(ValueError, match=r"f: the gradient of 'b' has shape \(4,\), the parameter \(3,\)"):
        check_match("f", bad, good)
    check_match("f", good, good)
    check_leaves("f", good, complex_leaves=False)
    with pytest.raises(ValueError, match="f: the leaf 'b' has dtype int32"):
        check_leaves("f", {"a": jnp.ones(2), "b": jnp.ones(3, int)}, complex_leaves=False)
    with pytest.raises(ValueError, match=r"f: .*missing \['b'\], unknown \['c'\]"):
        check_match("f", {"a": jnp.ones(2), "c": jnp.ones(3)}, good)


def test_names_are_a_list_of_their_own() -> None:
    """Who changes the list he got changes nobody else's."""
    names({"a": 1, "b": 2}).append("c")
    assert names({"a": 1, "b": 2}) == ["a", "b"]


@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float16])
def test_links_of_an_optax_chain_keep_their_dtypes(narrow: Any) -> None:
    """A link gives updates back in the dtype they came in, and accumulates in float32."""
    x, g = jnp.array([1.0, 2.0], narrow), jnp.array([1.0, 1.0 / 3.0], narrow)
    links = optax.chain(gk.trace(0.9), gk.scale_by_learning_rate(0.1))
    state: Any = links.init(x)
    updates: Any = links.update(g, state, x)[0]
    assert updates.dtype == narrow
    assert state[0].trace.dtype == jnp.float32
