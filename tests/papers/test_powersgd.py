"""PowerSGD (Vogels, Karimireddy, Jaggi, 2019)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit import parallel
from gradkit.parallel.power_step import orthonormal, power_step
from tests.parallel.exchanges import W, gradients, run

DENSE = {"min_compression_rate": 0.0}


@pytest.mark.parametrize("alternating", [False, True])
def test_many_replicas_are_one_that_has_their_mean(alternating: bool, x64: None) -> None:
    """Step for step, memory included: the compressor is linear once its columns are given."""
    tx = parallel.powersgd(2, alternating=alternating, **DENSE)
    many, state = run(tx, steps=4)
    one = parallel.init_replicas(tx, jax.tree.map(lambda x: x[:1], gradients(0)))
    step = jax.jit(jax.vmap(tx.update, axis_name="replica"))
    for t in range(4):
        mean, one = step(jax.tree.map(lambda x: x.mean(0, keepdims=True), gradients(t)), one)
        for a, b in zip(jax.tree.leaves(many[t]), jax.tree.leaves(mean), strict=True):
            np.testing.assert_allclose(a[:1], b, rtol=0, atol=1e-11)
    np.testing.assert_allclose(state.error["kernel"].mean(0), one.error["kernel"][0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("alternating", [False, True])
def test_a_mean_of_that_rank_is_exact(alternating: bool, x64: None) -> None:
    """Replicas that differ, whose mean has rank 2; the alternating form knows a column space it was handed after one
    step on it."""
    rng = np.random.default_rng(0)
    low = rng.standard_normal((6, 2)) @ rng.standard_normal((2, 4))
    apart = rng.standard_normal((W, 6, 4))
    g = jnp.asarray(low + apart - apart.mean(0))
    tx = parallel.low_rank_compressor(2, alternating=alternating, **DENSE)
    state, step, mean = parallel.init_replicas(tx, g), jax.jit(jax.vmap(tx.update, axis_name="replica")), g
    for _ in range(3 if alternating else 1):
        mean, state = step(g, state)
    np.testing.assert_allclose(mean[0], low, rtol=0, atol=1e-12)


def test_a_constant_gradient_is_seen_along_its_first_singular_vectors(x64: None) -> None:
    rng = np.random.default_rng(1)
    U, _, V = np.linalg.svd(rng.standard_normal((6, 4)))
    M = U[:, :4] * [4.0, 3.0, 0.5, 0.1] @ V
    tx = parallel.low_rank_compressor(2, **DENSE)
    said, _ = run_of(tx, M, 30)
    # Subspace iteration: the part outside falls by (0.5 / 3)^2 in every step.
    np.testing.assert_allclose(said, U[:, :2] * [4.0, 3.0] @ V[:2], rtol=0, atol=1e-10)


def run_of(tx: Any, M: np.ndarray, steps: int) -> tuple[np.ndarray, Any]:
    g = jnp.asarray(M)[None]
    state, step, mean = parallel.init_replicas(tx, g), jax.jit(jax.vmap(tx.update, axis_name="replica")), g
    for _ in range(steps):
        mean, state = step(g, state)
    return np.asarray(mean[0]), state


def test_iterations_work_on_what_those_before_have_left(x64: None) -> None:
    """Two half steps in one step are two steps of one on what the first left, but for what came in between."""
    M = np.random.default_rng(6).standard_normal((6, 4))
    twice = parallel.low_rank_compressor(1, alternating=True, iterations=2, **DENSE)
    once = parallel.low_rank_compressor(1, alternating=True, **DENSE)
    got, _ = run_of(twice, M, 1)
    first, state = run_of(once, M, 1)
    rest, _ = jax.vmap(once.update, axis_name="replica")(jnp.asarray(M - first)[None], state)
    np.testing.assert_allclose(got, first + np.asarray(rest)[0], rtol=0, atol=1e-13)
    said, state = run(parallel.powersgd(1, alternating=True, iterations=3, **DENSE), steps=3)
    total = sum(np.asarray(m["kernel"][0]) for m in said) + np.asarray(state.error["kernel"]).mean(0)
    np.testing.assert_allclose(total, sum(np.asarray(gradients(t)["kernel"]).mean(0) for t in range(3)), atol=1e-12)
    with pytest.raises(ValueError, match="iterations must be 1 unless factors alternate"):
        parallel.powersgd(1, iterations=2)


def test_without_a_warm_start_every_step_starts_anew(x64: None) -> None:
    M = np.random.default_rng(2).standard_normal((6, 4))
    tx = parallel.low_rank_compressor(1, warm_start=False, **DENSE)
    first, state = run_of(tx, M, 1)
    second, _ = run_of(tx, M, 2)
    assert state.Q is None and np.abs(first - second).max() > 1e-3


def test_three_steps_of_the_algorithm(x64: None) -> None:
    """Two replicas with error feedback, in NumPy with its QR: only the span of the columns matters."""
    tx = parallel.powersgd(2, key=3, **DENSE)
    g = [np.asarray(gradients(t)["kernel"][:2]) for t in range(3)]
    state, step = parallel.init_replicas(tx, jnp.asarray(g[0])), jax.jit(jax.vmap(tx.update, axis_name="replica"))
    Q, e = np.asarray(state.compressor.Q[0, 0]), np.zeros((2, 6, 4))
    for t in range(3):
        M = g[t] + e
        P = np.linalg.qr((M @ Q).mean(0))[0]
        own = M.swapaxes(1, 2) @ P
        Q = own.mean(0)
        e = M - P @ own.swapaxes(1, 2)
        mean, state = step(jnp.asarray(g[t]), state)
        np.testing.assert_allclose(mean[0], P @ Q.T, rtol=0, atol=1e-12)
        np.testing.assert_allclose(state.error, e, rtol=0, atol=1e-12)


def test_what_is_small_is_averaged_whole() -> None:
    """rank (rows + columns) rate below rows * columns is compressed: at rank 1 a kernel of 6 x 4 is, up to rate 2.4."""
    shapes = {"kernel": jnp.zeros((6, 4)), "bias": jnp.zeros(6), "scale": jnp.zeros(())}
    factors = lambda **given: jax.tree.leaves(parallel.low_rank_compressor(1, **given).init(shapes).Q)  # noqa: E731
    assert [x.shape for x in factors()] == [(1, 4, 1)]
    assert factors(min_compression_rate=2.4) == []
    assert parallel.low_rank_compressor(9, **DENSE).init(shapes).Q["kernel"].shape == (1, 4, 4)


def test_stacked_layers_are_matrices_of_their_own(x64: None) -> None:
    g = np.random.default_rng(4).standard_normal((3, 6, 4))
    layers = parallel.low_rank_compressor(1, **DENSE)
    state = layers.init({"layers": {"kernel": jnp.asarray(g)}, "head": {"kernel": jnp.zeros((4, 2))}})
    assert state.Q["layers"]["kernel"].shape in ((3, 4, 1), (1, 4, 1))


def test_zeros_and_repeated_columns_stay_finite_and_scale_does_not_matter() -> None:
    """Where PyTorch's hook, whose epsilon is 0, divides by 0."""
    assert not np.any(orthonormal(jnp.zeros((5, 2))))
    P = jnp.array([[1.0, 1.0, 2.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(np.abs(orthonormal(P)), [[0.5**0.5, 0, 0.5**0.5]] * 2 + [[0, 0, 0]], atol=1e-6)
    M, Q = jnp.asarray(np.random.default_rng(5).standard_normal((2, 6, 4)).astype(np.float32)), jnp.ones((2, 4, 1))
    small, large = (power_step(scale * M, Q, lambda x: x) for scale in (2.0**-60, 1.0))
    # Sums of products in another order: a few roundings of numbers below 1.
    np.testing.assert_allclose(small[0], large[0], rtol=0, atol=1e-6)
    # With an epsilon the direction of a tiny gradient is short.
    assert np.linalg.norm(orthonormal(1e-9 * M[0, :, :1], 1e-8)) < 0.5


def test_the_mean_until_it_starts(x64: None) -> None:
    said, state = run(parallel.powersgd(1, start_step=2, **DENSE), steps=3)
    for t in range(2):
        np.testing.assert_allclose(said[t]["kernel"][0], gradients(t)["kernel"].mean(0), rtol=0, atol=1e-12)
    assert np.linalg.matrix_rank(said[2]["kernel"][0]) == 1
    assert np.any(state.error["kernel"])


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="rank must be an integer >= 1"):
        parallel.powersgd(0)
    with pytest.raises(ValueError, match="warm_start must be True where factors alternate"):
        parallel.powersgd(1, alternating=True, warm_start=False)
    with pytest.raises(ValueError, match="complex"):
        parallel.powersgd(1).init({"kernel": jnp.zeros((4, 4), jnp.complex64)})


@pytest.mark.parametrize("own", [{}, {"alternating": True}, {"alternating": True, "iterations": 2}])
def test_a_gradient_of_zeros_or_of_low_rank_does_not_end_the_exchange(own: Any) -> None:
    """After zeros, and after a matrix of rank 1, the factors still find a matrix of rank 2: what is sent, and what is
    remembered, is again all there was; and within ten steps all of it is sent, as the rank is that of the factors."""
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((6, 2)), rng.standard_normal((2, 5))
    one, two = left[:, :1] @ right[:1], left @ right
    tx = parallel.powersgd(2, **DENSE, **own)
    step = jax.jit(jax.vmap(tx.update, axis_name="replica"))
    state, sent, given = jax.vmap(tx.init)(jnp.zeros((1, 6, 5))), np.zeros((6, 5)), np.zeros((6, 5))
    for g in (0 * two, one, two, *[0 * two] * 10):
        mean, state = step(jnp.asarray(g[None], jnp.float32), state)
        sent, given = sent + np.asarray(mean)[0], given + g
    # 13 sums of float32, in each of which errors of products of 6 numbers add up.
    bound = 13 * 6 * 2**-24 * np.abs(given).max()
    np.testing.assert_allclose(sent + np.asarray(state.error)[0], given, rtol=0, atol=bound)
    np.testing.assert_allclose(sent, given, rtol=0, atol=1e-3 * np.abs(given).max())
