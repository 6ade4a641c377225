"""Update clipping (Wortsman et al., 2023)."""

import jax.numpy as jnp
import optax

import gradkit as gk
from tests.golden.translate import ARRAYS
from tests.papers.replay import assert_equal, normal, updates

STACKED = gk.leaves.layout((gk.leaves.by_rank(3), {"stack": (0,)}))


def test_layers_of_a_stack_are_clipped_one_by_one(x64: None) -> None:
    gradients = [normal(i, 2, 3, 4) * jnp.asarray([1.0, 10.0**i]).reshape(2, 1, 1) for i in range(3)]
    tx = gk.clip_by_update_rms(gk.scale_by_adam(b2=0.5), b2=0.5, layout=STACKED)
    apart = gk.clip_by_update_rms(gk.scale_by_adam(b2=0.5), b2=0.5, layout=ARRAYS)
    together = updates(tx, gradients[0], gradients)
    for layer in range(2):
        assert_equal([u[layer] for u in together], updates(apart, gradients[0][layer], [g[layer] for g in gradients]))


def test_second_moment_of_adam_or_one_of_its_own(x64: None) -> None:
    """Without an Adam inside the clipped gradient is what the same factors make of it."""
    gradients = [normal(i, 4) * 10.0**i for i in range(3)]
    own = updates(gk.clip_by_update_rms(optax.identity(), b2=0.5), gradients[0], gradients)
    adam = gk.scale_by_adam(b1=0.0, b2=0.5)
    with_adam = updates(gk.clip_by_update_rms(adam, b2=0.5), gradients[0], gradients)
    plain = updates(adam, gradients[0], gradients)
    for u, g, clipped, whole in zip(own, gradients, with_adam, plain, strict=True):
        assert_equal(u / g, clipped / whole)
    assert float((own[2] / gradients[2])[0]) < 0.9
