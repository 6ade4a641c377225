"""AdamP and SGDP: momentum that does not lengthen scale-invariant weights."""

import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import optimizer
from gradkit.leaves import Layout, Method
from gradkit.transforms import (
    project_scale_invariant,
    scale_by_adam,
    scale_by_learning_rate,
    trace,
)
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
    "Heo et al.",
    2020,
    "2006.08217",
)


def adamp(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Mask | None = None,
    delta: Scalar = 0.1,
    wd_ratio: Scalar = 0.1,
    nesterov: bool = False,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam with the radial part of its update removed where weights look scale-invariant.

    Equations, with x^ = x_{t-1} / (|x_{t-1}| + eps) and the inner products over an output channel (K entries):

        p_t = (m_t / (1 - b1^t)) / (sqrt(v_t / (1 - b2^t)) + eps)              Adam's direction
        q_t = p_t - x^ <x^, p_t>,  ratio = wd_ratio      where |<g_t, x_{t-1}>| < delta / sqrt(K) |g_t| |x_{t-1}|
        q_t = p_t,                 ratio = 1             otherwise
        x_t = x_{t-1} - learning_rate (q_t + weight_decay ratio x_{t-1})

    The test must hold for every channel of a leaf; where it fails, the leaf is tested, and projected, as one block. A
    leaf of rank 0 or 1 is not projected (`gk.project_scale_invariant`). With `nesterov` the numerator of p_t is
    (b1 m_t + (1 - b1) g_t) / (1 - b1^t).

    Args:
      learning_rate: step size >= 0, or a schedule. The official code has 1e-3.
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root, and to the weights' norm in the projection, >= 0. Default 1e-8 (official code).
      weight_decay: decoupled decay >= 0. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      delta: threshold of the cosine test, >= 0. Default 0.1 (official code).
      wd_ratio: factor of the decay where weights were projected, in [0, 1]. Default 0.1 (official code).
      nesterov: whether the first moment looks ahead. Default False.
      mu_dtype: dtype in which the first moment is kept. Default float32.
      layout: which axes are stacks and output channels.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter. Collectives: three scalars per
      channel and three per tensor where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adamp(0.5, delta=jnp.inf)
      >>> w = jnp.eye(2)
      >>> print(tx.update(jnp.ones((2, 2)), tx.init(w), w)[0].round(4))  # orthogonal to every column
      [[-0.  -0.5]
       [-0.5 -0. ]]

    Reference: Heo et al. AdamP. 2020, arXiv 2006.08217. The official code takes output channels to be the first axis.
    """
    direction = scale_by_adam(b1=b1, b2=b2, eps=eps, nesterov=nesterov, nesterov_correction="same", mu_dtype=mu_dtype)
    return optimizer(
        Method("adamp", learning_rate, weight_decay, weight_decay_mask),
        project_scale_invariant(
            direction,
            delta=delta,
            wd_ratio=wd_ratio,
            weight_decay=weight_decay,
            weight_decay_mask=weight_decay_mask,
            eps=eps,
            layout=layout,
        ),
        scale_by_learning_rate(learning_rate),
    )


def sgdp(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: Scalar = 0.0,
    dampening: Scalar = 0.0,
    nesterov: bool = False,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Mask | None = None,
    eps: Scalar = 1e-8,
    delta: Scalar = 0.1,
    wd_ratio: Scalar = 0.1,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD with momentum whose radial part is removed where weights look scale-invariant.

    Equations:

        v_t = momentum v_{t-1} + (1 - dampening) g_t
        p_t = v_t,   or with nesterov  g_t + momentum v_t
        x_t = x_{t-1} - learning_rate (q_t + weight_decay ratio / (1 - momentum) x_{t-1})

    q_t is p_t without its radial part, and ratio = wd_ratio, where the weights look scale-invariant, by the test of
    `gk.adamp`; elsewhere q_t = p_t and ratio = 1.

    Args:
      learning_rate: step size >= 0, or a schedule.
      momentum: decay of the momentum, in [0, 1). Default 0 (official code); the paper trains with 0.9.
      dampening: share of every gradient, the first included, that is left out, in [0, 1). Default 0.
      nesterov: whether to look ahead. Default False.
      weight_decay: decay coefficient >= 0. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      eps: added to the weights' norm in the projection, >= 0. Default 1e-8.
      delta: threshold of the cosine test, >= 0. Default 0.1 (official code).
      wd_ratio: factor of the decay where weights were projected, in [0, 1]. Default 0.1 (official code).
      mu_dtype: dtype in which the momentum is kept. Default float32.
      layout: which axes are stacks and output channels.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter. Collectives: those of `adamp`.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = sgdp(0.5, momentum=0.9)
      >>> w = jnp.eye(2)
      >>> print(tx.update(jnp.array([[0.0, 1.0], [1.0, 0.0]]), tx.init(w), w)[0].round(4))
      [[-0.  -0.5]
       [-0.5 -0. ]]

    Reference: Heo et al. AdamP. 2020, arXiv 2006.08217. The official code without Nesterov projects its
    momentum buffer in place; here, as in the paper, the momentum is not projected.
    """
    checks.real("momentum", momentum, "[0, 1)")
    checks.real("weight_decay", weight_decay, "[0, inf)")
    direction = trace(momentum, dampening=dampening, dampen_first=True, nesterov=nesterov, mu_dtype=mu_dtype)
    return optimizer(
        Method("sgdp", learning_rate, weight_decay, weight_decay_mask),
        project_scale_invariant(
            direction,
            delta=delta,
            wd_ratio=wd_ratio,
            weight_decay=weight_decay / (1 - momentum),
            weight_decay_mask=weight_decay_mask,
            eps=eps,
            layout=layout,
        ),
        scale_by_learning_rate(learning_rate),
    )


# With this threshold some tensors of a small tree are projected and others are not.
EXAMPLE = {"delta": 1.0}
register(
    adamp,
    form="optimizer",
    paper=PAPER,
    words=2,
    collectives="norms",
    golden=("adaptive/adamp",),
    example=EXAMPLE,
    race=Race(5e-3),
)
register(
    sgdp,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="norms",
    golden=("adaptive/sgdp",),
    example={**EXAMPLE, "momentum": 0.9},
    race=Race(1e-1, {"momentum": 0.9, "nesterov": True}),
)
