"""Clipping of an update by how far the gradient is above its second moment.

rms_t = sqrt(mean(g_t^2 / max(v^_t, eps^2))) of a tensor,   v^_t = v_t / (1 - b2^t)
u_t <- u_t / max(1, rms_t)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.accumulators import ema_of_square
from gradkit.engine.core import abs_sq, bias_corrections, increment, inside, scalar, transformation, zeros
from gradkit.engine.norms import entries, packed_sums
from gradkit.leaves import Layout, names, resolve_layout
from gradkit.transforms.adam import ScaleByAdamState
from gradkit.types import Scalar

NAME = "clip_by_update_rms"
PAPER = Paper(
    "Stable and low-precision training for large-scale vision-language models", "Wortsman et al.", 2023, "2304.13013"
)


@jax.jit
def _share(g: jax.Array, v: jax.Array, correction: Any, eps: Any) -> jax.Array:
    return abs_sq(g) / jnp.maximum(v / correction, jnp.maximum(scalar(eps, v) ** 2, jnp.finfo(v.dtype).tiny))


class ClipByUpdateRmsState(NamedTuple):
    """Number of updates made, the second moment (None where the inner state has Adam's), and the inner state."""

    count: jax.Array
    nu: Any
    inner: Any


def _moments(state: Any) -> list[ScaleByAdamState]:
    found = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, ScaleByAdamState))
    return [node for node in found if isinstance(node, ScaleByAdamState)]


def clip_by_update_rms(
    inner: optax.GradientTransformation, *, b2: Scalar = 0.99, eps: Scalar = 1e-6, layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Divides updates by the RMS of the gradient over the root of its second moment, where that RMS is above 1.

    Equations, with v_t the second moment of gradients after this step, per tensor:

        rms_t = sqrt(mean(g_t^2 / max(v_t / (1 - b2^t), eps^2)))
        u_t <- u_t / max(1, rms_t)

    Around `scale_by_adam` and the weight decay this is a smaller learning rate for both, and v_t is Adam's own.

    Args:
      inner: the transformation whose updates are clipped. Where one `scale_by_adam` is in it, its second moment is
        read; otherwise one is kept here.
      b2: decay of the second moment, that of the inner `scale_by_adam`, in [0, 1). Default 0.99 (code of optimi).
      eps: lower bound of its root, >= 0. Default 1e-6 (code of optimi).
      layout: which axes are stacks: every layer of a scan has its own RMS.

    Returns:
      A transformation. State: the inner one, a counter, and 1 word per parameter where it has no second moment of
      Adam. Collectives: one scalar per tensor where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = clip_by_update_rms(optax.identity(), b2=0.5)
      >>> g = jnp.array([1.0])
      >>> state = tx.init(g)
      >>> for step in range(20):
      ...     u, state = tx.update(g, state)
      >>> print(tx.update(1000 * g, state)[0].round(1))  # the RMS of a spike is at most sqrt(2) here
      [707.1]

    Reference: Wortsman et al. Stable and low-precision training for large-scale vision-language models. 2023, arXiv
    2304.13013. The second moment is bias-corrected, as in the code of optimi, and is that of this step; some copies
    read the one before.
    """
    checks.layout(layout)
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    below = inside(inner)

    def init(params: optax.Params) -> ClipByUpdateRmsState:
        resolve_layout(layout, params, method=NAME, matters=True)
        state = below.init(params)
        own = None if len(_moments(state)) == 1 else zeros(params, real=True)
        return ClipByUpdateRmsState(jnp.zeros((), jnp.int32), own, state)

    def update(updates: Any, state: ClipByUpdateRmsState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        count = increment(state.count)
        new, after = below.update(updates, state.inner, params, **extra)
        own = state.nu
        if own is not None:
            own = jax.tree.map(lambda v, g: ema_of_square(v, g, b2), own, updates)
        nu = _moments(after)[0].nu if own is None else own
        of_nu = bias_corrections(b2, count)
        leaves, structure = jax.tree.flatten(updates)
        known = names(updates)
        shares = [_share(g, v, of_nu(v), eps) for g, v in zip(leaves, jax.tree.leaves(nu), strict=True)]
        sums = packed_sums(known, "tensor", layout, shares, like=leaves)
        counts = [max(1, entries(name, "tensor", layout, g.shape)) for name, g in zip(known, leaves, strict=True)]
        factors = sums.each(lambda s, n: jnp.maximum(jnp.sqrt(s / n), jnp.ones_like(s)), counts)
        rows = zip(jax.tree.leaves(new), factors, strict=True)
        return structure.unflatten([u / f.astype(u.dtype) for u, f in rows]), ClipByUpdateRmsState(count, own, after)

    return transformation(NAME, init, update, complex_leaves=True)


register(
    clip_by_update_rms,
    form="wrapper",
    paper=PAPER,
    collectives="norms",
    wraps="direction",
    golden=("modern/stable_adamw",),
)
