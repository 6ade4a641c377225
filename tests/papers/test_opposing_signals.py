"""Opposing signals (Rosenfeld, Risteski, 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.diagnostics import opposing_signals


def data() -> tuple[jax.Array, jax.Array, np.ndarray]:
    """Forty examples; six have a large feature, which means +1 for three of them and -1 for three."""
    rng = np.random.default_rng(0)
    inputs = np.concatenate([np.zeros((40, 1)), rng.standard_normal((40, 3))], axis=1)
    labels = np.sign(inputs @ np.array([0.0, 1.0, -0.5, 0.3]))
    group = np.array([3, 8, 20, 5, 17, 33])
    inputs[group, 0] = 12.0
    labels[group] = np.repeat([1.0, -1.0], 3)
    return jnp.asarray(inputs), jnp.asarray(labels), group


def losses(w: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Squared errors, one per example."""
    return 0.5 * jnp.square(inputs @ w - labels)


def test_the_groups_are_recovered_and_swap(x64: None) -> None:
    """At the edge of stability of the large feature what went up goes down in the next step, at a cosine near -1."""
    inputs, labels, group = data()
    mean = lambda w: jnp.mean(losses(w, inputs, labels))  # noqa: E731
    top = float(np.linalg.eigvalsh(np.asarray(inputs).T @ np.asarray(inputs) / 40)[-1])

    def step(w: jax.Array, _: None) -> tuple[jax.Array, Any]:
        new = w - 1.99 / top * jax.grad(mean)(w)
        each = jax.vmap(jax.grad(lambda w, a, b: losses(w, a, b)), (None, 0, 0))(w, inputs, labels)
        before, after = losses(w, inputs, labels), losses(new, inputs, labels)
        return new, opposing_signals(before, after, top=3, gradients=each)

    _, found = jax.jit(lambda w: jax.lax.scan(step, w, None, 6))(jnp.array([0.04, 0.5, -0.2, 0.1]))
    positive, negative = set(group[:3].tolist()), set(group[3:].tolist())
    ups = [set(up) for up in found.up.tolist()]
    downs = [set(down) for down in found.down.tolist()]
    for t in range(1, 6):
        assert {frozenset(ups[t]), frozenset(downs[t])} == {frozenset(positive), frozenset(negative)}
        assert ups[t] == downs[t - 1] or t == 1
    assert (np.asarray(found.up_changes)[1:] > 0).all() and (np.asarray(found.down_changes)[1:] < 0).all()
    assert (np.asarray(found.cosine)[1:] < -0.9).all()
    # They cancel: together they are longer than the sum over all examples.
    assert (np.asarray(found.up_share + found.down_share)[1:] > 1.5).all()


def test_numbers_by_hand(x64: None) -> None:
    before = jnp.array([1.0, 1.0, 1.0, 1.0, 1.0])
    after = jnp.array([1.5, 0.0, 2.0, 1.1, 0.5])
    g = {"a": jnp.array([[1.0], [-2.0], [3.0], [0.0], [1.0]]), "b": jnp.array([0.0, 2.0, 4.0, 1.0, -1.0])}
    found = opposing_signals(before, after, top=2, gradients=g)
    assert found.up.tolist() == [2, 0] and found.down.tolist() == [1, 4]
    np.testing.assert_allclose(found.up_changes, [1.0, 0.5])
    np.testing.assert_allclose(found.down_changes, [-1.0, -0.5])
    up, down, everyone = np.array([4.0, 4.0]), np.array([-1.0, 1.0]), np.array([3.0, 6.0])
    assert float(found.cosine) == pytest.approx(up @ down / np.sqrt(32 * 2), abs=1e-15)
    assert float(found.up_share) == pytest.approx(np.sqrt(32 / 45))
    assert float(found.down_share) == pytest.approx(np.sqrt(2 / 45))
    assert everyone @ everyone == 45
    assert opposing_signals(before, after, top=1).cosine is None
    zero = opposing_signals(before, after, top=1, gradients=jnp.zeros((5, 2)))
    assert float(zero.cosine) == 0 == float(zero.up_share)


def test_bad_input() -> None:
    x = jnp.ones(4)
    with pytest.raises(ValueError, match="must be vectors of one length"):
        opposing_signals(x, jnp.ones(3))
    with pytest.raises(ValueError, match="top must be at most 2, half of the 4 examples, got 3"):
        opposing_signals(x, x, top=3)
    with pytest.raises(ValueError, match="gradients must have a leading axis of length 4"):
        opposing_signals(x, x, top=1, gradients=jnp.ones((3, 2)))
