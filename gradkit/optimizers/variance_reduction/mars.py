"""MARS with the steps of AdamW and of Lion: a corrected gradient, then the preconditioner of the method."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import optimizer, transformation
from gradkit.engine.presets import called, preset
from gradkit.leaves import Layout, Method
from gradkit.transforms import add_decayed_weights, mars_correction, scale_by_adam, scale_by_learning_rate, trace
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "MARS: Unleashing the Power of Variance Reduction for Training Large Models", "Yuan et al.", 2024, "2411.10438"
)


def _sign() -> optax.GradientTransformationExtraArgs:
    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, optax.EmptyState]:
        del params, extra
        return jax.tree.map(jnp.sign, updates), state

    return transformation("mars_lion", lambda params: optax.EmptyState(), update)


def mars_adamw(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.95,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-8,
    gamma: Scalar = 0.025,
    max_norm: Scalar = 1.0,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    exact: bool = False,
    first_step: str = "zero",
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW on MARS's corrected gradient.

    Equations, with the previous gradient p_t as in `mars_correction`:

        c_t = g_t + gamma b1 / (1 - b1) (g_t - p_t), clipped per tensor to the norm max_norm
        m_t = b1 m_{t-1} + (1 - b1) c_t
        v_t = b2 v_{t-1} + (1 - b2) c_t^2
        u_t = (m_t / (1 - b1^t)) / (sqrt(v_t / (1 - b2^t)) + eps)
        x_t = x_{t-1} - learning_rate (u_t + weight_decay x_{t-1})

    Args:
      learning_rate: step size >= 0, or a schedule. The official code's class default is 3e-3.
      b1: decay of the first moment, also in the correction, in [0, 1). Default 0.95 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.99 (official code).
      eps: added to the root, >= 0. Default 1e-8 (official code).
      gamma: factor of the correction, >= 0. Default 0.025 (official code). With 0 and max_norm infinite this is AdamW.
      max_norm: largest norm of a tensor's corrected gradient, > 0. Default 1 (official code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0 (official code's class
        default, which has 0.1 for leaves that are no matrices).
      weight_decay_mask: which leaves decay. Default all.
      exact: whether a second gradient is taken at the previous parameters, as in `mars_exact`: then `update` needs
        `grad_fn` or `previous_grads`, as `mars_correction` says. Default False.
      first_step: "zero" or "skip"; see `mars_correction`. Default "zero".
      mu_dtype: dtype in which the first moment is kept. Default float32.
      layout: which axes are stacks.

    Returns:
      A transformation that needs `params`. State: 3 words per parameter. Collectives: one scalar per tensor.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = mars_adamw(0.5)
      >>> x = jnp.array([1.0, -5.0])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.5  0.5]

    Reference: Yuan et al. MARS: Unleashing the Power of Variance Reduction for Training Large Models. 2024, arXiv
    2411.10438. The official code uses plain AdamW for leaves that are not matrices by default; here every leaf is
    treated alike: use `gk.leaves.groups` for another rule.
    """
    return optimizer(
        Method(called("mars_adamw"), learning_rate, weight_decay, weight_decay_mask),
        mars_correction(gamma=gamma, b1=b1, max_norm=max_norm, exact=exact, first_step=first_step, layout=layout),
        scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


mars_exact = preset(
    mars_adamw,
    "mars_exact",
    "`mars_adamw` with the exact correction: both gradients are of the same batch, which costs a second gradient.",
    fixed={"exact": True, "first_step": "zero"},
)


def mars_lion(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.95,
    gamma: Scalar = 0.025,
    max_norm: Scalar = 1.0,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    exact: bool = False,
    first_step: str = "zero",
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The sign of the momentum of MARS's corrected gradient.

    Equations, with c_t and m_t as in `mars_adamw`, and one decay b1 where Lion has two:

        x_t = x_{t-1} - learning_rate (sign(m_t) + weight_decay x_{t-1})

    Args:
      learning_rate: step size >= 0, or a schedule.
      b1: decay of the momentum, also in the correction, in [0, 1). Default 0.95 (official code).
      gamma: factor of the correction, >= 0. Default 0.025 (official code).
      max_norm: largest norm of a tensor's corrected gradient, > 0. Default 1 (official code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      exact: whether a second gradient is taken at the previous parameters. Default False.
      first_step: "zero" or "skip"; see `mars_correction`. Default "zero".
      mu_dtype: dtype in which the momentum is kept. Default float32.
      layout: which axes are stacks.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter. Collectives: one scalar per tensor.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves, which have no sign.

    Example:
      >>> tx = mars_lion(0.5)
      >>> x = jnp.array([1.0, -5.0])
      >>> print(tx.update(x, tx.init(x), x)[0])
      [-0.5  0.5]

    Reference: Yuan et al. 2024, arXiv 2411.10438.
    """
    return optimizer(
        Method("mars_lion", learning_rate, weight_decay, weight_decay_mask),
        mars_correction(gamma=gamma, b1=b1, max_norm=max_norm, exact=exact, first_step=first_step, layout=layout),
        trace(b1, dampening=b1, dampen_first=True, mu_dtype=mu_dtype),
        _sign(),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


register(
    mars_adamw,
    form="optimizer",
    paper=PAPER,
    words=3,
    collectives="norms",
    golden=("adaptive/mars_adamw",),
    race=Race(5e-3),
)
register(
    mars_lion,
    form="optimizer",
    paper=PAPER,
    words=2,
    collectives="norms",
    golden=("adaptive/mars_lion",),
    race=Race(2e-3),
)
register(
    mars_exact,
    form="optimizer",
    paper=PAPER,
    needs=("previous_grads",),
    words=3,
    collectives="norms",
    golden=("adaptive/mars_exact",),
    notes="grad_fn, where it is given, takes the place of previous_grads",
    race=Race(5e-3),
)
