"""Coherence of gradients (Chatterjee, Zielinski, 2022)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.diagnostics import coherence, m_coherence
from tests.papers.replay import normal


def by_pairs(g: np.ndarray) -> float:
    """E<g, g'> / E<g, g> of two examples drawn with replacement."""
    G = g @ g.T
    return float(G.mean() / np.diag(G).mean())


def test_one_only_where_all_are_equal(x64: None) -> None:
    """And of any scale; orthogonal gradients have m-coherence 1, those that cancel 0, and zeros 0."""
    same = jnp.broadcast_to(normal(0, 4)[None], (5, 4))
    assert float(coherence(same)) == pytest.approx(1, rel=1e-14)
    assert float(m_coherence(same)) == pytest.approx(5, rel=1e-14)
    assert float(coherence(same.at[2].multiply(1.1))) < 1 - 1e-4
    assert float(m_coherence(jnp.eye(6))) == pytest.approx(1, rel=1e-14)
    assert float(coherence(jnp.array([[1.0, 2.0], [-1.0, -2.0]]))) == 0
    assert float(coherence(jnp.array([[1.0, 2.0], [-1.0, -2.0]]), unbiased=True)) == pytest.approx(-1)
    assert float(coherence(jnp.zeros((3, 2)))) == 0 == float(m_coherence(jnp.zeros((3, 2)), unbiased=True))
    g = normal(1, 5, 3)
    assert float(coherence(1e-5 * g)) == pytest.approx(float(coherence(g)), rel=1e-12)


def test_of_trees_by_leaf_and_together(x64: None) -> None:
    tree = {"a": normal(0, 6, 3), "b": normal(1, 6, 2, 2)}
    rows = {name: np.asarray(x).reshape(6, -1) for name, x in tree.items()}
    both = np.concatenate([rows["a"], rows["b"]], axis=1)
    assert float(coherence(tree)) == pytest.approx(by_pairs(both), rel=1e-12)
    leafwise = coherence(tree, leafwise=True)
    for name in tree:
        assert float(leafwise[name]) == pytest.approx(by_pairs(rows[name]), rel=1e-12)
    # Without pairs of an example with itself.
    G = both @ both.T
    want = (G.sum() - np.trace(G)) / (5 * np.trace(G))
    assert float(coherence(tree, unbiased=True)) == pytest.approx(want, rel=1e-12)
    assert jax.tree.structure(m_coherence(tree, leafwise=True)) == jax.tree.structure(tree)


def test_from_microbatches_that_of_examples_is_recovered(x64: None) -> None:
    """Over all microbatches of k examples with replacement, alpha_k is k alpha / (1 + (k - 1) alpha) exactly."""
    g = np.asarray(normal(2, 4, 3)) + 0.7
    want = by_pairs(g)
    pairs = jnp.asarray(np.stack([(a + b) / 2 for a in g for b in g]))
    alpha_2 = by_pairs(np.asarray(pairs))
    assert alpha_2 == pytest.approx(2 * want / (1 + want), rel=1e-12)
    assert float(coherence(pairs, microbatch_size=2)) == pytest.approx(want, rel=1e-12)
    assert float(m_coherence(pairs, microbatch_size=2)) == pytest.approx(32 * want, rel=1e-12)


def test_unbiased_from_few_microbatches(x64: None) -> None:
    """Of orthogonal examples in disjoint microbatches the coherence is 0; with pairs of itself it would be 1 / m."""
    micro = jnp.eye(12).reshape(4, 3, 12).mean(1)
    assert float(coherence(micro, microbatch_size=3, unbiased=True)) == pytest.approx(0, abs=1e-15)
    assert float(coherence(micro, microbatch_size=3)) == pytest.approx(1 / 10, rel=1e-12)  # (1/4) / (3 - 2/4)


def test_gradients_that_are_computed_one_after_another(x64: None) -> None:
    """Lazy gradients in chunks give what the stacked ones do."""
    x, inputs = {"w": normal(0, 3)}, normal(1, 6, 3)
    loss = lambda x, a: jnp.mean(jnp.square(a @ x["w"] - 1))  # noqa: E731

    def both(x: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        _, lazy = gk.gradients.example_gradients(loss, chunk=2)(x, inputs)
        return coherence(lazy), coherence(jax.vmap(jax.grad(loss), (None, 0))(x, inputs[:, None]))

    lazy, stacked = jax.jit(both)(x)
    assert float(lazy) == pytest.approx(float(stacked), rel=1e-12)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="gradients must be a tree with the same leading axis"):
        coherence({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))})
    with pytest.raises(ValueError, match="microbatch_size must be an integer >= 1"):
        coherence(jnp.ones((2, 3)), microbatch_size=0)
    with pytest.raises(ValueError, match="unbiased must be False for one gradient"):
        coherence(jnp.ones((1, 3)), unbiased=True)
    with pytest.raises(ValueError, match="m_coherence: gradients must be"):
        m_coherence(jnp.ones(()))
