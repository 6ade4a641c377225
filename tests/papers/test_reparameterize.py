"""Other coordinates inside a chain: the form of weight normalization (Salimans, Kingma, 2016)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, descend, normal

log = lambda w: jax.tree.map(jnp.log, w)  # noqa: E731
exp = lambda z: jax.tree.map(jnp.exp, z)  # noqa: E731


def test_the_trajectory_is_that_of_the_inner_method_in_its_own_coordinates(x64: None) -> None:
    a = normal(1, 4)
    loss = lambda w: jnp.sum((w - a) ** 4)  # noqa: E731
    z = normal(0, 4)
    inner = gk.adam(0.05)
    want = descend(inner, z, jax.grad(lambda z: loss(jnp.exp(z))), 6)
    got = descend(gk.reparameterize(inner, log, exp), jnp.exp(z), jax.grad(loss), 6)
    assert_equal(jnp.stack(got), jnp.exp(jnp.stack(want)), rtol=1e-11)


def test_no_change_of_coordinates_changes_nothing(x64: None) -> None:
    same = lambda x: x  # noqa: E731
    w, a = {"b": normal(0, 3), "w": normal(1, 2, 3)}, normal(2, 2, 3)
    gradient = jax.grad(lambda w: jnp.sum((w["w"] - a) ** 4) + jnp.sum(w["b"] ** 2))
    got = descend(gk.reparameterize(gk.adamw(0.1), same, same), w, gradient, 5)
    assert_equal(got, descend(gk.adamw(0.1), w, gradient, 5), rtol=1e-11)


def test_functions_of_the_parameters_are_handed_on_as_functions_of_the_latent_ones(x64: None) -> None:
    seen: dict[str, Any] = {}

    def spy(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        v = jnp.ones_like(params)
        seen.update(at=extra["value_fn"](params), slope=extra["grad_fn"](params), bend=extra["hvp_fn"](v))
        seen["names"] = sorted(extra)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), spy)
    tx = gk.reparameterize(inner, log, exp)
    z = normal(0, 3)
    w, loss = jnp.exp(z), lambda w: jnp.sum(w**3)
    tx.update(
        jax.grad(loss)(w), tx.init(w), w, value_fn=loss, grad_fn=jax.grad(loss), hvp_fn=lambda v: v, previous_grads=w
    )
    # The loss is sum exp(3 z): its derivatives are 3 and 9 times its terms.
    assert_equal(seen["at"], jnp.sum(jnp.exp(3 * z)))
    assert_equal(seen["slope"], 3 * jnp.exp(3 * z))
    assert_equal(seen["bend"], 9 * jnp.exp(3 * z))
    assert seen["names"] == ["grad_fn", "hvp_fn", "value_fn"]


@pytest.mark.parametrize("resync", [None, 0.01])
def test_changes_made_elsewhere_are_undone_or_taken_over(resync: float | None, x64: None) -> None:
    tx, w = gk.reparameterize(optax.sgd(0.0), log, exp, resync=resync), jnp.array([1.0, 2.0])
    state = tx.init(w)
    u, _ = tx.update(w, state, 1.001 * w)  # within the tolerance: back to where it was
    assert_equal(1.001 * w + u, w)
    u, _ = tx.update(w, state, 3 * w)
    assert_equal(3 * w + u, w if resync is None else 3 * w)


def test_rounded_parameters_follow_unrounded_ones() -> None:
    """Steps too small for bfloat16 add up in the latent parameters: after 400 steps of 2^-11 the parameter has moved
    by 400 * 2^-11, to one rounding of it (2^-8 of 1.2)."""
    same = lambda x: x  # noqa: E731
    tx, w = gk.reparameterize(optax.sgd(1.0), same, same), jnp.ones(2, jnp.bfloat16)

    def step(carry: Any, _: None) -> Any:
        w, state = carry
        u, state = tx.update(jnp.full_like(w, -(2.0**-11)), state, w)
        return (optax.apply_updates(w, u), state), None

    (w, _), _ = jax.jit(lambda w: jax.lax.scan(step, (w, tx.init(w)), None, 400))(w)
    np.testing.assert_allclose(np.asarray(w, np.float64), 1 + 400 * 2**-11, rtol=2**-8)


def test_bad_input() -> None:
    same = lambda x: x  # noqa: E731
    with pytest.raises(ValueError, match="encode must be callable"):
        gk.reparameterize(optax.sgd(1.0), None, same)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="resync must be in"):
        gk.reparameterize(optax.sgd(1.0), same, same, resync=0.0)
    with pytest.raises(ValueError, match=r"decode\(encode\(params\)\) has leaves of shapes"):
        gk.reparameterize(optax.sgd(1.0), same, lambda z: z[:1]).init(jnp.ones(3))
