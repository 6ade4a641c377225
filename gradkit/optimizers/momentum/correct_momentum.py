"""Momentum with the learning rate inside it, corrected for changes of the learning rate."""

import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import optimizer
from gradkit.leaves import Method
from gradkit.transforms import scale_by_learning_rate, trace
from gradkit.types import DTypeLike, Scalar, ScalarOrSchedule


def correct_momentum(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: Scalar = 0.9,
    nesterov: bool = False,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with momentum correction, for schedules that warm up or fall.

    Equations, with gamma_t the learning rate:

        v_t = momentum gamma_t / gamma_{t-1} v_{t-1} + gamma_t g_t
        w_t = w_{t-1} - v_t,   or with nesterov  momentum v_t + gamma_t g_t for v_t

    Without the factor gamma_t / gamma_{t-1} (`gk.momentum`) earlier gradients keep the learning rate that they entered
    the momentum with. The state is u_t = v_t / gamma_t = momentum u_{t-1} + g_t, which needs no division, and loses
    nothing while the learning rate is 0.

    Args:
      learning_rate: gamma, step size >= 0, or a schedule.
      momentum: decay of the momentum, in [0, 1]. Default 0.9 (paper).
      nesterov: whether to look ahead. Default False.
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation. State: 1 word per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = correct_momentum(optax.linear_schedule(0.5, 1.0, 1), momentum=0.5)
      >>> g = jnp.array(1.0)
      >>> _, state = tx.update(g, tx.init(g), g)
      >>> float(tx.update(0 * g, state, g)[0])  # v = 0.5 g, times 2 for the rate, times 0.5 for the momentum
      -0.5

    Reference: Goyal et al. Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour. 2017, arXiv 1706.02677, remark
    on momentum correction. The step is that of `gk.sgd(learning_rate, momentum=momentum)`, which is the other form in
    the paper.
    """
    checks.real("momentum", momentum, "[0, 1]")
    return optimizer(
        Method("correct_momentum", learning_rate),
        trace(momentum, nesterov=nesterov, mu_dtype=mu_dtype),
        scale_by_learning_rate(learning_rate),
    )


register(
    correct_momentum,
    form="optimizer",
    paper=Paper("Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", "Goyal et al.", 2017, "1706.02677"),
    words=1,
    race=Race(1e-1),
)
