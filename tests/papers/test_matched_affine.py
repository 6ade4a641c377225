"""A codebook that follows the moments of what it quantizes (Huh et al., 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.layers import affine_codebook, init_affine_statistics, matched_affine
from tests.papers.replay import assert_equal, normal


def test_codes_are_matched_to_the_running_moments_of_the_vectors(x64: None) -> None:
    """The first batch as it is, where the codes get its mean and variance; the second by a tenth; all in NumPy."""
    c, kept = normal(1, 8, 4), None
    statistics = init_affine_statistics(4)
    for seed in (0, 5):
        z = 3 * normal(seed, 6, 5, 4) + 2
        affine, statistics = matched_affine(statistics, z, c)
        flat = np.asarray(z).reshape(-1, 4)
        batch = [flat.mean(0), flat.var(0), np.asarray(c).mean(0), np.asarray(c).var(0)]
        kept = batch if kept is None else [0.9 * a + 0.1 * b for a, b in zip(kept, batch, strict=True)]
        s = np.sqrt(kept[1] / (kept[3] + 1e-8))
        moved = affine_codebook(c, affine, affine_rate=1.0)
        assert_equal(moved, s * (np.asarray(c) - kept[2]) + kept[0], rtol=1e-9)
        if seed == 0:
            assert_equal(jnp.mean(moved, 0), flat.mean(0), rtol=1e-7)
            assert_equal(jnp.var(moved, 0), flat.var(0), rtol=1e-6)  # of 1e-8 beside variances near 1
    assert statistics.count == 2
    assert not np.any(jax.grad(lambda z: jnp.sum(matched_affine(statistics, z, c)[0].scale))(normal(6, 3, 4)))
    with pytest.raises(ValueError, match="init_affine_statistics"):
        matched_affine(init_affine_statistics(3), normal(0, 5, 4), c)
