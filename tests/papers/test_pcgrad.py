"""PCGrad: surgery on the gradients themselves, the two-task theorem, and where its randomness comes from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.aggregation import pcgrad
from gradkit.aggregation.pcgrad import pcgrad_weights

m, n = 4, 9


def draw(seed: int, tasks: int = m) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tasks, n))


def surgery(J: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The algorithm box: on vectors, not on the Gramian."""
    total = np.zeros(J.shape[1])
    for i, row in enumerate(order):
        a = J[i].copy()
        for j in row:
            if j != i and a @ J[j] < 0:
                a -= a @ J[j] / (J[j] @ J[j]) * J[j]
        total += a
    return total


@jax.jit
def _run(J: jax.Array, order: jax.Array) -> jax.Array:
    return pcgrad_weights(J @ J.T, order) @ J


def run(J: np.ndarray, **kwargs) -> np.ndarray:
    stacked = {"a": jnp.asarray(J[:, :3]), "b": jnp.asarray(J[:, 3:]).reshape(len(J), 2, -1)}
    params = jax.tree.map(lambda g: jnp.zeros(g.shape[1:], g.dtype), stacked)
    tx = pcgrad(**kwargs)
    out, _ = tx.update(stacked, tx.init(params), params)
    return np.concatenate([np.asarray(out["a"]), np.asarray(out["b"]).ravel()])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_the_algorithm_box(seed: int, x64: None) -> None:
    J = draw(seed)
    rng = np.random.default_rng(seed)
    full = np.stack([rng.permutation(m) for _ in range(m)])
    others = np.stack([row[row != i] for i, row in enumerate(full)])
    want = surgery(J, others)
    np.testing.assert_allclose(_run(jnp.asarray(J), jnp.asarray(others)), want, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(_run(jnp.asarray(J), jnp.asarray(full)), want, rtol=1e-12, atol=1e-13)
    if seed == 0:
        np.testing.assert_allclose(run(J, order=full, reduction="mean"), want / m, rtol=1e-12, atol=1e-13)


def test_two_tasks_no_conflict_left(x64: None, key: jax.Array) -> None:
    """Theorem of the paper; the order cannot matter, so neither can the key."""
    J = draw(3, 2)
    J[1] -= 2 * J[0]
    assert J[0] @ J[1] < 0
    out = run(J, key=key)
    np.testing.assert_allclose(out, run(J, order=[[1], [0]]), rtol=1e-13)
    a = J[0] - J[0] @ J[1] / (J[1] @ J[1]) * J[1]
    b = J[1] - J[0] @ J[1] / (J[0] @ J[0]) * J[0]
    np.testing.assert_allclose(out, a + b, rtol=1e-12, atol=1e-13)
    assert (J @ out >= 0).all()


def test_inner_products_run_over_the_whole_tree(x64: None) -> None:
    """Leaves that conflict one by one, in a tree that does not: nothing is projected."""
    J = np.zeros((2, n))
    J[:, 0], J[:, 5] = [1.0, -1.0], [2.0, 2.0]
    np.testing.assert_array_equal(run(J, order=[[1], [0]]), J.sum(0))


def test_zero_gradients_and_one_task(key: jax.Array) -> None:
    J = draw(4).astype(np.float32)
    J[2] = 0
    order = np.array([[1, 2, 3], [2, 3, 0], [3, 0, 1], [0, 1, 2]])
    # Of numbers of size 3 in float32, through a few projections.
    np.testing.assert_allclose(_run(jnp.asarray(J), jnp.asarray(order)), surgery(J.astype(float), order), atol=1e-5)
    np.testing.assert_array_equal(_run(jnp.asarray(0 * J), jnp.asarray(order)), np.zeros(n))
    np.testing.assert_array_equal(run(J[:1], key=key), J[0])


def test_a_random_order_is_one_of_the_orders(x64: None, key: jax.Array) -> None:
    """With three tasks each row has two orders; every step's result is the surgery of one of the eight."""
    J = draw(5, 3) - 1.5 * draw(6, 1)
    J = J - J.mean(0)
    results = []
    for bits in range(8):
        rows = [[j for j in range(3) if j != i][:: 1 if bits >> i & 1 else -1] for i in range(3)]
        results.append(surgery(J, np.array(rows)))
    tx, g = pcgrad(), jnp.asarray(J)
    step = jax.jit(lambda k: tx.update(g, tx.init(g[0]), key=k)[0])
    seen = set()
    for k in jax.random.split(key, 24):
        errors = [np.abs(np.asarray(step(k)) - result).max() for result in results]
        assert min(errors) < 1e-12
        seen.add(int(np.argmin(errors)))
    # The chance that 24 draws show one result only is below 1e-6 where two differ.
    assert len(seen) > 1


def test_keys(key: jax.Array) -> None:
    """From the state: another each step, the same run from the same key. From `update`: the state stays."""
    g = jnp.asarray(draw(7) - draw(7).mean(0), jnp.float32)
    tx = pcgrad(key=key)
    state = tx.init(g[0])
    update = jax.jit(tx.update)
    first, after = update(g, state)
    assert not jnp.array_equal(jax.random.key_data(state.key), jax.random.key_data(after.key))
    jax.jit(tx.update, donate_argnums=1)(g, tx.init(g[0]))
    assert not key.is_deleted()

    given, same = update(g, state, key=key)
    want, _ = pcgrad().update(g, pcgrad().init(g[0]), key=key)
    # Not compiled: rounded elsewhere. Another order would differ in the first digit.
    np.testing.assert_allclose(np.asarray(given), np.asarray(want), rtol=1e-5, atol=1e-6)
    assert jnp.array_equal(jax.random.key_data(same.key), jax.random.key_data(state.key))

    def body(state, _):
        out, state = tx.update(g, state)
        return state, out

    _, outs = jax.lax.scan(body, tx.init(g[0]), length=3)
    # The same key gives the same run; another program may round once more.
    np.testing.assert_allclose(np.asarray(outs)[0], first, rtol=1e-5, atol=1e-6)


def test_first_in_a_chain_with_parameters_without_the_axis(key: jax.Array) -> None:
    params = {"w": jnp.array([3.0, -2.0]), "none": None}
    tx = optax.chain(pcgrad(key=key), gk.adam(0.1))
    stacked = {"w": jnp.array([[1.0, 0.0], [1.0, 1.0]]), "none": None}
    updates, _ = tx.update(stacked, tx.init(params), params)
    want, _ = gk.adam(0.1).update({"w": jnp.array([2.0, 1.0]), "none": None}, gk.adam(0.1).init(params), params)
    np.testing.assert_array_equal(updates["w"], want["w"])


@pytest.mark.parametrize(
    "order", [[[1, 2], [0, 2], [0, 0]], [[1], [0], [0]], [[0, 1], [1, 2], [0, 1]], [1, 0], [[1.0], [0.0]], []]
)
def test_bad_orders(order: list) -> None:
    with pytest.raises(ValueError, match="order must be integers"):
        pcgrad(order=order)


def test_bad_input(key: jax.Array) -> None:
    g = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="reduction must be one of"):
        pcgrad(reduction="max")
    with pytest.raises(ValueError, match="key must be None with an order"):
        pcgrad(key=key, order=[[1], [0]])
    with pytest.raises(ValueError, match="pcgrad needs a random key"):
        pcgrad().update(g, pcgrad().init(g[0]))
    tx = pcgrad(order=[[1, 2], [0, 2], [0, 1]])
    with pytest.raises(ValueError, match="order is for 3 gradients, and 2 came"):
        tx.update(g, tx.init(g[0]))
