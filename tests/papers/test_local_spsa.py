"""Local simultaneous perturbations (Deliot, Heitz, Belcour, 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.gradients import local_spsa
from tests.papers.replay import normal


def test_separable_outputs_have_the_exact_difference(x64: None) -> None:
    """One parameter per output, of any function, over two leaves, with an epsilon each; and a padded contributor."""
    x = {"a": normal(0, 3), "b": normal(1, 2)}
    f = lambda p: jnp.sin(jnp.concatenate([p["a"], p["b"]]))  # noqa: E731
    ids = np.stack([np.arange(5), np.full(5, -1)], axis=1)
    value, g = jax.jit(local_spsa(f, ids, epsilon={"a": 0.1, "b": 0.2}))(x, jax.random.key(3))
    for name, e in (("a", 0.1), ("b", 0.2)):
        want = (np.sin(x[name] + e) - np.sin(x[name] - e)) / (2 * e)
        np.testing.assert_allclose(g[name], want, rtol=1e-12)
    assert value.shape == ()


def blocks(count: int, contributes: bool) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of a sum of equal coupled quadratics of 3 parameters each, and 400 estimates of it."""
    A = np.array([[2.0, 1.0, 0.5], [1.0, 3.0, -1.0], [0.5, -1.0, 1.5]])
    x = np.tile([1.0, -2.0, 0.5], count)
    f = lambda p: 0.5 * jnp.einsum("bi,ij,bj->b", p.reshape(-1, 3), A, p.reshape(-1, 3))  # noqa: E731
    ids = np.arange(3 * count).reshape(count, 3) if contributes else None
    source = jax.jit(jax.vmap(lambda key: local_spsa(f, ids, epsilon=0.3)(x, key)[1]))
    return np.tile(A @ x[:3], count), np.asarray(source(jax.random.split(jax.random.key(0), 400)))


def test_the_error_does_not_grow_with_the_number_of_blocks(x64: None) -> None:
    """Unbiased; the mean square error of an entry is |grad of its block|^2 - g_i^2, for plain SPSA of all blocks."""
    one = np.array([-0.0 + 2 - 2 + 0.25, 1 - 6 - 0.5, 0.5 + 2 + 0.75])
    per_entry = np.sum(one**2) - one**2
    for count in (1, 8):
        want, local = blocks(count, True)
        np.testing.assert_allclose(want[:3], one, rtol=1e-12)
        # Five standard deviations of the mean of 400 draws.
        np.testing.assert_allclose(local.mean(axis=0), want, atol=5 * np.sqrt(per_entry.max() / 400))
        errors = np.mean((local - want) ** 2, axis=0).reshape(count, 3)
        # The square of a sum of two signed terms: its spread over 400 draws is below a tenth, five times over a half.
        np.testing.assert_allclose(errors, np.broadcast_to(per_entry, (count, 3)), rtol=0.5)
        plain = blocks(count, False)[1]
        spread = np.mean((plain - want) ** 2, axis=0)
        np.testing.assert_allclose(spread.mean(), count * np.sum(one**2) - np.mean(one**2), rtol=0.5)


def test_contributors_of_both_evaluations_count_once(x64: None) -> None:
    """An output that another parameter covers at x + e s than at x - e s goes to both, and to none twice."""
    x = normal(0, 2)

    def f(p: Any) -> Any:
        first = p[0] > x[0]
        return jnp.array([p[0] + 2 * p[1]]), jnp.where(first, jnp.array([[0, 0]]), jnp.array([[0, 1]]))

    g = local_spsa(f, epsilon=0.1)(x, 1)[1]
    s = np.asarray(np.sign(g))
    change = np.array([1.0, 2.0])
    for signs in ([1, 1], [1, -1], [-1, 1], [-1, -1]):
        want = np.array(signs) * np.sum(change * signs)
        if np.allclose(g, want):
            break
    else:
        raise AssertionError((g, s))


def test_outputs_on_several_members_add_up(x64: None) -> None:
    x, w = normal(0, 4), normal(1, 6, 4)
    ids = np.tile(np.arange(4), (6, 1))
    want = local_spsa(lambda p: w @ p, ids, epsilon=0.1)(x, 5)
    fn = lambda w, ids: local_spsa(lambda p: w @ p, ids, epsilon=0.1, axis_name="i")(x, 5)  # noqa: E731
    got = jax.vmap(fn, axis_name="i")(w.reshape(2, 3, 4), ids.reshape(2, 3, 4))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a[1], b, rtol=1e-12)


def test_bad_input() -> None:
    x = np.ones(2, np.float32)
    with pytest.raises(ValueError, match="epsilon must be"):
        local_spsa(lambda p: p, epsilon=0.0)
    with pytest.raises(ValueError, match=r"per_output_loss must give \(P,\)"):
        local_spsa(jnp.sum, epsilon=0.1)(x, 0)
    with pytest.raises(ValueError, match="contributes must be integers"):
        local_spsa(lambda p: p, np.zeros((3, 1), int), epsilon=0.1)(x, 0)
