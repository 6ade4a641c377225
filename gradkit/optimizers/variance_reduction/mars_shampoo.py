"""MARS with the step of Shampoo: the momentum of a corrected gradient, orthogonalised."""

from functools import partial
from typing import Any

import jax
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import optimizer, scalar, stateless, transformation
from gradkit.engine.mapping import apply_to_matrices
from gradkit.engine.planning import as_rows, plan_stacks
from gradkit.engine.shape_factor import scale_by_shape
from gradkit.leaves import Layout, Method
from gradkit.linalg import orthogonalize
from gradkit.transforms import add_decayed_weights, mars_correction, scale_by_learning_rate, trace
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "MARS: Unleashing the Power of Variance Reduction for Training Large Models", "Yuan et al.", 2024, "2411.10438"
)


def _orthogonalize(
    steps: int, dtype: Any, eps: Any, b1: Any, layout: Layout | None
) -> optax.GradientTransformationExtraArgs:
    kernel = partial(orthogonalize, steps=steps, eps=eps, dtype=dtype)

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, optax.EmptyState]:
        del params, extra
        m = jax.tree.map(lambda m: m / (1 - scalar(b1, m)), updates)
        plan = plan_stacks(m, method="mars_shampoo", layout=layout, view=as_rows, transpose=True, merge=True)
        return scale_by_shape(apply_to_matrices(plan, kernel, m), plan.axes, plan.shapes, "spectral"), state

    return transformation("mars_shampoo", stateless("mars_shampoo", layout), update)


def mars_shampoo(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.95,
    eps: Scalar = 1e-8,
    gamma: Scalar = 0.025,
    max_norm: Scalar = 1.0,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    ns_steps: int = 5,
    ns_dtype: DTypeLike | None = None,
    exact: bool = False,
    first_step: str = "zero",
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The momentum of MARS's corrected gradient, orthogonalised: Shampoo without accumulation.

    Equations, of the (inputs, outputs) matrices of each leaf, with the previous gradient p_t as in `mars_correction`:

        c_t = g_t + gamma b1 / (1 - b1) (g_t - p_t), clipped per tensor to the norm max_norm
        m_t = b1 m_{t-1} + (1 - b1) c_t
        u_t = NS(m_t / (1 - b1)) sqrt(max(1, outputs / inputs))
        x_t = x_{t-1} - learning_rate (u_t + weight_decay x_{t-1})

    NS(M) starts from X = M / (|M| + eps), and repeats X <- a X + b A X + c A^2 X with A = X X^T ns_steps times.

    Args:
      learning_rate: step size >= 0, or a schedule.
      b1: decay of the momentum, also in the correction, in [0, 1). Default 0.95 (official code).
      eps: added to the Frobenius norm, >= 0. Default 1e-8 (official code).
      gamma: factor of the correction, >= 0. Default 0.025 (official code).
      max_norm: largest norm of a tensor's corrected gradient, > 0. Default 1 (official code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      ns_steps: iterations, >= 1. Default 5 (official code).
      ns_dtype: dtype of the iterations. Default that of the leaf, float32 or wider; the official code has bfloat16.
      exact: whether a second gradient is taken at the previous parameters. Default False.
      first_step: "zero" or "skip"; see `mars_correction`. Default "zero".
      mu_dtype: dtype in which the momentum is kept. Default float32.
      layout: which axes are stacks, inputs and outputs.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter. Collectives: all-gathers of sharded matrices,
      and one scalar per tensor.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = mars_shampoo(1.0)
      >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> u, _ = tx.update(x, tx.init(x), x)
      >>> bool((jnp.abs(jnp.linalg.svd(-u)[1] - 1) < 0.3).all())
      True

    Reference: Yuan et al. 2024, arXiv 2411.10438. The official code uses AdamW for leaves that are not matrices. Here a
    vector is a matrix of one row, and is divided by about its norm: use `gk.leaves.groups` for another rule.
    """
    checks.floating_dtype(ns_dtype=ns_dtype)
    ns_steps = checks.integer("ns_steps", ns_steps, 1, maximum=checks.MOST_UNROLLED)
    checks.real("eps", eps, "[0, inf)")

    return optimizer(
        Method("mars_shampoo", learning_rate, weight_decay, weight_decay_mask),
        mars_correction(gamma=gamma, b1=b1, max_norm=max_norm, exact=exact, first_step=first_step, layout=layout),
        trace(b1, dampening=b1, dampen_first=True, mu_dtype=mu_dtype),
        _orthogonalize(ns_steps, ns_dtype, eps, b1, layout),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


BY_LAYOUT = {
    "layout": "its clip is a norm per tensor besides the matrices; tests/papers/test_mars_shampoo.py has its layouts"
}
register(
    mars_shampoo,
    form="optimizer",
    paper=PAPER,
    words=2,
    collectives="matrices",
    golden=("adaptive/mars_shampoo",),
    opt_outs=BY_LAYOUT,
    race=Race(5e-3),
)
