"""The layers that Flax serves do what their papers say, by the conventions that their cards name."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from gradkit.layers import batch_norm, layer_norm
from tests.papers.replay import assert_equal, normal


def test_layer_norm_is_over_the_features_of_an_example() -> None:
    """The library's and linen's, with eps 1e-6; float32, so to a few of its roundings."""
    x = normal(0, 5, 4).astype(jnp.float32)
    want = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    assert layer_norm() is nnx.LayerNorm
    assert_equal(layer_norm()(4, rngs=nnx.Rngs(0))(x), want, rtol=1e-4, atol=1e-5)
    assert_equal(nn.LayerNorm().apply({"params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}, x), want, 1e-4, 1e-5)


def test_batch_norm_keeps_a_share_of_its_population_moments() -> None:
    """Momentum is what stays, and the variance divides by n."""
    x = normal(0, 8, 3).astype(jnp.float32)
    assert batch_norm() is nnx.BatchNorm
    layer = batch_norm()(3, momentum=0.75, rngs=nnx.Rngs(0))
    y = layer(x, use_running_average=False)
    assert_equal(y, (x - x.mean(0, keepdims=True)) / np.sqrt(x.var(0, keepdims=True) + 1e-5), rtol=1e-4, atol=1e-5)
    assert_equal(layer.mean.get_value(), 0.25 * x.mean(0), rtol=1e-5, atol=1e-6)
    assert_equal(layer.var.get_value(), 0.75 + 0.25 * x.var(0), rtol=1e-5)
