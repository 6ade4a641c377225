"""Extra-gradient and its single-call forms (Hsieh et al., 2019)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.optimizers.games.extra_gradient import (
    extra_gradient,
    optimistic_gradient,
    past_extra_gradient,
    reflected_gradient,
)

GAME = {"x": False, "y": True}
# Some hundred operations on numbers of size 1, in float64.
F64 = 1e-13


def bilinear(p):
    return p["x"] * p["y"]


def played(tx, steps, p=None, **extra):
    """The parameters before every step of the game x y, in which y ascends."""
    grad_fn = jax.grad(bilinear)

    def step(carry, _):
        p, state = carry
        u, state = tx.update(grad_fn(p), state, p, **dict.fromkeys(extra, grad_fn))
        return (optax.apply_updates(p, u), state), jnp.stack([p["x"], p["y"]])

    p = {"x": jnp.array(1.0), "y": jnp.array(0.5)} if p is None else p
    return np.asarray(jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), None, steps)[1])(p))


def test_extra_gradient_converges_on_a_bilinear_game_where_descent_ascent_moves_outwards(x64):
    """The square of the distance is multiplied by 1 - r^2 + r^4 in every step, that of descent-ascent by 1 + r^2."""
    rate = 0.5
    square = np.square(played(extra_gradient(rate, ascent_mask=GAME), 20, grad_fn=True)).sum(axis=1)
    np.testing.assert_allclose(square[1:] / square[:-1], 1 - rate**2 + rate**4, rtol=F64)
    descent_ascent = optax.chain(optax.masked(optax.scale(-1.0), GAME), gk.sgd(rate))
    square = np.square(played(descent_ascent, 20)).sum(axis=1)
    np.testing.assert_allclose(square[1:] / square[:-1], 1 + rate**2, rtol=F64)


@pytest.mark.parametrize("method", [past_extra_gradient, reflected_gradient, optimistic_gradient])
def test_single_call_forms_converge_on_the_bilinear_game(method, x64):
    """The slowest mode shrinks by |1/2 + r i - sqrt(1/4 - r^2)| or so, below 0.95 a step at r = 0.3."""
    path = np.linalg.norm(played(method(0.3, ascent_mask=GAME), 200), axis=1)
    assert path[-1] < 1e-3 * path[0]


def test_the_single_call_forms_are_one_without_a_projection(x64):
    """With the same guess before the first gradient; the reflected one starts from a guess of 0. Also on a schedule."""
    for rate in (0.3, lambda t: 0.3 / (1 + jnp.asarray(t, float))):
        for first in ("first", "zero"):
            past, optimistic = (
                played(m(rate, ascent_mask=GAME, first=first), 8) for m in (past_extra_gradient, optimistic_gradient)
            )
            np.testing.assert_allclose(past, optimistic, rtol=0, atol=F64)
    zero = played(optimistic_gradient(0.3, ascent_mask=GAME, first="zero"), 8)
    np.testing.assert_allclose(played(reflected_gradient(0.3, ascent_mask=GAME), 8), zero, rtol=0, atol=F64)


def test_on_a_schedule_every_gradient_has_the_rate_of_its_step(x64):
    """x <- x - (r_t + r_{t+1}) V_t + r_t V_{t-1}; optax takes the rate of this step for all of it."""
    rate = lambda t: 0.4 / (1 + jnp.asarray(t, float))  # noqa: E731
    got = played(optimistic_gradient(rate, ascent_mask=GAME), 6)
    x, previous = np.array([1.0, 0.5]), None
    for t in range(6):
        np.testing.assert_allclose(got[t], x, rtol=0, atol=F64)
        V = np.array([x[1], -x[0]])
        previous = V if previous is None else previous
        x, previous = x - (rate(t) + rate(t + 1)) * V + rate(t) * previous, V
    constant = optax.chain(optax.masked(optax.scale(-1.0), GAME), optax.optimistic_gradient_descent(0.3))
    ours = played(optimistic_gradient(0.3, ascent_mask=GAME), 6)
    np.testing.assert_allclose(ours, played(constant, 6), rtol=0, atol=F64)


@pytest.mark.parametrize("method", [extra_gradient, past_extra_gradient, reflected_gradient, optimistic_gradient])
def test_a_projection_keeps_the_game_in_its_box(method, x64):
    """x + y over the box [0.2, 1]^2: x descends to 0.2, y ascends to 1, and both stay."""
    box = lambda p: jax.tree.map(lambda x: jnp.clip(x, 0.2, 1.0), p)  # noqa: E731
    tx = method(0.1, project=box, ascent_mask=GAME)
    grad_fn = jax.grad(lambda p: p["x"] + p["y"])
    p = {"x": jnp.array(0.9), "y": jnp.array(0.3)}
    state = tx.init(p)
    update = jax.jit(lambda p, state: tx.update(grad_fn(p), state, p, grad_fn=grad_fn))
    for _ in range(12):
        u, state = update(p, state)
        p = optax.apply_updates(p, u)
        if method is not reflected_gradient:  # whose leading state may leave it
            assert 0.2 - F64 <= p["x"] <= 1 + F64 and 0.2 - F64 <= p["y"] <= 1 + F64
    np.testing.assert_allclose([float(p["x"]), float(p["y"])], [0.2, 1.0], atol=F64)


def test_a_mask_of_no_leaf_is_refused():
    with pytest.raises(ValueError, match="ascent_mask"):
        extra_gradient(0.1, ascent_mask={"x": False}).init({"x": jnp.ones(2)})
