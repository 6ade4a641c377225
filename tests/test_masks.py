"""A mask that selects nothing is an error, in every argument of every method; legitimate masks pass."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.catalogue import Card, cards
from tests.contract.forms import of
from tests.contract.methods import draw

TREE = {"dense": {"bias": (4,), "kernel": (6, 4)}}
by_path, by_rank = gk.leaves.by_path, gk.leaves.by_rank


def masked_arguments(card: Card) -> list[str]:
    return [name for name in inspect.signature(card.function).parameters if name == "mask" or name.endswith("_mask")]


MASKED = [
    pytest.param(card, argument, id=f"{name}-{argument}")
    for name, card in cards().items()
    if card.is_link
    for argument in masked_arguments(card)
]


def build(card: Card, **changes: Any) -> Any:
    kwargs = {**card.example, **changes}
    if card.form == "wrapper":
        inner = gk.scale_by_adam() if card.name == "hyperball" else gk.sgd(0.1)  # which asks for a direction
        return card.function(inner, **kwargs)
    return card.function(0.01, **kwargs) if card.form == "optimizer" else card.function(**kwargs)


def test_every_argument_is_here() -> None:
    """Two kinds of names, and more than a hundred arguments; a new one is tested without being listed."""
    assert len(MASKED) > 60
    assert {p.values[1] for p in MASKED} == {
        "mask",
        "weight_decay_mask",
        "trust_ratio_mask",
        "ascent_mask",
        "corrected_mask",
    }


@pytest.mark.parametrize(("card", "argument"), MASKED)
def test_a_mask_that_selects_nothing_is_refused(card: Card, argument: str) -> None:
    """A misspelled path, with the nearest name; a function and a tree that say False everywhere. The message names the
    argument and what to write instead."""
    params = draw(0, TREE)
    nothing = jax.tree.map(lambda _: False, params)
    for mask, says in (
        (by_path(".*kernal"), "did you mean 'dense/kernel'"),
        (lambda tree: jax.tree.map(lambda _: False, tree), "leaves are 'dense/bias', 'dense/kernel'"),
        (nothing, "leaves are 'dense/bias', 'dense/kernel'"),
        (by_rank(3), "leaves are 'dense/bias', 'dense/kernel'"),
    ):
        with pytest.raises(ValueError, match=f"{argument}=.* selects no leaf.*{says}.*To select none write") as error:
            build(card, **{argument: mask}).init(params)
        if card.form == "optimizer" and argument == "weight_decay_mask":
            assert str(error.value).startswith(f"{card.name}: ")


@pytest.mark.parametrize(("card", "argument"), MASKED)
def test_what_is_no_mask_is_refused_where_a_method_is_built(card: Card, argument: str) -> None:
    """The name of a leaf, a list of names, a number, and a maker of selectors that was not called."""
    for wrong, says in (
        ("bias", r"got 'bias'; write gk\.leaves\.by_path\('\.\*bias\.\*'\)"),
        (["bias"], r"got 'bias' in \['bias'\]; write gk"),
        (0.1, r"got 0\.1"),
        (gk.leaves.no_decay, r"got the function no_decay, which makes one; write gk\.leaves\.no_decay\(\)"),
        (gk.leaves.by_path, r"got the function by_path, which makes one; write gk\.leaves\.by_path\(\.\.\.\)"),
    ):
        with pytest.raises(ValueError, match=f"{argument} must be .*{says}"):
            build(card, **{argument: wrong})


@pytest.mark.parametrize(("card", "argument"), MASKED)
def test_masks_that_say_what_they_mean_pass(card: Card, argument: str) -> None:
    """One leaf, a boolean, the default on a tree without matrices, and any mask of a tree without leaves."""
    params = draw(0, TREE)
    for mask in (by_path(".*kernel"), ~by_path(".*bias"), True, False):
        jax.eval_shape(build(card, **{argument: mask}).init, params)
    vectors = draw(0, {"bias": (4,)})
    # What needs a pair of factors, or a module of matrices to refer to, has no tree of vectors.
    if not (card.name.startswith("lora_pro") or "reference" in inspect.signature(card.function).parameters):
        jax.eval_shape(build(card).init, vectors)
        jax.eval_shape(build(card, **{argument: by_path("no such leaf")}).init, {})


def test_in_groups_a_mask_is_one_for_all_groups() -> None:
    """A group of biases has no kernel, and a mask of kernels is no mistake there; a misspelled one is, in any group."""
    params = draw(0, TREE)
    biases, rest = by_path(".*bias"), gk.sgd(0.1)

    def grouped(mask: Any) -> Any:
        return gk.leaves.groups([(biases, gk.adamw(0.1, weight_decay=0.5, weight_decay_mask=mask))], default=rest)

    where = jax.tree.map(lambda x: x.ndim > 1, params)
    for mask in (by_path(".*kernel"), by_rank(2), lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree), where):
        tx = grouped(mask)
        zero = jax.tree.map(jnp.zeros_like, params)
        updates, _ = tx.update(zero, tx.init(params), params)
        assert not np.asarray(updates["dense"]["bias"]).any()
    with pytest.raises(ValueError, match=r"adamw: weight_decay_mask=.* did you mean 'dense/kernel'"):
        grouped(by_path(".*kernal")).init(params)
    with pytest.raises(ValueError, match="selects no leaf"):
        grouped(jax.tree.map(lambda _: False, params)).init(params)
    # The same through optax, and for the two groups that matrix methods make of their own accord.
    optax.masked(gk.adamw(0.1, weight_decay_mask=by_path(".*kernel")), biases).init(params)
    with pytest.raises(ValueError, match="selects no leaf"):
        optax.masked(gk.adamw(0.1, weight_decay_mask=by_path(".*kernal")), biases).init(params)
    for mask in (by_path(".*kernel"), by_path(".*bias")):
        gk.muon(0.1, adam_learning_rate=0.1, weight_decay_mask=mask).init(params)


def test_names_of_masked_leaves() -> None:
    tree = {"a": optax.MaskedNode(), "b": {"c": jnp.ones(2), "d": None}}
    assert gk.leaves.masked_names(tree) == ["a"] and gk.leaves.names(tree) == ["b/c"]


@of("source", "masks")
def test_sources_refuse_such_a_mask_at_the_first_call(card: Card) -> None:
    if "mask" not in inspect.signature(card.function).parameters:
        return
    source = card.function(lambda x: jnp.sum(x["kernel"]), **{**card.example, "mask": by_path("kernal")})
    with pytest.raises(ValueError, match=f"{card.name}: mask=.* did you mean 'kernel'"):
        source({"kernel": jnp.ones(2)})


def test_a_structure_that_does_not_match_names_the_argument() -> None:
    with pytest.raises(ValueError, match="adamw: weight_decay_mask: its structure does not match"):
        gk.adamw(0.1, weight_decay_mask={"other": True}).init(draw(0, TREE))
    with pytest.raises(ValueError, match=r"weight_decay_mask must be .* every entry is True or False, got 1 in"):
        gk.adamw(0.1, weight_decay_mask={"dense": 1}).init(draw(0, TREE))
