"""DoG and L-DoG (Ivgi, Hinder, Carmon, 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers import convex
from tests.papers.replay import assert_equal, descend, normal, updates


def by_hand(x: np.ndarray, grads: list, value: float, kind: str, eps: float = 1e-8) -> list[np.ndarray]:
    start, r, G, out = x, 0.0, 0.0, []
    for t, g in enumerate(grads):
        first = {"heuristic": value * (1 + np.linalg.norm(x)), "distance": value, "learning_rate": 0.0}[kind]
        r = first if t == 0 else max(r, np.linalg.norm(x - start))
        G = G + g @ g
        eta = value if t == 0 and kind == "learning_rate" else r / np.sqrt(G + eps)
        out.append(-eta * g)
        x = x - eta * g
    return out


@pytest.mark.parametrize("kind", ["heuristic", "distance", "learning_rate"])
def test_the_three_first_steps(kind: str, x64: None) -> None:
    x, grads = normal(0, 6), [normal(t, 6) for t in range(1, 8)]
    got = updates(gk.dog(init_step=(kind, 0.02)), x, grads)
    assert_equal(got, by_hand(np.asarray(x), [*map(np.asarray, grads)], 0.02, kind))


def test_the_given_first_step_size_is_not_multiplied_by_the_factor(x64: None) -> None:
    x, g = normal(0, 4), normal(1, 4)
    assert_equal(updates(gk.dog(0.5, init_step=("learning_rate", 0.02)), x, [g])[0], -0.02 * g)
    # Of the schedule, its first value.
    schedule = optax.linear_schedule(0.5, 0.1, 4)  # a number of float32
    u = updates(gk.dog(schedule, init_step=("learning_rate", 0.02)), x, [g])[0]
    assert_equal(u, -0.02 * g, rtol=2**-23)


def test_the_trajectory_does_not_know_the_scale_of_the_loss(x64: None) -> None:
    x, curvature = normal(0, 5), jnp.linspace(0.1, 3.0, 5)

    def end(scale: float) -> Any:
        tx = gk.dog(init_step=("heuristic", 1e-3), eps=0.0)
        return descend(tx, x, lambda x: scale * curvature * x, 20)

    assert_equal(end(1.0), end(1000.0), rtol=1e-10)


def test_the_first_step_has_the_length_that_is_said(x64: None) -> None:
    """r_eps |g| / sqrt(|g|^2 + eps), over all leaves together."""
    x, g = {"a": normal(0, 3), "b": normal(1, 2)}, {"a": normal(2, 3), "b": normal(3, 2)}
    (u,) = updates(gk.dog(init_step=("distance", 0.1), eps=0.5), x, [g])
    square = sum(float(v @ v) for v in g.values())
    length = np.sqrt(sum(float(v @ v) for v in u.values()))
    np.testing.assert_allclose(length, 0.1 * np.sqrt(square / (square + 0.5)), rtol=1e-14)


def test_on_one_leaf_both_are_the_same_and_on_two_they_are_not(x64: None) -> None:
    x, grads = normal(0, 6), [normal(t, 6) for t in range(1, 6)]
    one = [{"w": g} for g in grads]
    assert_equal(updates(gk.ldog(), {"w": x}, one), updates(gk.dog(), {"w": x}, one))
    two = {"a": x, "b": 2 * x}
    got = updates(gk.ldog(), two, [{"a": g, "b": g} for g in grads])
    alone = updates(gk.dog(), x, grads)
    assert_equal([u["a"] for u in got], alone)
    assert float(jnp.abs(updates(gk.dog(), two, [{"a": g, "b": g} for g in grads])[0]["a"] - alone[0]).max()) > 0


def test_decay_is_part_of_the_norm(x64: None) -> None:
    x, grads = normal(0, 4), [normal(t, 4) for t in range(1, 5)]
    tx, decayed, plain = gk.dog(weight_decay=0.3), [], []
    state, path = tx.init(x), x
    for g in grads:
        u, state = tx.update(g, state, path)
        decayed.append(g + 0.3 * path)
        plain.append(u)
        path = path + u
    assert_equal(plain, updates(gk.dog(), x, decayed))


def test_the_start_is_a_copy_that_donation_leaves_alone() -> None:
    x = jnp.arange(1.0, 4.0)
    tx = gk.dog(init_step=("heuristic", 0.1))
    step = jax.jit(lambda x, state: tx.update(x, state, x), donate_argnums=(0, 1))
    state = tx.init(x)
    assert all(leaf is not x for leaf in jax.tree.leaves(state))
    _, state = step(x, state)
    assert x.is_deleted()
    assert np.isfinite(np.asarray(step(jnp.arange(1.0, 4.0), state)[0])).all()


def test_a_gradient_of_zeros_is_an_ordinary_one(x64: None) -> None:
    x, g = normal(0, 3), normal(1, 3)
    for tx in (gk.dog(eps=0.0), gk.ldog(eps=0.0)):
        got = updates(tx, x, [0 * x, g, 0 * x])
        assert all(bool(jnp.isfinite(u).all()) for u in got)
        assert_equal(got[0], 0 * x, rtol=0, atol=0)
        assert float(jnp.abs(got[1]).max()) > 0


def test_the_sums_of_bfloat16_parameters_go_on_growing() -> None:
    """A sum of ones in bfloat16 stops at 256."""
    x = jnp.ones(1, jnp.bfloat16)
    for tx in (gk.dog(), gk.ldog()):
        state = tx.init(x)
        update = jax.jit(tx.update)
        for _ in range(300):
            _, state = update(x, state, x)
        total = gk.find(state, "dog/total")
        assert total.dtype == jnp.float32
        assert float(jnp.ravel(total)[0]) == 300


def test_a_scalar_leaf_gets_a_scalar_and_the_chain_descends() -> None:
    """`optax.scale_by_distance_over_gradients` gives a scalar leaf shape (1,), and ascends without a sign."""
    x = {"a": jnp.array(1.0), "b": jnp.ones(2)}
    for tx in (gk.dog(), gk.ldog()):
        u, _ = tx.update(x, tx.init(x), x, value=1.0)
        assert u["a"].shape == () and float(u["a"]) < 0


def test_what_is_wrong_is_named() -> None:
    for bad, said in (
        (("heuristic", 0.0), r"the value of init_step must be in \(0, inf\)"),
        (("relative", 1.0), "the kind of init_step must be one of"),
        (1e-6, "init_step must be a pair of one of"),
    ):
        with pytest.raises(ValueError, match=said):
            gk.dog(init_step=bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="learning_rate must be"):
        gk.dog(0.0)
    with pytest.raises(ValueError, match="needs params"):
        gk.dog().update(jnp.ones(2), gk.dog().init(jnp.ones(2)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logistic", "hinge", "absolute", "squares"])
def test_without_tuning_it_reaches_what_tuned_sgd_reaches(name: str, x64: None) -> None:
    """To one percent the loss of the best of 13 rates, of which more than a third are ten percent or more above it."""
    tuned = convex.tuned(name)
    (free,) = convex.reached(name, lambda _: gk.polynomial_decay_average(gk.dog()))
    assert free <= 1.01 * tuned.min(), (free, tuned)
    assert np.sum(tuned > 1.1 * tuned.min()) > len(tuned) / 3
