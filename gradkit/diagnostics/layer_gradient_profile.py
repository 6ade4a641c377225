"""How large the gradients of a model's layers are, and how evenly so."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.arrays import reals
from gradkit.leaves import names
from gradkit.types import PyTree

PAPER = Paper(
    "What Happened in LLMs Layers when Trained for Fast vs. Slow Thinking: A Gradient Perspective",
    "Li et al.",
    2024,
    "2410.23743",
)


class LayerGradientProfile(NamedTuple):
    """Of every projection: the nuclear norms of its gradient, (layers,), and the mean absolute difference of
    neighbours, a scalar. Trees like the gradients."""

    nuclear_norm: Any
    mean_absolute_difference: Any


def layer_gradient_profile(grads: PyTree) -> LayerGradientProfile:
    """The nuclear norm of the gradient of every layer, and how much it changes from one layer to the next.

        s_l = sum of the singular values of G_l
        MAD = mean over l of |s_{l+1} - s_l|

    Answers that are learned without their steps of reasoning have larger gradients, which differ more between layers.

    Args:
      grads: tree of gradients of projections (Q, K, V, O, ...), each stacked over layers: (layers, rows, columns).

    Returns:
      `LayerGradientProfile` of trees like `grads`, in float32 or wider; MAD of a single layer is 0.

    Raises:
      ValueError: a leaf that has not three axes, or is not floating point.

    Example:
      >>> g = jnp.stack([jnp.eye(2), 3 * jnp.eye(2)])
      >>> found = layer_gradient_profile({"q": g})
      >>> found.nuclear_norm["q"].tolist(), float(found.mean_absolute_difference["q"])
      ([2.0, 6.0], 4.0)

    Reference: Li et al. What Happened in LLMs Layers when Trained for Fast vs. Slow Thinking: A Gradient Perspective.
    2024, arXiv 2410.23743.
    """

    def nuclear(name: str, g: Any) -> jax.Array:
        g = reals("layer_gradient_profile", f"the leaf {name!r} of grads", g, 3)
        return jnp.sum(jnp.linalg.svd(g, compute_uv=False), axis=-1)

    def apart(s: jax.Array) -> jax.Array:
        return jnp.mean(jnp.abs(jnp.diff(s))) if len(s) > 1 else jnp.zeros((), s.dtype)

    norms = jax.tree.map(nuclear, jax.tree.unflatten(jax.tree.structure(grads), names(grads)), grads)
    return LayerGradientProfile(norms, jax.tree.map(apart, norms))


def profile_difference(a: LayerGradientProfile, b: LayerGradientProfile) -> Any:
    """How much the gradients of one data set are larger or smaller than those of another, layer by layer.

        |s_A - s_B| / s_B

    Args:
      a: `layer_gradient_profile` of the first data set.
      b: the one it is compared with, of the same model.

    Returns:
      A tree like the gradients, (layers,) each; 0 where both are 0.

    Raises:
      ValueError: profiles of different models.

    Example:
      >>> one, two = (layer_gradient_profile(c * jnp.ones((1, 2, 2))) for c in (1.0, 2.0))
      >>> profile_difference(one, two).round(3).tolist()
      [0.5]

    Reference: Li et al. What Happened in LLMs Layers when Trained for Fast vs. Slow Thinking: A Gradient Perspective.
    2024, arXiv 2410.23743. The definition could not be verified.
    """
    checks.instance("a", a, LayerGradientProfile)
    checks.instance("b", b, LayerGradientProfile)
    shapes = [jax.tree.map(jnp.shape, x.nuclear_norm) for x in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"profile_difference: a and b must be of one model, got {shapes[0]} and {shapes[1]}")

    def relative(x: jax.Array, y: jax.Array) -> jax.Array:
        change = jnp.abs(x - y)
        return jnp.where(change > 0, change / jnp.where(change > 0, y, jnp.ones_like(y)), jnp.zeros_like(y))

    return jax.tree.map(relative, a.nuclear_norm, b.nuclear_norm)


GRADS = {"q": jax.ShapeDtypeStruct((3, 8, 4), "float32")}
NORMS: Any = {"q": jax.ShapeDtypeStruct((3,), "float32")}
MAD: Any = {"q": jax.ShapeDtypeStruct((), "float32")}
register(layer_gradient_profile, form="function", paper=PAPER, example={"grads": GRADS})
register(
    profile_difference,
    form="function",
    paper=PAPER,
    example=dict.fromkeys(("a", "b"), LayerGradientProfile(NORMS, MAD)),
)
