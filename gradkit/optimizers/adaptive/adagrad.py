"""AdaGrad: every coordinate is divided by the root of the sum of its squared gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import at_count, optimizer
from gradkit.leaves import Method
from gradkit.transforms import scale_by_learning_rate, scale_by_rss
from gradkit.types import Scalar, ScalarOrSchedule


def _decayed(learning_rate: Any, lr_decay: Any) -> Any:
    def rate(count: jax.Array) -> jax.Array:
        dtype = jnp.result_type(float)
        start, decay = (
            jnp.asarray(x).astype(dtype) for x in (at_count(learning_rate, count, "adagrad: learning_rate"), lr_decay)
        )
        return start / (1 + count.astype(dtype) * decay)

    return learning_rate if checks.absent(lr_decay) else rate


def adagrad(
    learning_rate: ScalarOrSchedule,
    *,
    lr_decay: Scalar | None = None,
    initial_accumulator_value: Scalar = 0.0,
    eps: Scalar = 1e-10,
    eps_in_sqrt: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """AdaGrad: the learning rate of a coordinate falls with the sum of its squared gradients.

    Equations, with s_0 = initial_accumulator_value:

        s_t = s_{t-1} + |g_t|^2
        x_t = x_{t-1} - learning_rate / (1 + (t - 1) lr_decay) g_t / (sqrt(s_t) + eps)
                                         with eps_in_sqrt: sqrt(s_t + eps) for sqrt(s_t) + eps

    With gradients of a constant size the steps shrink like 1 / sqrt(t).

    Args:
      learning_rate: step size >= 0, or a schedule. Ruder: 1e-2.
      lr_decay: further decay of the learning rate per step, >= 0. Default None: no decay, as with 0.
      initial_accumulator_value: s_0 >= 0, a square. Default 0 (Duchi et al., Ruder, torch; optax has 0.1).
      eps: added to the root, >= 0. Default 1e-10 (torch; Ruder has 1e-8 and optax 1e-7, both under the root).
        With 0, coordinates that never had a gradient do not move.
      eps_in_sqrt: whether eps is added under the root instead (Ruder, optax). Default False (torch).

    Returns:
      A transformation. State: 1 word per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = adagrad(0.5)
      >>> x = jnp.array([2.0, -0.01])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))  # the first step is the sign of the gradient
      [-0.5  0.5]

    Reference: Duchi, Hazan, Singer. Adaptive Subgradient Methods for Online Learning and Stochastic Optimization.
    2011; Ruder. An overview of gradient descent optimization algorithms. 2016, arXiv 1609.04747.
    """
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    checks.real("lr_decay", lr_decay, "[0, inf)", optional=True)
    return optimizer(
        Method("adagrad", learning_rate),
        scale_by_rss(initial_accumulator_value=initial_accumulator_value, eps=eps, eps_in_sqrt=eps_in_sqrt),
        scale_by_learning_rate(_decayed(learning_rate, lr_decay)),
    )


register(
    adagrad,
    form="optimizer",
    paper=Paper("An overview of gradient descent optimization algorithms", "Ruder", 2016, "1609.04747"),
    words=1,
    golden=("adaptive/adagrad",),
    race=Race(5e-2),
)
