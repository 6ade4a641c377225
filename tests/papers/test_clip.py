"""Clipping by the global norm (Pascanu, Mikolov, Bengio, 2013)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_equals_optax_and_bounds_the_norm(x64: None) -> None:
    g = {"a": normal(0, 3), "b": normal(1, 2, 3)}
    for limit in (0.5, 1.0, 100.0):
        got = updates(gk.clip_by_global_norm(limit), g, [g])[0]
        assert_equal(got, updates(optax.clip_by_global_norm(limit), g, [g])[0])
        assert optax.tree.norm(got) <= limit * (1 + 1e-12)


def test_mean_of_microbatches_is_clipped_not_each(x64: None) -> None:
    """The order matters: clipped halves of opposite outliers cancel to a small mean, which needs no clipping."""
    a, b = jnp.array([10.0, 1.0]), jnp.array([-10.0, 1.0])
    assert_equal(updates(gk.clip_by_global_norm(1.0), a, [(a + b) / 2])[0], jnp.array([0.0, 1.0]))


def test_nonfinite_norms() -> None:
    g = {"a": jnp.array([jnp.inf, 1.0]), "b": jnp.array([jnp.nan])}
    zero = updates(gk.clip_by_global_norm(1.0, nonfinite="zero"), jax.tree.map(jnp.zeros_like, g), [g])[0]
    assert all(not np.any(u) for u in jax.tree.leaves(zero))
    visible = updates(gk.clip_by_global_norm(1.0), jax.tree.map(jnp.zeros_like, g), [g])[0]
    assert np.isnan(visible["a"]).any()


def test_publishes_norm_and_whether_it_clipped() -> None:
    tx = gk.clip_by_global_norm(1.0)
    g = jnp.array([3.0, 4.0])
    _, state = tx.update(g, tx.init(g))
    assert {k: float(v) for k, v in gk.diagnostics.metrics(state).items()} == {"gradient_norm": 5.0, "clipped": 1.0}
    _, state = tx.update(0.1 * g, state)
    assert float(gk.diagnostics.metrics(state)["clipped"]) == 0.0


LARGE = {
    "clip_by_global_norm": lambda: gk.clip_by_global_norm(1.0),
    "clip_by_block_norm": lambda: gk.clip_by_block_norm(1.0),
    "mars": lambda: gk.mars_correction(gamma=0.0, max_norm=1.0),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("how", ["jit", "eager"])
def test_numbers_whose_squares_overflow_keep_their_direction(name: str, how: str) -> None:
    """[3e25, 4e25] is [0.6, 0.8] times 5e25, as is [3, 4] times a power of ten; an infinite norm stays infinite."""
    tx = LARGE[name]()
    x = {"w": jnp.zeros(2)}
    update = jax.jit(tx.update) if how == "jit" else tx.update
    for scale in (1.0, 1e10, 1e25, 1e37):
        u, _ = update({"w": jnp.array([3.0, 4.0]) * scale}, tx.init(x), x)
        # Three roundings: of the norm, its inverse and the product.
        np.testing.assert_allclose(np.asarray(u["w"]), [0.6, 0.8], rtol=4 * 2**-23)


def test_a_guard_takes_a_large_number_for_a_spike_and_not_for_one_that_is_not_finite() -> None:
    for on, skipped in (("nonfinite", 0.0), ("spike", 1.0)):
        tx = gk.guard(optax.identity(), on=on, window_size=4)
        state = tx.init({"w": jnp.zeros(2)})
        for scale in (1.0, 1.1, 0.9, 1.0, 1e25):
            _, state = tx.update({"w": jnp.array([3.0, 4.0]) * scale}, state)
        assert float(state.metrics["skipped"]) == skipped


def test_the_first_step_of_shampoo_is_as_long_as_of_smaller_gradients() -> None:
    """The power of the roots undoes the length of the first gradient; above 1e14 it is made shorter beforehand."""
    G = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((3, 3)), jnp.float32)}
    for make in (
        lambda: gk.scale_by_shampoo(eps=0.0, start_preconditioning_step=1),
        lambda: gk.distributed_shampoo(1.0, eps=0.0, grafting=None, merge_dims=False, start_preconditioning_step=1),
    ):
        steps = []
        for scale in (1.0, 2.0**66, 2.0**100):
            tx = make()
            u, _ = tx.update({"w": G["w"] * scale}, tx.init(G), G)
            steps.append(np.asarray(u["w"]))
        for step in steps[1:]:
            # Roots of float32 statistics whose condition is below 1000, to the power 1/4.
            np.testing.assert_allclose(step, steps[0], rtol=0, atol=100 * 2**-23)
