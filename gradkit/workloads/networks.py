"""What several workloads share: the multilayer perceptron, and drawing parameters and minibatches."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gradkit.leaves import infer_layout, names
from gradkit.types import PyTree


class MLP(nn.Module):
    """Dense layers with an activation between them: `Dense_0`, `Dense_1`, …

    Attributes:
      widths: outputs of each layer.
      activation: applied after every layer but the last.
    """

    widths: Sequence[int]
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, width in enumerate(self.widths):
            x = nn.Dense(width)(x if i == 0 else self.activation(x))
        return x


def initializer(network: nn.Module, example: jax.Array, *, gain: float) -> Callable[[jax.Array], Any]:
    """A function key -> parameters: kernels from N(0, gain / inputs), embeddings from N(0, 0.01), biases 0, scales 1.

    Flax draws leaf by leaf, and on a CPU every draw adds half a second of compilation; here all leaves
    are cut from one draw.

    Args:
      network: its `init` says which leaves there are; how many inputs a kernel has is read off the layout.
      example: one input.
      gain: 2 before a relu, 1 otherwise.
    """
    abstract = jax.eval_shape(network.init, jax.random.key(0), example)["params"]
    leaves, structure = jax.tree.flatten(abstract)
    layout, scales, constants = infer_layout(abstract), [], []
    for path, leaf in zip(names(abstract), leaves, strict=True):
        axes, last = layout(path, leaf.shape), path.split("/")[-1]
        spread = {"kernel": math.sqrt(gain / max(1, math.prod(leaf.shape[a] for a in axes.inputs))), "embedding": 0.1}
        scales.append(spread.get(last, 0.0))
        constants.append(1.0 if last == "scale" else 0.0)

    def init(key: jax.Array) -> Any:
        draw = jax.random.normal(key, (sum(leaf.size for leaf in leaves),), jnp.float32)
        start, drawn = 0, []
        for leaf, scale, constant in zip(leaves, scales, constants, strict=True):
            drawn.append(scale * draw[start : start + leaf.size].reshape(leaf.shape) + constant)
            start += leaf.size
        return structure.unflatten(drawn)

    return init


def apply(network: nn.Module, params: PyTree, x: jax.Array) -> jax.Array:
    """The output of a network that has no state but its parameters and gives one array."""
    return jnp.asarray(network.apply({"params": params}, x))


def indices(key: jax.Array, size: int, below: int) -> jax.Array:
    """`size` indices in [0, below), with replacement.

    One draw of bits and a remainder; its bias, below / 2^32, cannot be measured, and it compiles three
    times as fast as `jax.random.randint`.
    """
    return (jax.random.bits(key, (size,), jnp.uint32) % jnp.uint32(below)).astype(jnp.int32)


def sample(key: jax.Array, arrays: Any, size: int) -> Any:
    """A minibatch: `size` rows of every array, drawn with replacement."""
    rows = indices(key, size, len(jax.tree.leaves(arrays)[0]))
    return jax.tree.map(lambda array: array[rows], arrays)
