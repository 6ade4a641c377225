"""perpGrad: gradients without their component along the weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar, stateless, transformation
from gradkit.engine.norms import packed_norms, packed_sums
from gradkit.leaves import Layout, names
from gradkit.types import Scalar

PAPER = Paper("Grokking at the Edge of Numerical Stability", "Prieto et al.", 2025, "2501.04697")


def perpgrad(
    *, eps: Scalar = 1e-30, rescale: bool = True, layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Projects every tensor's gradient onto the plane orthogonal to its weights, in front of any optimizer.

    Equations, per tensor, with the parameters x:

        o = g - <x, g> / (<x, x> + eps) x
        g <- o |g| / (|o| + eps)             with `rescale`, else o; 0 where o is rounding error

    It stops the growth of weights that only scales logits: `optax.chain(gk.perpgrad(), gk.adamw(1e-3))`.

    Args:
      eps: guards both divisions, >= 0. Default 1e-30 (official code).
      rescale: whether the result has the length of the gradient. Default True (official code); the paper's equation
        has no such factor.
      layout: which axes are stacks: every layer of a scan is projected by itself.

    Returns:
      A transformation that needs `params`. No state. Collectives: two all-reduces, of three scalars and of one
      scalar per tensor.

    Raises:
      ValueError: `eps` negative or NaN; complex leaves.

    Example:
      >>> tx = perpgrad()
      >>> x, g = jnp.array([1.0, 0.0]), jnp.array([3.0, 4.0])
      >>> tx.update(g, tx.init(x), x)[0].tolist()
      [0.0, 5.0]

    Reference: Prieto et al. Grokking at the Edge of Numerical Stability. 2025, arXiv 2501.04697. Where the gradient
    is parallel to the weights up to rounding (always for a tensor of one entry) the result is 0; the
    official code scales that rounding error up to the gradient's length.
    """
    checks.layout(layout)
    checks.switch(rescale=rescale)
    checks.real("eps", eps, "[0, inf)")

    def along(xg: jax.Array, xx: jax.Array) -> jax.Array:
        """<x, g> / (<x, x> + eps), the coefficient of x in g."""
        square = xx + scalar(eps, xx)
        return jnp.where(square > 0, xg / jnp.where(square > 0, square, jnp.ones_like(square)), 0 * xg)

    def length(n_g: jax.Array, n_o: jax.Array) -> jax.Array:
        """The factor of o."""
        vanished = n_o <= 4 * jnp.finfo(n_g.dtype).eps * n_g
        factor = (
            n_g / jnp.where(vanished, jnp.ones_like(n_o), n_o + scalar(eps, n_o)) if rescale else jnp.ones_like(n_o)
        )
        return jnp.where(vanished, jnp.zeros_like(factor), factor)

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, optax.EmptyState]:
        del extra
        g, structure = jax.tree.flatten(updates)
        x, param_names = jax.tree.leaves(params), names(updates)
        products = ([x * g for x, g in zip(x, g, strict=True)], [x * x for x in x], [g * g for g in g])
        sums = packed_sums(param_names, "tensor", layout, *products, like=g)
        shares = sums.each(lambda xg, xx, gg: along(xg, xx))
        o = [g - c * x for g, c, x in zip(g, shares, x, strict=True)]
        # |o|^2 = |g|^2 - <x, g>^2 / |x|^2 would need no second sum, and cancels where g is nearly parallel to x.
        (n_o,) = packed_norms(param_names, "tensor", layout, o).parts
        factors = sums.each(lambda xg, xx, gg, n_o: length(jnp.sqrt(gg), n_o), n_o)
        return structure.unflatten([o * f for o, f in zip(o, factors, strict=True)]), state

    return transformation("perpgrad", stateless("perpgrad", layout), update, needs_params=True)


def orthogonalize_to_params(
    *, eps: Scalar = 1e-30, layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Removes the component of every gradient along its weights.

    This is `gk.perpgrad` with `rescale=False`. Per tensor:

        g <- g - <x, g> / (<x, x> + eps) x

    Args:
      eps: guards the division by |x|^2, >= 0. Default 1e-30 (official code).
      layout: which axes are stacks: every layer of a scan is projected by itself.

    Returns:
      A transformation that needs `params`. No state. Collectives: those of `perpgrad`.

    Raises:
      ValueError: `eps` negative or NaN; complex leaves.

    Example:
      >>> tx = orthogonalize_to_params()
      >>> x, g = jnp.array([1.0, 0.0]), jnp.array([3.0, 4.0])
      >>> tx.update(g, tx.init(x), x)[0].tolist()
      [0.0, 4.0]

    Reference: Prieto et al. Grokking at the Edge of Numerical Stability. 2025, arXiv 2501.04697.
    """
    checks.layout(layout)
    return perpgrad(eps=eps, rescale=False, layout=layout)


register(
    orthogonalize_to_params,
    form="primitive",
    paper=PAPER,
    collectives="norms",
    notes="the projection of `perpgrad` alone",
)
register(
    perpgrad,
    form="primitive",
    paper=PAPER,
    collectives="norms",
    golden=("adaptive/perpgrad",),
)
