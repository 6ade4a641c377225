"""Online normalization (Chiley et al., 2019)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.layers import OnlineNormControl, RunningStatistics, online_norm
from tests.papers.replay import assert_equal, normal

ZERO = OnlineNormControl(jnp.zeros(3), jnp.zeros(3))


def reference(x: np.ndarray, g: np.ndarray, mu: Any, s2: Any, v: Any, u: Any, a: float, b: float) -> Any:
    """Example by example, positions in the middle axis."""
    ys, dxs = [], []
    for example, back in zip(x, g, strict=True):
        root = np.sqrt(s2 + 1e-5)
        y = (example - mu) / root
        bar = example.mean(0)
        s2 = a * s2 + (1 - a) * example.var(0) + a * (1 - a) * (bar - mu) ** 2
        mu = a * mu + (1 - a) * bar
        h = back - (1 - b) * v * y
        v = v + (h * y).mean(0)
        d = h / root - (1 - b) * u
        u = u + d.mean(0)
        ys.append(y)
        dxs.append(d)
    return np.stack(ys), np.stack(dxs), mu, s2, v, u


@pytest.mark.parametrize("positions", [1, 4])
def test_equals_a_loop_over_examples(positions: int, x64: None) -> None:
    x, g = normal(0, 6, positions, 3), normal(1, 6, positions, 3)
    start = RunningStatistics(normal(2, 3), 1 + normal(3, 3) ** 2)
    control = OnlineNormControl(normal(4, 3), normal(5, 3))
    f = lambda x, c: online_norm(  # noqa: E731
        x, jnp.ones(3), jnp.zeros(3), start, c, decay=0.9, backward_decay=0.8, bound=None
    )

    def both(x: jax.Array, c: OnlineNormControl) -> Any:
        y, back, state = jax.vjp(f, x, c, has_aux=True)
        return y, state, back(g)

    y, state, (dx, after) = jax.jit(both)(x, control)
    arrays: Any = [np.asarray(v) for v in (x, g, *start, *control)]
    want = reference(*arrays, a=0.9, b=0.8)
    assert_equal((y, dx, *state, *after), want, rtol=1e-9, atol=1e-12)


def test_one_batch_is_its_halves_one_after_another(x64: None) -> None:
    """States carried over by hand: the size of a batch does not matter."""
    x, g, one = normal(0, 8, 3), normal(1, 8, 3), jnp.ones(3)
    start = RunningStatistics(jnp.zeros(3), jnp.ones(3))

    @jax.jit
    def run(x: jax.Array, g: jax.Array, state: Any, control: Any) -> Any:
        f = lambda x, c: online_norm(x, one, 0 * one, state, c)  # noqa: E731
        y, back, state = jax.vjp(f, x, control, has_aux=True)
        dx, control = back(g)
        return y, dx, state, control

    control = OnlineNormControl(jnp.zeros(3), jnp.zeros(3))
    whole = run(x, g, start, control)
    first = run(x[:4], g[:4], start, control)
    second = run(x[4:], g[4:], *first[2:])
    assert_equal(whole[:2], tuple(jnp.concatenate([a, b]) for a, b in zip(first[:2], second[:2], strict=True)), 1e-10)
    assert_equal(whole[2:], second[2:], rtol=1e-10)


def test_moments_are_those_of_the_stream(x64: None) -> None:
    """After 5000 draws with decay 0.99 the mean is off by its standard deviation, 3 sqrt(0.005) = 0.2, at five of them,
    the variance 9 by 9 sqrt(2 * 0.005) = 0.9 likewise."""
    x = 2 + 3 * normal(0, 5000, 1)
    start = RunningStatistics(jnp.zeros(1), jnp.ones(1))
    c = OnlineNormControl(jnp.zeros(1), jnp.zeros(1))
    _, state = jax.jit(lambda x: online_norm(x, jnp.ones(1), jnp.zeros(1), start, c, decay=0.99))(x)
    assert abs(float(state.mean[0]) - 2) < 5 * 0.22 and abs(float(state.var[0]) - 9) < 5 * 0.9


def test_what_bounds_activations(x64: None) -> None:
    x, one = 100 * normal(0, 5, 3), jnp.ones(3)
    start = RunningStatistics(jnp.zeros(3), jnp.ones(3))
    scaled, _ = online_norm(x, one, 0 * one, start, ZERO, use_running_average=True)
    assert_equal(jnp.mean(scaled**2, 1), np.ones(5), rtol=1e-5)
    clamped, same = online_norm(x, one, 0 * one, start, ZERO, bound=5.0, use_running_average=True)
    assert_equal(clamped, jnp.clip(x / np.sqrt(1 + 1e-5), -5, 5))
    assert_equal(same, start)


def test_bad_input() -> None:
    x, c = jnp.ones((2, 3)), jnp.ones(3)
    state = RunningStatistics(c, c)
    for name, bad in (("decay", 1.5), ("backward_decay", -0.1), ("eps", 0.0), ("bound", "none"), ("bound", -1.0)):
        with pytest.raises(ValueError, match=rf"\b{name} must be"):
            online_norm(x, c, c, state, ZERO, **{name: bad})
    with pytest.raises(ValueError, match="control must have shape"):
        online_norm(x, c, c, state, OnlineNormControl(c[:1], c[:1]))
