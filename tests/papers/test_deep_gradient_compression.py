"""Deep gradient compression (Lin et al., 2017)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradkit import parallel
from tests.parallel.exchanges import W, gradients, run

ALL = {"ratio": 1.0, "min_ndim": 0}


def means(steps: int) -> list[Any]:
    return [jax.tree.map(lambda x: np.asarray(x).mean(0), gradients(t)) for t in range(steps)]


@pytest.mark.parametrize("nesterov", [False, True])
def test_when_all_is_sent_nothing_is_remembered(nesterov: bool, x64: None) -> None:
    """Masking clears the momentum in every step: the mean gradient; with Nesterov 1 + m times it."""
    said, state = run(parallel.deep_gradient_compression(nesterov=nesterov, **ALL), steps=3)
    for got, want in zip(said, means(3), strict=True):
        factor = 1.9 if nesterov else 1.0
        np.testing.assert_allclose(got["kernel"][0], factor * want["kernel"], rtol=0, atol=1e-12)
    assert not any(np.any(x) for x in jax.tree.leaves(state))


def test_when_all_is_sent_and_momentum_stays_it_is_momentum_sgd(x64: None) -> None:
    said, _ = run(parallel.deep_gradient_compression(momentum_masking=False, **ALL), steps=4)
    trace = optax.trace(0.9)
    want: Any = None
    state = trace.init(means(1)[0])
    for got, g in zip(said, means(4), strict=True):
        want, state = trace.update(g, state)
        np.testing.assert_allclose(got["kernel"][0], np.asarray(want["kernel"]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_leaves_of_few_axes_are_averaged_whole_before_their_momentum(nesterov: bool, x64: None) -> None:
    said, state = run(parallel.deep_gradient_compression(ratio=0.1, nesterov=nesterov), steps=4)
    u = np.zeros(3)
    for got, g in zip(said, means(4), strict=True):
        u = 0.9 * (u + g["bias"]) if nesterov else 0.9 * u + g["bias"]
        np.testing.assert_allclose(got["bias"][0], u + g["bias"] if nesterov else u, rtol=0, atol=1e-12)
    assert isinstance(state.v["bias"], optax.MaskedNode)


def test_without_masking_what_was_said_and_what_waits_is_momentum_sgd(x64: None) -> None:
    """The sum of all results and the mean of v are the sum of the updates of momentum SGD on the mean gradients."""
    said, state = run(parallel.deep_gradient_compression(ratio=0.1, momentum_masking=False), steps=6)
    u, total = np.zeros((6, 4)), np.zeros((6, 4))
    for g in means(6):
        u = 0.9 * u + g["kernel"]
        total += u
    got = sum(np.asarray(m["kernel"][0]) for m in said) + np.asarray(state.v["kernel"]).mean(0)
    np.testing.assert_allclose(got, total, rtol=0, atol=1e-12)


def test_three_steps_of_the_algorithm(x64: None) -> None:
    """In NumPy: local momentum, the k largest of what has accumulated, both cleared where they were sent."""
    said, state = run(parallel.deep_gradient_compression(ratio=0.2), steps=3)
    u, v = np.zeros((W, 24)), np.zeros((W, 24))
    for t in range(3):
        u = 0.9 * u + np.asarray(gradients(t)["kernel"]).reshape(W, 24)
        v = v + u
        sent = np.zeros_like(v)
        for w in range(W):
            S = np.argsort(-np.abs(v[w]))[:5]  # ceil(0.2 * 24)
            sent[w, S], v[w, S], u[w, S] = v[w, S], 0, 0
        np.testing.assert_allclose(said[t]["kernel"][0].reshape(24), sent.mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(state.u["kernel"].reshape(W, 24), u, rtol=0, atol=1e-12)
    np.testing.assert_allclose(state.v["kernel"].reshape(W, 24), v, rtol=0, atol=1e-12)


def test_gradients_are_limited_over_the_whole_tree_and_by_the_number_of_replicas(x64: None) -> None:
    g = {"a": jnp.full((4, 1, 1), 3.0), "b": jnp.full((4, 1, 1), 4.0)}
    for max_norm, factor in ((2.0, 1 / 5), (20.0, 1.0)):
        tx = parallel.deep_gradient_compression(ratio=1.0, max_norm=max_norm)
        out: Any = jax.vmap(tx.update, axis_name="replica")(g, jax.vmap(tx.init)(g))[0]
        # Norm 5, limited to max_norm / sqrt(4).
        np.testing.assert_allclose([out["a"][0, 0, 0], out["b"][0, 0, 0]], [3 * factor, 4 * factor], rtol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_weight_decay_has_a_momentum_of_its_own_and_is_not_compressed(nesterov: bool, x64: None) -> None:
    x = jnp.asarray([[[2.0, -1.0]]])
    out: Any = None
    tx = parallel.deep_gradient_compression(ratio=0.5, weight_decay=0.1, nesterov=nesterov)
    state, step, d = jax.vmap(tx.init)(x), jax.vmap(tx.update, axis_name="replica"), np.zeros(2)
    for _ in range(3):
        out, state = step(0 * x, state, x)
        d = 0.9 * d + 0.1 * np.array([2.0, -1.0]) if not nesterov else 0.9 * (d + 0.1 * np.array([2.0, -1.0]))
        want = d + 0.1 * np.array([2.0, -1.0]) if nesterov else d
        np.testing.assert_allclose(np.asarray(out)[0, 0], want, rtol=1e-12)
    with pytest.raises(ValueError, match="needs params"):
        step(x, state)


def test_a_warm_up_changes_the_program_and_not_the_state() -> None:
    of = parallel.dgc_warmup(0.001, epochs=4)
    # The paper rounds these to 25 %, 6.25 %, 1.5625 %, 0.4 % and 0.1 %.
    np.testing.assert_allclose([of(e) for e in range(5)], [0.25, 0.0625, 0.0156, 0.004, 0.001], rtol=0.02)
    assert parallel.dgc_warmup(0.01, epochs=0)(0) == 0.01
    g = gradients(0)
    structures: set[Any] = set()
    out: Any = None
    state = parallel.init_replicas(parallel.deep_gradient_compression(ratio=of(0)), g)
    for epoch in (0, 3):
        tx = parallel.deep_gradient_compression(ratio=of(epoch))
        out, state = jax.vmap(tx.update, axis_name="replica")(g, state)
        structures.add(jax.tree.structure(state))
        assert np.count_nonzero(np.asarray(out["kernel"])[0]) <= W * int(np.ceil(24 * of(epoch)))
    assert len(structures) == 1


def test_top_k_sends_the_largest_of_each_leaf() -> None:
    tx = parallel.top_k_compressor(0.5)
    g = {"a": jnp.array([[1.0, -3.0]]), "b": jnp.array([[100.0, 200.0]])}
    out, _ = jax.vmap(tx.update, axis_name="replica")(g, jax.vmap(tx.init)(g))
    np.testing.assert_array_equal(out["a"], [[0.0, -3.0]])
    np.testing.assert_array_equal(out["b"], [[0.0, 200.0]])


def test_bad_arguments_are_refused() -> None:
    for ratio in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\]"):
            parallel.deep_gradient_compression(ratio=ratio)
    with pytest.raises(ValueError, match="known when the program is built"):
        jax.eval_shape(lambda r: parallel.top_k_compressor(r).init(r), jnp.float32(0.1))
