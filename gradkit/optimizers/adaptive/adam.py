"""Adam: a step per coordinate, of the running mean of gradients over the root of their mean square."""

import optax

from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import optimizer
from gradkit.leaves import Method
from gradkit.transforms import scale_by_adam, scale_by_learning_rate
from gradkit.types import DTypeLike, Scalar, ScalarOrSchedule


def adam(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    nesterov: bool = False,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam: the running mean of gradients over the root of the running mean of their squares.

    Equations:

        m_t = b1 m_{t-1} + (1 - b1) g_t            v_t = b2 v_{t-1} + (1 - b2) |g_t|^2
        u_t = (m_t / (1 - b1^t)) / (sqrt(v_t / (1 - b2^t) + eps_root) + eps)
        x_t = x_{t-1} - learning_rate u_t

    With `nesterov` the numerator is b1 m_t / (1 - b1^(t+1)) + (1 - b1) g_t / (1 - b1^t).

    Args:
      learning_rate: step size >= 0, or a schedule. The paper suggests 1e-3.
      b1: decay of the first moment, in [0, 1). Default 0.9 (paper).
      b2: decay of the second moment, in [0, 1). Default 0.999 (paper).
      eps: added to the root, in the gradient's units, >= 0. Default 1e-8 (paper).
      eps_root: added under the root, >= 0. Default 0.
      nesterov: whether the first moment looks one step ahead, as optax's NAdam does. Default False.
      mu_dtype: dtype in which the first moment is kept between steps. Default float32.

    Returns:
      A transformation. State: 2 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = adam(0.5)
      >>> x = jnp.array([2.0, -0.01])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))  # the first step is the sign of the gradient
      [-0.5  0.5]

    Reference: Kingma, Ba. Adam: A Method for Stochastic Optimization. 2014, arXiv 1412.6980. Coupled L2 decay is
    `optax.chain(gk.add_decayed_weights(l2), gk.adam(...))`.
    """
    return optimizer(
        Method("adam", learning_rate),
        scale_by_adam(b1=b1, b2=b2, eps=eps, eps_root=eps_root, nesterov=nesterov, mu_dtype=mu_dtype),
        scale_by_learning_rate(learning_rate),
    )


register(
    adam,
    form="optimizer",
    paper=Paper("Adam: A Method for Stochastic Optimization", "Kingma, Ba", 2014, "1412.6980"),
    words=2,
    golden=("adaptive/adam", "adaptive/adam_l2"),
    race=Race(5e-3),
)
