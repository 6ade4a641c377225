"""The limit on the growth of norms (Fira, Chen et al., 2024)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


@pytest.mark.parametrize("block", ["tensor", "global"])
def test_norms_grow_no_faster_than_gamma(block: str, x64: None) -> None:
    """Shrinking is free, directions stay, and where there is no growth nothing happens."""
    sizes = np.exp(np.random.default_rng(0).standard_normal(12))
    g = [{"a": s * normal(1, 3, 4), "b": 2 * s * normal(2, 5)} for s in sizes]
    out = updates(gk.limit_norm_growth(1.5, block=block), g[0], g)
    norm = lambda t: np.array([float(jnp.linalg.norm(x)) for x in jax.tree.leaves(t)])  # noqa: E731
    got, want = np.array([norm(u) for u in out]), np.array([norm(x) for x in g])
    if block == "global":
        got, want = np.linalg.norm(got, axis=1, keepdims=True), np.linalg.norm(want, axis=1, keepdims=True)
    assert_equal(got[0], want[0])
    for t in range(1, 12):
        # What the definition says, with its floor.
        assert_equal(got[t], np.minimum(want[t], 1.5 * (got[t - 1] + 1e-8)))
    assert (got < want * 0.99).any() and (got[1:] < got[:-1]).any()
    for u, x in zip(out, g, strict=True):
        assert_equal(u["a"] / jnp.linalg.norm(u["a"]), x["a"] / jnp.linalg.norm(x["a"]))


def test_infinity_limits_nothing_and_zeros_start_again(x64: None) -> None:
    g = [normal(i, 4) * 10.0**i for i in range(3)]
    assert_equal(updates(gk.limit_norm_growth(jnp.inf), g[0], g), g)
    first = [g[0], jnp.zeros(4), g[2]]
    assert_equal(updates(gk.limit_norm_growth(1.01), g[0], first), first)


def test_layers_of_a_stack_are_tensors(x64: None) -> None:
    g = [{"ScanBlock_0": {"kernel": normal(i, 2, 3, 4) * jnp.array([1.0, 5.0**i]).reshape(2, 1, 1)}} for i in range(3)]
    got = updates(gk.limit_norm_growth(1.1), g[0], g)
    for layer in range(2):
        own = [x["ScanBlock_0"]["kernel"][layer] for x in g]
        alone = updates(gk.limit_norm_growth(1.1), own[0], own)
        assert_equal([x["ScanBlock_0"]["kernel"][layer] for x in got], alone)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="gamma must be in"):
        gk.limit_norm_growth(0.99)
    with pytest.raises(ValueError, match="block must be one of"):
        gk.limit_norm_growth(block="unit")
