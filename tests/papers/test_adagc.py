"""AdaGC (Wang et al., 2025)."""

import jax.numpy as jnp
import numpy as np

import gradkit as gk
from tests.golden.translate import ARRAYS
from tests.papers.replay import assert_equal, normal, updates

STACKED = gk.leaves.layout((gk.leaves.by_rank(3), {"stack": (0,)}))


def test_norms_grow_by_a_bounded_factor(x64: None) -> None:
    """Gradients that grow tenfold; the mean of norms takes in the clipped ones."""
    g = normal(0, 5)
    g = g / jnp.linalg.norm(g)
    ours = updates(gk.adagc(warmup_steps=2, relative=1.2, beta=0.9), g, [g, g, *(g * 10.0**k for k in range(1, 5))])
    assert_equal([float(jnp.linalg.norm(u)) for u in ours], [1.0, 1.0, *(1.2 * 1.02**k for k in range(4))])


def test_constant_gradients_pass(x64: None) -> None:
    g = 0.5 * jnp.ones(2)
    assert_equal(updates(gk.adagc(warmup_steps=2), g, [g] * 6), [g] * 6)


def test_warm_up_clips_by_the_global_norm_then_every_tensor_by_itself(x64: None) -> None:
    g = {"a": jnp.asarray([3.0]), "b": jnp.asarray([4.0])}
    first, second = updates(gk.adagc(warmup_steps=1), g, [g, {"a": 100 * g["a"], "b": 0.01 * g["b"]}])
    assert_equal([first["a"], first["b"]], [jnp.asarray([0.6]), jnp.asarray([0.8])])
    assert_equal([second["a"], second["b"]], [jnp.asarray([1.05 * 0.6]), jnp.asarray([0.04])])


def test_tensor_without_gradients_in_the_warm_up_is_not_held_at_zero(x64: None) -> None:
    g = {"a": jnp.asarray([1.0]), "b": jnp.asarray([0.0])}
    later = {"a": jnp.asarray([np.nan]), "b": jnp.asarray([0.3])}
    _, one, two = updates(gk.adagc(warmup_steps=1), g, [g, later, {"a": g["a"] * 5, "b": jnp.asarray([9.0])}])
    assert_equal([one["b"], two["a"], two["b"]], [jnp.asarray([x]) for x in (0.3, 1.05, 1.05 * 0.3)])


def test_layers_of_a_stack_are_clipped_one_by_one(x64: None) -> None:
    gradients = [normal(i, 2, 3, 4) * jnp.asarray([1.0, 3.0**i]).reshape(2, 1, 1) for i in range(4)]
    tx, apart = (gk.adagc(warmup_steps=1, max_norm=jnp.inf, layout=layout) for layout in (STACKED, ARRAYS))
    together = updates(tx, gradients[0], gradients)
    for layer in range(2):
        assert_equal([u[layer] for u in together], updates(apart, gradients[0][layer], [g[layer] for g in gradients]))
