"""Per-example clipping with noise (DP-SGD): a step whose dependence on any single example is bounded and hidden.

With the gradients g_1 ... g_B of the examples of a batch, a norm C and a noise multiplier sigma:

    g_i' = g_i / max(1, |g_i| / C)                               |.| over the whole tree
    result = (g_1' + ... + g_B' + sigma C z) / B                 z standard normal
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import aggregator
from gradkit.catalogue import Paper, register
from gradkit.engine.core import abs_sq, real_dtype, scalar, wide_dtype, zeros
from gradkit.engine.keys import NoKey, check_key, first_key, next_key
from gradkit.engine.lazy_gradients import LazyGradients, fold
from gradkit.types import Key, PyTree, Scalar

NAME = "differentially_private_aggregate"
PAPER = Paper("Deep Learning with Differential Privacy", "Abadi et al.", 2016, "1607.00133")


class DifferentiallyPrivateAggregateState(NamedTuple):
    """The random key of the next step; None where it comes with the step."""

    key: Any


def clipped_sum(gradients: PyTree, l2_norm_clip: Any) -> Any:
    """The sum over a leading axis of gradients, each scaled down to the norm C where it is above; float32 or wider."""
    leaves = jax.tree.leaves(gradients)
    wide = max((real_dtype(wide_dtype(x.dtype)) for x in leaves), key=lambda dtype: dtype.itemsize)

    def squares(x: jax.Array) -> jax.Array:
        return jnp.sum(abs_sq(x.astype(wide_dtype(x.dtype))), axis=tuple(range(1, x.ndim))).astype(wide)

    norms = jnp.sqrt(sum(map(squares, leaves), jnp.zeros(len(leaves[0]), wide)))
    divisors = jnp.maximum(norms / scalar(l2_norm_clip, norms), jnp.ones((), wide))

    def leaf(x: jax.Array) -> jax.Array:
        x = x.astype(wide_dtype(x.dtype))
        return jnp.sum(x / divisors.astype(real_dtype(x.dtype)).reshape(-1, *[1] * (x.ndim - 1)), axis=0)

    return jax.tree.map(leaf, gradients)


def differentially_private_aggregate(
    l2_norm_clip: Any, noise_multiplier: Scalar, *, key: Key | None = None, axis_name: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Per-example clipping and Gaussian noise, as in DP-SGD: the mean of clipped gradients, plus noise.

    With the gradients g_1 ... g_B of the examples, and z standard normal, of the shape of the parameters:

        g_i' = g_i / max(1, |g_i| / C),    result = (g_1' + ... + g_B' + sigma C z) / B

    What (epsilon, delta) a run spends follows from sigma, from the probability with which an example is in a batch, and
    from the number of steps. That accounting is not done here: use a library for it (dp-accounting), and draw batches
    as its theorem asks. Losses and other metrics of a step are not private.

    Args:
      l2_norm_clip: C > 0, the largest norm that the gradient of one example has in the sum, over the whole tree. The
        paper suggests the median of the norms at the beginning.
      noise_multiplier: sigma >= 0, the standard deviation of the noise in the sum, as a multiple of C.
      key: a random key (typed key or integer) from which the noise of all steps follows. Default None: `update` needs
        `key=`, which takes precedence where both are given. The same on all replicas, so that noise is added once.
      axis_name: axis of `vmap` or `shard_map` whose members hold the gradients of other examples of the batch; the sum
        is then over all of them, one all-reduce. Default None. Under `jit` on a mesh nothing is to be said.

    Returns:
      A transformation whose updates come in as one gradient per example, and leave as one. Put it first in a chain:
      `optax.chain(differentially_private_aggregate(1.0, 1.1, key=0), gk.adam(1e-3))`. With
      `gk.gradients.example_gradients`, which loops take by themselves for such a chain, no more than a chunk of
      gradients is in memory; a tree that is stacked along a leading axis is taken as well. State: a key.

    Raises:
      ValueError: at construction, a hyperparameter outside its range, a key that is none; when called, no key, leading
        axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = differentially_private_aggregate(1.0, 0.0, key=0)
      >>> g = jnp.array([[3.0, 4.0], [0.0, 0.5]])
      >>> print(tx.update(g, tx.init(g[0]))[0])
      [0.3  0.65]

    Reference: Abadi et al. Deep Learning with Differential Privacy. 2016, arXiv 1607.00133, Algorithm 1. The paper
    divides by the expected size of a batch drawn example by example; this divides by the number of gradients, as
    `optax.contrib.differentially_private_aggregate` does, whose noise is the same for the same key.
    """
    checks.axis_name("axis_name", axis_name)
    checks.real("l2_norm_clip", l2_norm_clip, "(0, inf)")
    checks.real("noise_multiplier", noise_multiplier, "[0, inf)")
    check_key(key)

    def init(params: Any) -> DifferentiallyPrivateAggregateState:
        del params
        return DifferentiallyPrivateAggregateState(first_key(key))

    def update(gradients: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        del params
        given = next_key(NAME, None, extra.get("key"))[1]
        now = state.key if given is None else given
        if now is None:
            raise NoKey(NAME)
        if isinstance(gradients, LazyGradients):
            like, count = gradients.like, gradients.count
        else:
            count = jax.tree.leaves(gradients)[0].shape[0]
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), gradients)

        def add(total: Any, part: Any, numbers: jax.Array) -> Any:
            del numbers
            return jax.tree.map(jnp.add, total, clipped_sum(part, l2_norm_clip))

        total = fold(gradients, add, zeros(like))
        if axis_name is not None:
            total, count = jax.lax.psum(total, axis_name), count * jax.lax.axis_size(axis_name)
        leaves, structure = jax.tree.flatten(total)
        after, *own = jax.random.split(now, len(leaves) + 1)

        def noisy(x: jax.Array, k: jax.Array, g: Any) -> jax.Array:
            std = scalar(l2_norm_clip * noise_multiplier, x)
            return ((x + std * jax.random.normal(k, x.shape, x.dtype)) / count).astype(g.dtype)

        noise = [noisy(x, k, g) for x, k, g in zip(leaves, own, jax.tree.leaves(like), strict=True)]
        kept = DifferentiallyPrivateAggregateState(after) if given is None else state
        return structure.unflatten(noise), kept

    return aggregator(NAME, update, init=init, of="examples", complex_leaves=False)


register(
    differentially_private_aggregate,
    form="aggregator",
    paper=PAPER,
    needs=("key",),
    collectives="norms",
    example={"l2_norm_clip": 1.0, "noise_multiplier": 0.0},
    notes="DP-SGD; privacy accounting is out of scope; needs `key` in every update, or once at construction",
)
