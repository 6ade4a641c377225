"""Moments of batch normalization for weights that were not trained with them (Ioffe, Szegedy, 2015)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gradkit.layers import recompute_batch_stats
from tests.papers.replay import assert_equal, normal


class Net(nn.Module):
    """Two normalised layers of different momentum; moments of the second depend on what the first puts out."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.BatchNorm(use_running_average=False, momentum=0.99, use_fast_variance=False)(x)
        return nn.BatchNorm(use_running_average=False, momentum=0.5, use_fast_variance=False)(nn.Dense(2)(x))


def test_the_result_is_the_mean_over_batches_whatever_was_there_before() -> None:
    """Batches of 6, 6 and 3, each counting by its examples. 1 - m = 0.01 is known to some 2^-22 / 0.01."""
    net, batches = Net(), [100 + 30 * normal(i, n, 3).astype(jnp.float32) for i, n in enumerate((6, 6, 3))]
    variables = net.init(jax.random.key(0), batches[0])

    def apply(stats: Any, x: jax.Array) -> Any:
        return net.apply({**variables, "batch_stats": stats}, x, mutable=["batch_stats"])[1]["batch_stats"]

    old = jax.tree.map(lambda r: r + 7, variables["batch_stats"])
    got = recompute_batch_stats(apply, iter(batches), old)
    dense = variables["params"]["Dense_0"]

    def second(x: jax.Array) -> jax.Array:
        z = (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)
        return z @ dense["kernel"] + dense["bias"].reshape(1, 2)

    for name, of in (("BatchNorm_0", lambda x: x), ("BatchNorm_1", second)):
        for what, moment in (("mean", jnp.mean), ("var", jnp.var)):
            want = sum(len(x) * np.asarray(moment(of(x), axis=0)) for x in batches) / 15
            assert_equal(got[name][what], want, rtol=2e-4, atol=2e-4)
    assert jax.tree.structure(got) == jax.tree.structure(old)


def test_bad_input() -> None:
    stats = {"mean": jnp.zeros(3)}
    with pytest.raises(ValueError, match="batches must have one batch or more"):
        recompute_batch_stats(lambda s, x: s, [], stats)
    with pytest.raises(ValueError, match="momentum of every layer must be below 1"):
        recompute_batch_stats(lambda s, x: s, [jnp.ones((2, 3))], stats)
    with pytest.raises(ValueError, match="apply must be callable"):
        recompute_batch_stats(None, [], stats)  # pyright: ignore[reportArgumentType]
