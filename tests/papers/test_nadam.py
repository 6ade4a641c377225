"""NAdam (Dozat, 2016; Ruder, 2016)."""

import jax
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


@pytest.mark.parametrize("psi", [0.0, 0.004, 0.3])
def test_warming_momentum(psi: float, x64: None) -> None:
    gradients = [normal(i, 6) for i in range(7)]
    b1, b2, eps = 0.8, 0.9, 1e-3
    mus = [b1 * (1 - 0.5 * 0.96 ** (t * psi)) for t in range(1, 9)]
    m = v = np.zeros(6)
    got = updates(gk.nadam(0.5, b1=b1, b2=b2, eps=eps, momentum_decay=psi), gradients[0], gradients)
    for t, (g, u) in enumerate(zip(gradients, got, strict=True)):
        m, v = b1 * m + (1 - b1) * np.asarray(g), b2 * v + (1 - b2) * np.asarray(g) ** 2
        n = mus[t + 1] * m / (1 - np.prod(mus[: t + 2])) + (1 - mus[t]) * np.asarray(g) / (1 - np.prod(mus[: t + 1]))
        assert_equal(u, -0.5 * n / (np.sqrt(v / (1 - b2 ** (t + 1))) + eps))


def test_constant_momentum_is_the_one_of_optax(x64: None) -> None:
    gradients = [normal(i, 6) for i in range(7)]
    with jax.numpy_dtype_promotion("standard"):  # optax promotes its counters implicitly
        want = updates(optax.nadam(0.1, eps=1e-4), gradients[0], gradients)
    # optax takes 1 - b^t in float32, since its counter is int32.
    assert_equal(updates(gk.nadam(0.1, eps=1e-4), gradients[0], gradients), want, rtol=1e-6)


def test_no_warm_up_keeps_the_factor_of_one_half(x64: None) -> None:
    g = [normal(i, 6) for i in range(4)]
    halved = updates(gk.nadam(0.1, momentum_decay=0.0), g[0], g)
    assert not np.allclose(halved[-1], updates(gk.nadam(0.1), g[0], g)[-1], rtol=1e-2)
