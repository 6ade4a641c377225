"""CR-MOGM: an average of weights, of any aggregator that has some."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.aggregation import cr_mogm, dwa, graddrop, mean, mgda, pcgrad, stch
from tests.papers.stacks import aggregate, draw, flat, runner, tree_of


def test_weights_are_averaged_and_gradients_are_not(x64: None) -> None:
    run, state, lam = runner(cr_mogm(mgda(), num_tasks=4, alpha=0.7)), None, None
    for t in range(3):
        J = draw(t)
        w = np.linalg.lstsq(J.T, aggregate(mgda(), J), rcond=None)[0]
        lam = w if lam is None else 0.7 * lam + 0.3 * w
        out, state = run(J, state)
        np.testing.assert_allclose(out, lam @ J, rtol=1e-9, atol=1e-11)
    given = aggregate(cr_mogm(mgda(), num_tasks=4, alpha=0.7, initial_weights=[1.0, 0, 0, 0]), J)
    np.testing.assert_allclose(given, 0.7 * J[0] + 0.3 * w @ J, rtol=1e-9, atol=1e-11)


def test_around_weights_of_losses_keys_and_states(x64: None, key: jax.Array) -> None:
    J, losses = draw(3), jnp.array([1.0, 2.0, 0.5, 0.1])
    for inner, extra in ((stch(), {"losses": losses}), (dwa(num_tasks=4), {"losses": losses}), (pcgrad(key=key), {})):
        got = aggregate(cr_mogm(inner, num_tasks=4), J, **extra)
        np.testing.assert_allclose(got, aggregate(inner, J, **extra), rtol=1e-12, atol=1e-13)


def test_of_gradients_that_are_computed_when_asked_for(x64: None) -> None:
    """The other aggregator asks for inner products, and one backward pass has the result."""
    J = jax.tree.map(jnp.asarray, tree_of(draw(4)))
    tx = cr_mogm(gk.aggregation.upgrad(), num_tasks=4)

    def losses(x: dict) -> jax.Array:
        return jnp.sum(J["a"] * x["a"][None], axis=1) + jnp.sum(J["b"] * x["b"][None], axis=(1, 2))

    params = jax.tree.map(lambda g: g[0], J)
    _, lazy = gk.gradients.task_gradients(losses)(params)
    got, _ = tx.update(lazy, tx.init(params), params)
    want = aggregate(gk.aggregation.upgrad(), draw(4))
    np.testing.assert_allclose(flat(got), want, rtol=1e-12, atol=1e-13)


def test_what_has_no_weights_is_refused(key: jax.Array) -> None:
    with pytest.raises(ValueError, match="cr_mogm: weighting must be an aggregator whose result is a weighted sum"):
        aggregate(cr_mogm(graddrop(key=key), num_tasks=4), draw(0).astype(np.float32))
    with pytest.raises(ValueError, match="weighting must be an optax transformation"):
        cr_mogm(mean, num_tasks=4)
