"""The importance of layers by the similarity of their inputs and outputs, and the rank to keep of each."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, wide_dtype
from gradkit.types import Scalar

PAPER = Paper(
    "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning",
    "Nayak et al.",
    2025,
    "2504.07097",
)


def _cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean over tokens of the cosine of input and output, arrays (..., tokens, d)."""
    x, y = (v.astype(wide_dtype(v.dtype)) for v in (x, y))
    product = jnp.sqrt(jnp.sum(x * x, axis=-1)) * jnp.sqrt(jnp.sum(y * y, axis=-1))
    return jnp.mean(divide(jnp.sum(x * y, axis=-1), product), axis=-1)


def layer_importance(inputs: Any, outputs: Any, *, normalize: bool = True) -> Any:
    """How similar the output of each layer is to its input.

    Equations:

        I_l = mean over tokens of cos(x, W_l x)
        I_l <- I_l / mean over layers of I                        normalize=True

    Args:
      inputs: a tree with the inputs of one layer per leaf, (tokens, d); or of stacked layers (layers, tokens, d).
      outputs: the outputs, a tree of the same shapes: layers must be square.
      normalize: whether the mean over all layers is 1. Default True (official code).

    Returns:
      A tree of scalars, of stacked layers (layers,). A token of zeros counts as 0.

    Raises:
      ValueError: outputs of another shape than the inputs; fewer than two axes; numbers that are not floating point.

    Example:
      >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> found = layer_importance({"a": x, "b": x}, {"a": 3 * x, "b": x + x[:, ::-1]})
      >>> {name: round(float(value), 3) for name, value in found.items()}  # 1 and sqrt(1/2), over their mean
      {'a': 1.172, 'b': 0.828}

    Reference: Nayak et al. Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning. 2025,
    arXiv 2504.07097.
    """
    checks.arrays(inputs=inputs, outputs=outputs)
    checks.switch(normalize=normalize)
    inputs, outputs = (jax.tree.map(jnp.asarray, tree) for tree in (inputs, outputs))
    for x, y in zip(jax.tree.leaves(inputs), jax.tree.leaves(outputs), strict=True):
        floating = all(jnp.issubdtype(v.dtype, jnp.floating) for v in (x, y))
        if x.shape != y.shape or x.ndim < 2 or not floating:
            raise ValueError(f"inputs and outputs must be floating point (..., tokens, d), got {x.shape} and {y.shape}")
    found = jax.tree.map(_cosine, inputs, outputs)
    if not normalize or not jax.tree.leaves(found):
        return found
    # All in one dtype, also where those of the layers differ.
    mean = jnp.mean(jnp.concatenate([jnp.atleast_1d(x).reshape(-1).astype(float) for x in jax.tree.leaves(found)]))
    return jax.tree.map(lambda x: divide(x, jnp.broadcast_to(mean.astype(x.dtype), x.shape)), found)


def retained_rank(importance: Any, d: int, *, min_ratio: Scalar = 0.1, target_ratio: Scalar = 0.8) -> Any:
    """How many singular directions of each layer are protected from further training.

    Equations, with the importance I_l of `layer_importance`:

        r_l = floor(min(d (min_ratio + I_l (target_ratio - min_ratio)), d))

    Args:
      importance: what `layer_importance` returns: numbers of mean 1.
      d: the short side of the layers, >= 1.
      min_ratio: fraction of d for a layer of importance 0, in [0, 1]. Default 0.1 (unverified).
      target_ratio: fraction of d for a layer of mean importance, in [0, 1]. Default 0.8 (unverified). The released
        scripts have the fixed fractions 0.25, 0.5 and 0.75 instead.

    Returns:
      A tree of int32 numbers from 0 to d; convert them to Python numbers for `gk.linalg.svd_subspace`.

    Raises:
      ValueError: an argument outside its range, or a target below the minimum.

    Example:
      >>> retained_rank(jnp.array([0.5, 1.0, 1.5]), 100).tolist()
      [45, 80, 100]

    Reference: Nayak et al. Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning. 2025,
    arXiv 2504.07097.
    """
    checks.arrays(importance=importance)
    checks.integer("d", d, 1)
    checks.real("min_ratio", min_ratio, "[0, 1]")
    checks.real("target_ratio", target_ratio, "[0, 1]")
    if isinstance(min_ratio, int | float) and isinstance(target_ratio, int | float) and target_ratio < min_ratio:
        raise ValueError(f"target_ratio must be at least min_ratio, got {target_ratio} and {min_ratio}")

    def rank(importance: Any) -> jax.Array:
        own = jnp.asarray(importance)
        low, high = (jnp.asarray(value).astype(own.dtype) for value in (min_ratio, target_ratio))
        # A number that rounding has put just below an integer counts as that integer.
        share = d * (low + own * (high - low)) * (1 + 4 * jnp.finfo(own.dtype).eps)
        return jnp.clip(jnp.floor(share), 0, d).astype(jnp.int32)

    return jax.tree.map(rank, importance)


OPT_OUTS = dict.fromkeys(
    ("pure", "missing", "abstract", "bad input", "mesh"), "a function of measurements, which keeps no state"
)
TOKENS = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
register(
    layer_importance,
    form="diagnostic",
    paper=PAPER,
    example={"inputs": TOKENS, "outputs": TOKENS},
    opt_outs=OPT_OUTS,
)
register(
    retained_rank,
    form="diagnostic",
    paper=PAPER,
    example={"importance": 1.0, "d": 4},
    opt_outs=OPT_OUTS,
)
