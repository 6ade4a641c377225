"""perpGrad: gradients without their component along the weights.

Per tensor, with the parameters x:

    o = g - <x, g> / (<x, x> + eps) x
    g <- o |g| / (|o| + eps)        (rescale; 0 where o is rounding error)
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.leaves import Layout, default_layout, map_named
from gradkit.transforms.core import scalar, transformation
from gradkit.transforms.norms import block_axes, block_norm


def perpgrad(
    *, eps: Any = 1e-30, rescale: bool = True, layout: Layout = default_layout
) -> optax.GradientTransformationExtraArgs:
    """Projects every tensor's gradient onto the plane orthogonal to its weights, ahead of any optimizer.

    It stops the growth of weights that only scales logits: `optax.chain(gk.perpgrad(), gk.adamw(1e-3))`.

    Args:
      eps: guards both divisions, >= 0. Default 1e-30 (official code).
      rescale: whether the result gets the length of the gradient. Default True (paper).
      layout: which axes are stacks: every layer of a scan is projected by itself.

    Returns:
      A transformation that needs `params`. No state. Collectives: four scalars per tensor where leaves are
      sharded.

    Raises:
      ValueError: `eps` negative or NaN; complex leaves.

    Example:
      >>> tx = perpgrad()
      >>> x, g = jnp.array([1.0, 0.0]), jnp.array([3.0, 4.0])
      >>> tx.update(g, tx.init(x), x)[0].tolist()
      [0.0, 5.0]

    Reference: Prieto et al. Grokking at the Edge of Numerical Stability. 2025, arXiv 2501.04697. Where the gradient
    is parallel to the weights up to rounding (always for a tensor of one entry) the result is 0; the
    official code blows that rounding error up to the gradient's length.
    """
    checks.real("eps", eps, "[0, inf)")

    def kernel(name: str, g: jax.Array, x: jax.Array) -> jax.Array:
        axes = block_axes(name, g.shape, "tensor", layout)
        along = jnp.sum(x * g, axis=axes, keepdims=True)
        square = jnp.sum(x * x, axis=axes, keepdims=True) + scalar(eps, g)
        o = g - jnp.where(square > 0, along / jnp.where(square > 0, square, jnp.ones_like(square)), along * 0) * x
        n_g, n_o = block_norm(g, axes), block_norm(o, axes)
        vanished = n_o <= 4 * jnp.finfo(g.dtype).eps * n_g
        length = n_g / jnp.where(vanished, jnp.ones_like(n_o), n_o + scalar(eps, g)) if rescale else jnp.ones_like(n_o)
        return o * jnp.where(vanished, jnp.zeros_like(length), length)

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, optax.EmptyState]:
        del extra
        return map_named(kernel, updates, params), state

    return transformation("perpgrad", lambda params: optax.EmptyState(), update, needs_params=True)


register(
    perpgrad,
    form="primitive",
    paper=Paper("Grokking at the Edge of Numerical Stability", "Prieto et al.", 2025, "2501.04697"),
    collectives="norms",
    golden=("adaptive/perpgrad",),
)
