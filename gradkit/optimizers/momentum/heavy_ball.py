"""The heavy ball: each step is the last one, shortened, and a step down the gradient."""

import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import optimizer
from gradkit.leaves import Method
from gradkit.transforms import scale_by_learning_rate, trace
from gradkit.types import DTypeLike, Scalar, ScalarOrSchedule


def heavy_ball(
    learning_rate: ScalarOrSchedule, *, momentum: Scalar = 0.9, mu_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Heavy ball in its difference form: a change of the learning rate does not rescale the previous displacement.

    Equation:

        x_{t+1} = x_t - learning_rate(t) g_t + momentum (x_t - x_{t-1})

    With `gk.schedules.stage_decay_schedule` for the learning rate this is the method of the paper, and
    `gk.schedules.heavy_ball_constants` has its constants.

    Args:
      learning_rate: step size >= 0, or a schedule.
      momentum: beta, in [0, 1]. Default 0.9; the paper's is (1 - 1 / sqrt(kappa))^2, kappa the condition number.
      mu_dtype: dtype in which the displacement is kept. Default float32.

    Returns:
      A transformation. State: 1 word per parameter, the last displacement. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = heavy_ball(lambda step: jnp.where(step == 0, 1.0, 0.0), momentum=0.5)
      >>> x = jnp.array(1.0)
      >>> _, state = tx.update(x, tx.init(x), x)
      >>> float(tx.update(x, state, x)[0])  # the learning rate is 0, and the displacement is halved
      -0.5

    Reference: Pan et al. Accelerated Convergence of Stochastic Heavy Ball Method under Anisotropic Gradient Noise.
    2023, arXiv 2312.14567; Polyak. Some methods of speeding up the convergence of iteration methods. 1964. torch's
    and optax's momentum apply the current learning rate to old gradients too; the two agree while it is constant.
    """
    checks.real("momentum", momentum, "[0, 1]")
    rate = scale_by_learning_rate(learning_rate)
    return optimizer(Method("heavy_ball", learning_rate), rate, trace(momentum, mu_dtype=mu_dtype))


register(
    heavy_ball,
    form="optimizer",
    paper=Paper(
        "Accelerated Convergence of Stochastic Heavy Ball Method under Anisotropic Gradient Noise",
        "Pan et al.",
        2023,
        "2312.14567",
    ),
    words=1,
    race=Race(1e-1),
)
