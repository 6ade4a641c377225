"""LookSAM (Liu et al., 2022)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal

CURVATURE = {"a": np.array([0.5, 1.0, 3.0]), "b": np.array([2.0, 0.1])}
POINTS = [{"a": np.array([1.0, -2.0, 0.5]) * c, "b": np.array([0.3, 4.0 - c])} for c in (1.0, 0.7, 0.4, 0.2)]


def loss(x: Any) -> Any:
    return sum(jnp.sum(jnp.asarray(CURVATURE[k]) * x[k] ** 2) / 2 for k in x)


def flat(x: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x["a"]), np.asarray(x["b"])])


def results(source: Any) -> list[np.ndarray]:
    """The gradients at the points, one call after another."""
    state, out = source.init(POINTS[0]), []
    for x in POINTS:
        _, g, state = source.value_and_grad(state, {k: jnp.asarray(v) for k, v in x.items()})
        out.append(flat(g))
    return out


def test_in_every_step_it_is_sam(x64: None) -> None:
    want = [flat(gk.gradients.sam(loss, 0.4)({k: jnp.asarray(v) for k, v in x.items()})[1]) for x in POINTS]
    for got, sam in zip(results(gk.gradients.looksam(loss, 0.4, update_interval=1)), want, strict=True):
        assert_equal(got, sam)


def test_in_between_it_adds_what_was_across_as_long_as_the_gradient(x64: None) -> None:
    """By NumPy, over all leaves; steps 0 and 2 are those of SAM."""
    h, kept = flat(CURVATURE), np.zeros(5)
    found = results(gk.gradients.looksam(loss, 0.4, alpha=0.7, update_interval=2))
    for t, (got, x) in enumerate(zip(found, POINTS, strict=True)):
        g = h * flat(x)
        p = h * (flat(x) + 0.4 * g / np.linalg.norm(g))
        if t % 2 == 0:
            kept = p - p @ g / (g @ g) * g
            assert abs(kept @ g) < 1e-10 * np.linalg.norm(kept) * np.linalg.norm(g)
            assert_equal(got, p, rtol=1e-10)
        else:
            added = 0.7 * np.linalg.norm(g) / np.linalg.norm(kept) * kept
            assert_equal(np.linalg.norm(added), 0.7 * np.linalg.norm(g))
            assert_equal(got, g + added, rtol=1e-9)


def test_without_the_part_across_idle_steps_are_plain(x64: None) -> None:
    for got, x in zip(
        results(gk.gradients.looksam(loss, 0.4, alpha=0.0, update_interval=10))[1:], POINTS[1:], strict=True
    ):
        assert_equal(got, flat(CURVATURE) * flat(x))


def test_at_a_minimum_it_is_zero() -> None:
    x = {"a": jnp.zeros(3), "b": jnp.zeros(2)}
    source = gk.gradients.looksam(loss, 0.4)
    state = source.init(x)
    for _ in range(2):
        _, g, state = source.value_and_grad(state, x)
        assert (flat(g) == 0).all()


def test_value_and_aux_are_those_of_the_parameters(x64: None) -> None:
    source = gk.gradients.looksam(lambda x: (loss(x), x["a"]), 0.4, has_aux=True)
    x = {k: jnp.asarray(v) for k, v in POINTS[0].items()}
    (value, aux), _, _ = source.value_and_grad(source.init(x), x)
    assert_equal((value, aux), (loss(x), x["a"]))


def test_an_idle_step_takes_one_gradient() -> None:
    """The second gradient is in the branch of a condition, which no other step enters."""
    source = gk.gradients.looksam(lambda x: jnp.sum(jnp.sin(x)), 0.1)
    x = jnp.ones(3)
    jaxpr = jax.make_jaxpr(source.value_and_grad)(source.init(x), x)
    assert str(jaxpr).count(" cond[") == 1
    assert sum(str(e.primitive) == "cos" for e in jaxpr.eqns) == 1


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="update_interval must be"):
        gk.gradients.looksam(loss, update_interval=0)
    with pytest.raises(ValueError, match="alpha must be"):
        gk.gradients.looksam(loss, alpha=-1.0)
