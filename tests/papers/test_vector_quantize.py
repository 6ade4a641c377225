"""Vector quantization with a codebook that keeps up (Huh et al., 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradkit.layers import (
    CodebookAffine,
    affine_codebook,
    alternate_codebook_update,
    init_affine,
    replace_dead_codes,
    vector_quantize,
)
from tests.papers.replay import assert_equal, normal


def setting() -> tuple[jax.Array, jax.Array]:
    return normal(0, 3, 5, 4), normal(1, 8, 4)


def test_nearest_codes_and_both_terms_of_the_loss(x64: None) -> None:
    """beta weighs the codebook's term, and each term has a gradient on its own side alone."""
    z, c = setting()
    distance = np.sum(np.square(np.asarray(z)[..., None, :] - np.asarray(c)), -1)
    want = distance.argmin(-1)
    q, i, loss = vector_quantize(z, c, beta=0.9)
    np.testing.assert_array_equal(i, want)
    np.testing.assert_array_equal(q, np.asarray(c)[want])
    apart = np.asarray(z) - np.asarray(c)[want]
    assert_equal(loss, np.mean(apart**2))
    dz, dc = jax.grad(lambda z, c: vector_quantize(z, c, beta=0.9)[2], (0, 1))(z, c)
    assert_equal(dz, 0.1 * 2 * apart / apart.size, rtol=1e-9)
    wanted = np.zeros_like(c)
    np.add.at(wanted, want.reshape(-1), -0.9 * 2 * apart.reshape(-1, 4) / apart.size)
    assert_equal(dc, wanted, rtol=1e-9)


@pytest.mark.parametrize("nu", [0.0, 0.2])
def test_the_task_reaches_the_input_as_it_is_and_the_codebook_by_nu(nu: float, x64: None) -> None:
    z, c = setting()
    w = normal(2, 3, 5, 4)
    task = lambda z, c: jnp.sum(w * vector_quantize(z, c, sync_nu=nu)[0])  # noqa: E731
    dz, dc = jax.grad(task, (0, 1))(z, c)
    assert_equal(dz, w)
    wanted = np.zeros_like(c)
    np.add.at(wanted, np.asarray(vector_quantize(z, c)[1]).reshape(-1), nu * np.asarray(w).reshape(-1, 4))
    assert_equal(dc, wanted)


def test_zeros_are_plain_quantization_and_a_group_moves_together(x64: None) -> None:
    z, c = setting()
    assert_equal(vector_quantize(z, c, init_affine(2, 4)), vector_quantize(z, c))
    affine = CodebookAffine(0.1 * normal(3, 2, 4), 0.1 * normal(4, 2, 4))
    s, b = (np.repeat(np.asarray(a), 4, axis=0) for a in affine)
    assert_equal(affine_codebook(c, affine, affine_rate=3.0), (1 + 3 * s) * np.asarray(c) + 3 * b)
    moved = jax.grad(lambda a: vector_quantize(z, c, a)[2])(init_affine(1, 4))
    assert np.all(np.asarray(moved.shift) != 0)  # through the codes that were used, all codes move


def test_the_codebook_moves_first_and_is_looked_up_again(x64: None) -> None:
    """A step on the distances with the numbers fixed; the numbers that come back are of the new codes."""
    z, c = jnp.array([[0.4], [0.45], [1.2]]), jnp.array([[0.0], [1.0]])
    tx = optax.sgd(3.0)
    (q, i, loss), new, _ = alternate_codebook_update(tx, z, c, tx.init(c))
    # Of three numbers, two belong to the first code: 3 * 2 / 3 * (sum of distances).
    np.testing.assert_allclose(new, [[1.7], [1.4]], rtol=1e-12)
    np.testing.assert_array_equal(i, [1, 1, 1])
    assert_equal(q, jnp.full((3, 1), 1.4))
    assert_equal(loss, np.mean((np.asarray(z) - 1.4) ** 2))
    dz = jax.grad(lambda z: alternate_codebook_update(tx, z, c, tx.init(c))[0][2])(z)
    np.testing.assert_array_equal(dz, 0)


def test_with_affine_parameters_the_new_codebook_is_looked_up_too(x64: None) -> None:
    """The released code reads the one from before the step."""
    z, c = setting()
    pair, tx = (c, init_affine(2, 4)), optax.sgd(0.5)
    (q, i, _), (C, a), _ = alternate_codebook_update(tx, z, *pair[:1], tx.init(pair), pair[1])
    effective = affine_codebook(C, a)
    np.testing.assert_allclose(q, np.asarray(effective)[np.asarray(i)], rtol=1e-12)
    assert np.abs(np.asarray(a.shift)).max() > 0 and np.abs(np.asarray(C) - c).max() > 0


def test_codes_that_nobody_uses_come_back_beside_an_input(x64: None) -> None:
    z, c = setting()
    c = c.at[7].set(100.0)
    waited = jnp.full(8, 2, jnp.int32)
    for t in range(2):
        _, i, _ = vector_quantize(z, c)
        c, waited = replace_dead_codes(c, waited, i, z, t, timeout=2, rho=0.01)
        assert (float(c[7, 0]) == 100.0) == (t == 0)
    flat = np.asarray(z).reshape(-1, 4)
    nearest = np.linalg.norm(flat - np.asarray(c[7]), axis=1).min()
    # Noise of 0.01 of its length in each of four entries, five deviations of each.
    assert 0 < nearest < 0.01 * np.linalg.norm(flat, axis=1).max() * 5 * 2
    assert int(waited[7]) == 2 and np.all(np.asarray(waited)[np.unique(i)] == 2)


def test_short_numbers_and_bad_input() -> None:
    z, c = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((4, 3), jnp.bfloat16)
    q, _, loss = vector_quantize(z, c)
    assert q.dtype == jnp.bfloat16 and loss.dtype == jnp.float32
    with pytest.raises(ValueError, match="beta must be"):
        vector_quantize(z, c, beta=1.5)
    with pytest.raises(ValueError, match="z must end in an axis of 3"):
        vector_quantize(jnp.ones((2, 4)), c)
    with pytest.raises(ValueError, match="groups a divisor of 4"):
        affine_codebook(c, init_affine(3, 3))
    with pytest.raises(ValueError, match="at least one code"):
        vector_quantize(z, jnp.ones((0, 3)))
    with pytest.raises(ValueError, match="tx must be"):
        alternate_codebook_update(0.1, z, c, None)
