"""NovoGrad: gradients divided by the running norm of their layer, then momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.at_once import at_once
from gradkit.engine.core import (
    cast,
    check_decay_mask,
    divide,
    increment,
    optimizer,
    pair,
    scalar,
    transformation,
    weights,
    wide_dtype,
    zeros,
)
from gradkit.engine.norms import packed_sums, squares
from gradkit.leaves import (
    Layout,
    Method,
    axes_of,
    check_mask_form,
    map_named,
    names,
    resolve_layout,
    resolve_mask,
    tensor_axes,
)
from gradkit.leaves.scopes import decay_here
from gradkit.transforms import scale_by_learning_rate
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training of Deep Networks",
    "Ginsburg et al.",
    2019,
    "1905.11286",
)


class Numbers(NamedTuple):
    """The hyperparameters of a step: b1, b2 with 1 - b2, eps, eps_root, and the share of h_t in the momentum after the
    first step, None for 1."""

    b1: Any
    b2: tuple[Any, Any]
    eps: Any
    eps_root: Any
    share: Any


class Kept(NamedTuple):
    """The accumulators of one leaf."""

    mu: jax.Array
    nu: jax.Array
    nu_max: jax.Array | None


@jax.jit
def _leaf(g: jax.Array, square: jax.Array, decay: Any, kept: Kept, first: jax.Array, n: Numbers) -> Any:
    """The direction of a leaf and its new accumulators, from its gradient, the squared norm of that, and weight_decay w
    (None where there is no decay)."""
    b2, rest = weights(n.b2, square)
    nu = jnp.where(first, square, b2 * kept.nu + rest * square)
    nu_max = None if kept.nu_max is None else jnp.maximum(kept.nu_max, nu)
    v = nu if nu_max is None else nu_max
    h = g * divide(jnp.ones_like(v), jnp.sqrt(v + scalar(n.eps_root, v)) + scalar(n.eps, v))
    h = h if decay is None else h + decay
    new = h if n.share is None else h * jnp.where(first, jnp.ones((), h.dtype), scalar(n.share, h))
    mu = cast(scalar(n.b1, h) * cast(kept.mu, h.dtype) + new, kept.mu.dtype)
    return cast(mu, g.dtype), Kept(mu, nu, nu_max)


@at_once
def _leaves(rows: list[tuple[jax.Array, jax.Array, Any, Kept]], first: jax.Array, n: Numbers) -> Any:
    return [_leaf(*row, first, n) for row in rows]


class ScaleByNovogradState(NamedTuple):
    """Number of updates made, the momentum, the squared norm per tensor and, with amsgrad, its maximum."""

    count: jax.Array
    mu: Any
    nu: Any
    nu_max: Any


def scale_by_novograd(
    *,
    b1: Scalar = 0.95,
    b2: Scalar = 0.98,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Mask | None = None,
    grad_averaging: bool = False,
    amsgrad: bool = False,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides every tensor's gradient by the running mean of its norm, and accumulates momentum.

    Equations, with v_t one number per tensor:

        v_t = b2 v_{t-1} + (1 - b2) |g_t|^2,   v_1 = |g_1|^2
        h_t = g_t / (sqrt(v_t + eps_root) + eps) + weight_decay w_{t-1}
        m_t = b1 m_{t-1} + h_t,   m_1 = h_1               with grad_averaging (1 - b1) h_t for h_t after the first step

    The update is m_t; there is no bias correction. With `amsgrad` h_t has the largest v so far in the place of v_t.

    Args:
      b1: decay of the momentum, in [0, 1). Default 0.95 (official code; an older draft, and optax, have 0.9).
      b2: decay of the squared norm, in [0, 1). Default 0.98 (official code; optax has 0.25).
      eps: added to the norm, >= 0. Default 1e-8 (official code). A zero gradient gives the direction 0.
      eps_root: added under the root, >= 0. Default 0.
      weight_decay: weight decay inside the momentum, after the normalisation, >= 0. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      grad_averaging: whether the momentum is a mean rather than a sum. Default False.
      amsgrad: whether the largest squared norm so far is used. Default False.
      mu_dtype: dtype in which the momentum is kept. Default float32.
      layout: which axes are stacks: every layer of a scan has its own norm.

    Returns:
      A transformation that needs `params` where weights decay. State: 1 word per parameter, one number per
      tensor (two with amsgrad), a counter. Collectives: one scalar per tensor where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = scale_by_novograd(eps=0.0)
      >>> g = jnp.array([[0.0, 50.0]])
      >>> print(tx.update(g, tx.init(g), g)[0].round(4))  # the first direction has norm 1
      [[0. 1.]]

    Reference: Ginsburg et al. 2019, arXiv 1905.11286. NVIDIA's first code averages on the first step too, and
    recognises the first step by v = 0; here the counter does.
    """
    checks.layout(layout)
    checks.switch(grad_averaging=grad_averaging, amsgrad=amsgrad)
    checks.floating_dtype(mu_dtype=mu_dtype)
    for name, value in (("b1", b1), ("b2", b2)):
        checks.real(name, value, "[0, 1)")
    for name, value in (("eps", eps), ("eps_root", eps_root), ("weight_decay", weight_decay)):
        checks.real(name, value, "[0, inf)")
    without_decay = isinstance(weight_decay, int | float) and weight_decay == 0
    check_mask_form(weight_decay_mask=weight_decay_mask)

    def init(params: optax.Params) -> ScaleByNovogradState:
        resolve_layout(layout, params, method="scale_by_novograd", matters=True)

        def per_tensor(name: str, x: Any) -> jax.Array:
            own = tensor_axes(axes_of(layout, name, x.shape), x.shape)
            return jnp.zeros(
                [1 if a in own else n for a, n in enumerate(x.shape)], jnp.finfo(wide_dtype(x.dtype)).dtype
            )

        check_decay_mask("scale_by_novograd", weight_decay_mask, params)
        nu = map_named(per_tensor, params)
        nu_max = jax.tree.map(jnp.zeros_like, nu) if amsgrad else None
        return ScaleByNovogradState(jnp.zeros((), jnp.int32), zeros(params, mu_dtype), nu, nu_max)

    def update(updates: Any, state: ScaleByNovogradState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        first = state.count == 0
        leaves, structure = jax.tree.flatten(updates)
        sums = packed_sums(names(updates), "tensor", layout, squares(leaves), like=leaves)
        norms_sq = sums.own(sums.parts[0])

        decayed: list[Any] = [None] * len(leaves)
        if not without_decay:
            mask, decay = jax.tree.leaves(resolve_mask(weight_decay_mask, updates)), decay_here(weight_decay)
            pairs = zip(leaves, jax.tree.leaves(params), mask, strict=True)
            decayed = [scalar(decay, g) * w if on else None for g, w, on in pairs]

        mu, nu = structure.flatten_up_to(state.mu), structure.flatten_up_to(state.nu)
        nu_max = structure.flatten_up_to(state.nu_max) if amsgrad else [None] * len(leaves)
        rows = zip(leaves, norms_sq, decayed, map(Kept, mu, nu, nu_max), strict=True)
        made = _leaves([*rows], first, Numbers(b1, pair(b2), eps, eps_root, 1 - b1 if grad_averaging else None))

        def tree(column: list[Any]) -> Any:
            return structure.unflatten(column)

        directions, kept = [d for d, _ in made], [own for _, own in made]
        nu_max = tree([own.nu_max for own in kept]) if amsgrad else None
        mu, nu = tree([own.mu for own in kept]), tree([own.nu for own in kept])
        return tree(directions), ScaleByNovogradState(increment(state.count), mu, nu, nu_max)

    return transformation("scale_by_novograd", init, update, needs_params=not without_decay)


def novograd(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.95,
    b2: Scalar = 0.98,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Mask | None = None,
    grad_averaging: bool = False,
    amsgrad: bool = False,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Momentum of gradients that are divided by the running mean of the norm of their layer (NovoGrad).

    Equations, with v_t one number per tensor:

        v_t = b2 v_{t-1} + (1 - b2) |g_t|^2,   v_1 = |g_1|^2
        h_t = g_t / (sqrt(v_t + eps_root) + eps) + weight_decay w_{t-1}
        m_t = b1 m_{t-1} + h_t,   m_1 = h_1               with grad_averaging (1 - b1) h_t for h_t after the first step
        w_t = w_{t-1} - learning_rate m_t

    There is no bias correction. With `amsgrad` h_t has the largest v so far in the place of v_t. The trajectory does
    not change when the loss is multiplied by a constant.

    Args:
      learning_rate: step size >= 0, or a schedule.
      b1: decay of the momentum, in [0, 1). Default 0.95 (official code).
      b2: decay of the squared norm, in [0, 1). Default 0.98 (official code).
      eps: added to the norm, >= 0. Default 1e-8 (official code).
      eps_root: added under the root, >= 0. Default 0.
      weight_decay: weight decay inside the momentum, after the normalisation, >= 0. Default 0; the paper uses 1e-3.
      weight_decay_mask: which leaves decay. Default all.
      grad_averaging: whether the momentum is a mean rather than a sum. Default False.
      amsgrad: whether the largest squared norm so far is used. Default False.
      mu_dtype: dtype in which the momentum is kept. Default float32.
      layout: which axes are stacks.

    Returns:
      A transformation. State: 1 word per parameter and one number per tensor. Collectives: one scalar per
      tensor where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = novograd(0.5)
      >>> w = jnp.array([0.0, -7.0])
      >>> print(tx.update(w, tx.init(w), w)[0].round(4))
      [-0.   0.5]

    Reference: Ginsburg et al. 2019, arXiv 1905.11286.
    """
    link = scale_by_novograd(
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        grad_averaging=grad_averaging,
        amsgrad=amsgrad,
        mu_dtype=mu_dtype,
        layout=layout,
    )
    described = Method("novograd", learning_rate, weight_decay, weight_decay_mask)
    return optimizer(described, link, scale_by_learning_rate(learning_rate))


GOLDEN = ("large_batch/novograd", "large_batch/novograd_averaged")
register(scale_by_novograd, form="primitive", paper=PAPER, words=1, collectives="norms", golden=GOLDEN)
register(
    novograd,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="norms",
    golden=GOLDEN,
    race=Race(1e-1),
)
