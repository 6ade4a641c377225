"""Multipliers of the learning rate and of weight decay for groups of parameters."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.leaves import by_path, groups
from tests.papers.replay import normal

X = {"head": {"kernel": normal(0, 4, 3)}, "dense": {"kernel": normal(1, 4, 4), "bias": normal(2, 4)}}
G = {"head": {"kernel": normal(3, 4, 3)}, "dense": {"kernel": normal(4, 4, 4), "bias": normal(5, 4)}}


def step(tx: Any) -> Any:
    return tx.update(G, tx.init(X), X)[0]


def test_a_rate_multiplies_the_update_and_a_decay_the_coefficient(x64: None) -> None:
    tx = groups(
        [
            (by_path("head/.*"), {"rate": 10.0}),
            (by_path(".*/bias"), {"decay": 0}),
            (by_path("dense/.*"), gk.adamw(0.1), {"decay": 2.0}),
        ],
        default=gk.adamw(0.1, weight_decay=0.5),
    )
    got = step(tx)
    np.testing.assert_allclose(got["head"]["kernel"], 10 * step(gk.adamw(0.1, weight_decay=0.5))["head"]["kernel"])
    np.testing.assert_allclose(got["dense"]["bias"], step(gk.adamw(0.1, weight_decay=0.0))["dense"]["bias"])
    default = inspect.signature(gk.adamw).parameters["weight_decay"].default
    twice = step(gk.adamw(0.1, weight_decay=2 * default))
    np.testing.assert_allclose(got["dense"]["kernel"], twice["dense"]["kernel"], rtol=1e-12)


DECAYED = sorted(
    name
    for name, card in gk.catalogue.cards().items()
    if card.form == "optimizer" and "weight_decay" in inspect.signature(card.function).parameters and not card.needs
)


# The others have the same link; these decay in a way of their own.
QUICK = ("adamw", "lars", "novograd", "adamp", "innaprop", "ranger21", "xgrad_adamw")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in DECAYED])
def test_every_optimizer_knows_the_multiplier_of_its_decay(name: str) -> None:
    """Half of 0.2 is 0.1: of the same program, to one rounding of the product."""
    card = gk.catalogue.cards()[name]
    x = jax.tree.map(lambda a: a.astype(jnp.float32), {"dense": X["dense"]})
    g = jax.tree.map(lambda a: a.astype(jnp.float32), {"dense": G["dense"]})

    def run(tx: Any) -> Any:
        state = tx.init(x)
        for _ in range(2):
            updates, state = tx.update(g, state, x)
        return updates

    def made(weight_decay: float) -> Any:
        return card.function(**{"learning_rate": 0.1, **card.example, "weight_decay": weight_decay})

    half = run(groups([(gk.leaves.everything(), made(0.2), {"decay": 0.5})]))
    want, other = run(made(0.1)), run(made(0.2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), half, want)
    moved = max(
        float(jnp.max(jnp.abs(a - b))) for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(other), strict=True)
    )
    assert moved > 1e-5


def test_traced_multipliers(x64: None) -> None:
    def run(factor: Any) -> Any:
        tx = groups([(by_path("head/.*"), {"rate": factor, "decay": factor})], default=gk.adamw(0.1, weight_decay=0.5))
        return step(tx)["head"]["kernel"]

    np.testing.assert_allclose(jax.vmap(run)(jnp.array([0.5, 2.0]))[1], run(2.0), rtol=1e-12)


def test_describe_shows_them() -> None:
    tx = groups([(by_path("head/.*"), {"rate": 10.0, "decay": 0.5})], default=gk.adamw(0.1, weight_decay=0.5))
    rows = {row.name: row for row in gk.leaves.describe(tx, X).rows}
    assert (rows["head/kernel"].method, rows["head/kernel"].rate, rows["head/kernel"].decay) == (
        "scaled(adamw)",
        "10 * 0.1",
        "0.25",
    )
    assert rows["dense/kernel"].rate == "0.1"


def test_what_is_refused() -> None:
    for rule in (
        (by_path("head/.*"), {"lr": 1.0}),
        (by_path("head/.*"),),
        ("head", gk.sgd(0.1)),
        (by_path("head/.*"), gk.sgd(0.1), gk.sgd(0.1)),
    ):
        with pytest.raises(ValueError, match=r"rules must be pairs .* triples"):
            groups([rule], default=gk.sgd(0.1))
    with pytest.raises(ValueError, match=r"multiplies the default, and there is none: write default="):
        groups([(by_path("head/.*"), {"rate": 1.0})])
    with pytest.raises(ValueError, match=r"rate must be in \[0, inf\)"):
        groups([(by_path("head/.*"), {"rate": -1.0})], default=gk.sgd(0.1))
    with pytest.raises(ValueError, match=r"multiplies a weight decay, and its transformation has none that is known"):
        groups([(by_path("head/.*"), {"decay": 0.5})], default=optax.adamw(0.1)).init(X)
