"""DeMo (Peng, Quesnelle, Kingma, 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft

import gradkit as gk
from gradkit.parallel.demo import _Plan, largest_divisor
from tests.golden.translate import ARRAYS
from tests.papers.replay import assert_equal, normal

STACKED = gk.leaves.layout((gk.leaves.by_rank(3), {"stack": (0,)}), default=ARRAYS)


def step(tx: Any, g: Any, state: Any = None, x: Any = None) -> Any:
    """One step of all replicas, along the leading axis of every leaf."""
    state = jax.vmap(tx.init)(g) if state is None else state
    return jax.vmap(lambda g, s: tx.update(g, s, x), axis_name="replica")(g, state)


def test_the_transform_is_that_of_scipy_tile_by_tile(x64: None) -> None:
    """Tiles of 3 by 5 and of 4; and the inverse gives the tree back, of stacks and vectors too."""
    tree = {"matrix": normal(0, 6, 10), "stack": normal(1, 2, 6, 4), "vector": normal(2, 8), "scalar": normal(3)}
    plan = _Plan.of(tree, 5, 100, STACKED)
    payload = plan.encode(tree)
    assert_equal(plan.decode(payload), tree)
    dense = plan.dense(payload)[0].reshape(2, 2, 3, 5)
    want = scipy.fft.dctn(np.asarray(tree["matrix"])[3:, 5:], norm="ortho")
    assert_equal(dense[1, 1], want)
    assert [largest_divisor(n, 5) for n in (6, 10, 4, 8, 7)] == [3, 5, 4, 4, 1]


def test_with_everything_sent_at_once_it_is_the_sign_of_the_gradient(x64: None) -> None:
    """One replica, no memory: signSGD, and nothing stays behind."""
    g = {"kernel": normal(0, 1, 6, 4), "bias": normal(1, 1, 3)}
    u, state = step(gk.parallel.demo(0.1, decay=0.0, top_k=100, chunk=6), g)
    assert_equal(u, jax.tree.map(lambda x: -0.1 * jnp.sign(x), g))
    # What is left is a rounding of two transforms of 24 numbers.
    assert all(float(jnp.abs(x).max()) < 24 * 2**-52 for x in jax.tree.leaves(state.delta))


def test_equal_replicas_are_one_and_all_move_alike(x64: None) -> None:
    g = normal(0, 1, 6, 4)
    tx = gk.parallel.demo(0.1, top_k=1, chunk=2)
    one, many = step(tx, g)[0], step(tx, jnp.tile(g, (3, 1, 1)))[0]
    assert_equal(many, jnp.tile(one, (3, 1, 1)))
    apart = normal(1, 4, 6, 4)
    u, state = step(tx, apart)
    for _ in range(2):
        u, state = step(tx, 0.5 * apart, state)
        assert all((np.asarray(u[0]) == np.asarray(u[w])).all() for w in range(4))
    assert float(jnp.abs(state.delta[0] - state.delta[1]).max()) > 0.01


def test_a_coefficient_is_the_mean_over_those_that_sent_it(x64: None) -> None:
    """Of two replicas one sends the constant, the other the alternating part: both count in full, where a mean over
    the replicas would halve each; the compressor says the mean, as error feedback needs it."""
    g = jnp.asarray([[3.0, 3.0], [1.0, -1.0]])
    u, _ = step(gk.parallel.demo(0.1, top_k=1, chunk=2), g)
    assert_equal(u[0], -0.1 * jnp.sign(g[0] + g[1]))
    mean, _ = step(gk.parallel.dct_top_k(top_k=1, chunk=2), g)
    assert_equal(mean[1], (g[0] + g[1]) / 2)


def test_what_is_not_sent_stays_in_the_momentum(x64: None) -> None:
    """The learning rate is in the momentum: delta = 0.1 g minus the one coefficient that was sent."""
    g = jnp.asarray([[3.0, 1.0]])
    _, state = step(gk.parallel.demo(0.1, top_k=1, chunk=2), g)
    assert_equal(state.delta, 0.1 * jnp.asarray([[1.0, -1.0]]))
    memory = gk.parallel.error_feedback(gk.parallel.dct_top_k(top_k=1, chunk=2))
    total, state = jnp.zeros((1, 2)), None
    for _ in range(2):
        mean, state = step(memory, g if state is None else 0 * g, state)
        total += mean
    assert_equal(total, g)


def test_where_a_basis_function_is_zero_nothing_moves() -> None:
    """The second of three cosines is 0 in the middle: its rounding has a sign in the official code."""
    g = jnp.asarray([[1.0, 0.0, -1.0]], jnp.float32) + 1e-9
    u, _ = step(gk.parallel.demo(0.1, decay=0.0, top_k=1, chunk=3), g)
    np.testing.assert_allclose(u, [[-0.1, 0.0, 0.1]], rtol=1e-6)


def test_layers_of_a_stack_are_matrices_of_their_own(x64: None) -> None:
    g = normal(0, 1, 2, 6, 4) * jnp.asarray([1.0, 9.0]).reshape(1, 2, 1, 1)
    options = {"top_k": 2, "chunk": 3}
    whole, _ = step(gk.parallel.demo(0.1, layout=STACKED, **options), g)
    for layer in range(2):
        assert_equal(whole[:, layer], step(gk.parallel.demo(0.1, layout=ARRAYS, **options), g[:, layer])[0])


def test_parameters_decay_by_the_rate(x64: None) -> None:
    g, x = normal(0, 1, 4), normal(1, 4)
    (plain, _), (decayed, _) = (
        step(gk.parallel.demo(0.1, weight_decay=w, top_k=2, chunk=2), g, x=x) for w in (0.0, 0.5)
    )
    assert_equal(decayed[0], plain[0] - 0.1 * 0.5 * x)
