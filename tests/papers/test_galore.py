"""GaLore (Zhao et al., 2024)."""

import jax
import jax.numpy as jnp

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_first_step_and_other_leaves(x64: None) -> None:
    """A matrix of rank 1: in its basis Adam's first step is one of signs. Other leaves are Adam."""
    a, b = normal(0, 4), normal(1, 6)
    x = {"kernel": jnp.outer(a, b), "bias": normal(2, 4), "embed": {"embedding": normal(3, 5, 2)}}
    got = updates(gk.galore(0.1, rank=1, eps=0.0), x, [x])[0]
    assert_equal(got["kernel"], -0.1 * 0.25 * jnp.outer(a / jnp.linalg.norm(a), jnp.sign(b)), 1e-12, 1e-12)
    assert_equal(got["bias"], -0.1 * jnp.sign(x["bias"]))
    assert_equal(got["embed"]["embedding"], -0.1 * jnp.sign(x["embed"]["embedding"]))


def test_eps_stands_before_the_correction_or_behind_it(x64: None) -> None:
    """Before it, eps counts 1 / sqrt(1 - b2) as much in the first step."""
    x = {"bias": normal(0, 4)}
    before = updates(gk.galore(1.0, eps=0.1), x, [x])[0]["bias"]
    assert_equal(before, -x["bias"] / (jnp.abs(x["bias"]) + 0.1 / jnp.sqrt(1 - 0.999)), 1e-9)
    behind = updates(gk.galore(1.0, eps=0.1, eps_in_hat=True), x, [x])[0]["bias"]
    assert_equal(behind, updates(gk.adam(1.0, eps=0.1), x, [x])[0]["bias"])


def test_state_is_that_of_the_paper() -> None:
    """Table 1: n r + 2 r m, against 2 n m of Adam: here 0.44 of it, from published proportions."""
    n, m, r = 128, 512, 32
    params = {"kernel": jax.ShapeDtypeStruct((m, n), jnp.float32)}
    words = sum(x.size for x in jax.tree.leaves(jax.eval_shape(gk.galore(0.1, rank=r).init, params)) if x.ndim > 1)
    assert words == n * r + 2 * r * m


def test_decay_is_the_chains(x64: None) -> None:
    x = {"kernel": normal(0, 3, 4)}
    zero = jax.tree.map(jnp.zeros_like, x)
    assert_equal(updates(gk.galore(0.1, rank=1, weight_decay=0.5), x, [zero])[0], {"kernel": -0.05 * x["kernel"]})
