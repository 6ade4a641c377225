"""Multiplicative noise: the gradient of a large batch with the covariance of that of a small one."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype
from gradkit.engine.keys import as_key
from gradkit.types import Key, Scalar

PAPER = Paper(
    "Train longer, generalize better: closing the generalization gap in large batch training of neural networks",
    "Hoffer, Hubara, Soudry",
    2017,
    "1705.08741",
)


def multiply_by_noise(key: Key, example_grads: Any, std: Scalar) -> Any:
    """The mean of gradients of single examples, each multiplied by a random number around 1.

    Equations:

        g = (1 / B) sum_n z_n g_n,   z_n ~ N(1, std^2) independent,   n = 1 .. B examples

    Args:
      key: a random key (typed key or integer), another one in every step.
      example_grads: tree of gradients with a leading axis of one entry per example, as
        `jax.vmap(jax.grad(loss), in_axes=(None, 0))` gives.
      std: standard deviation of the factors, >= 0. A variance in proportion to the batch gives a step the covariance
        that it has with a batch of 1: the mean of g_n g_n^T over examples, times std^2 / B, is added to it.

    Returns:
      The gradient: the tree without the leading axis, in its dtypes. An example has one factor for all leaves.

    Raises:
      ValueError: a negative or NaN `std`; leaves without a common leading axis of one example or more.

    Example:
      >>> g = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
      >>> multiply_by_noise(jax.random.key(0), g, 0.0)["w"].tolist()
      [2.0, 3.0]

    Reference: Hoffer, Hubara, Soudry. Train longer, generalize better: closing the generalization gap in large batch
    training of neural networks. 2017, arXiv 1705.08741. The proportion of std^2 to the batch is from its argument about
    the covariance of a step, not from a formula of its code.
    """
    checks.arrays(example_grads=example_grads)
    checks.real("std", std, "[0, inf)")
    leaves = jax.tree.leaves(example_grads)
    sizes = {jnp.shape(g)[:1] for g in leaves}
    if leaves and (len(sizes) > 1 or sizes <= {(), (0,)}):
        raise ValueError(f"example_grads must have one leading axis of examples, got lengths {sorted(sizes)}")
    (B,) = sizes.pop() if leaves else (1,)
    noise = jax.random.normal(as_key(key), (B,), jnp.float32)

    def mean(g: jax.Array) -> jax.Array:
        wide = wide_dtype(g.dtype)
        real = jnp.finfo(wide).dtype
        z = 1 + jnp.asarray(std).astype(real) * noise.astype(real)
        return jnp.tensordot(z.astype(wide), g.astype(wide), axes=1, precision="highest").astype(g.dtype) / B

    return jax.tree.map(mean, example_grads)


register(
    multiply_by_noise,
    form="layer",
    paper=PAPER,
    example={"example_grads": {"w": jax.ShapeDtypeStruct((16, 8), "float32")}, "std": 0.5},
    notes="a function of gradients of single examples, in place of their mean",
)
