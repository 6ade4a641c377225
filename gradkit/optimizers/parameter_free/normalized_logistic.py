"""Logistic regression with normalised steps: any learning rate separates separable data."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, need, optimizer
from gradkit.leaves import Method
from gradkit.transforms import scale_by_learning_rate
from gradkit.transforms.measured import Measure, scaled_by
from gradkit.types import ScalarOrSchedule

PAPER = Paper(
    "From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent with Large Step Sizes",
    "Tyurin",
    2024,
    "2412.08424",
)


def scale_by_inverse_slope() -> optax.GradientTransformationExtraArgs:
    """Divides the gradient by the mean slope of the loss in the margin.

    Equations: g / slope of `normalized_logistic`.

    Returns:
      A transformation that needs `slope`, the mean over the minibatch of |l'(m_i)|, for the logistic loss
      `jnp.mean(jax.nn.sigmoid(-m))`; on a mesh of the global one. A slope of 0 gives the update 0. No state.
      Elementwise: no collective.

    Raises:
      ValueError: at `update`, `slope` missing or not a scalar.

    Example:
      >>> tx = scale_by_inverse_slope()
      >>> g = jnp.array([-0.5, 0.25])
      >>> print(tx.update(g, tx.init(g), slope=0.25)[0])
      [-2.  1.]

    Reference: Tyurin. From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent with Large Step
    Sizes. 2024, arXiv 2412.08424. Where all margins are large, gradient and slope underflow together: subtract the
    smallest margin from all margins first, which hardly changes the quotient.
    """

    def update(state: Any, g: Any, params: Any, **extra: Any) -> tuple[jax.Array, Any]:
        del g, params
        slope = jnp.asarray(need("scale_by_inverse_slope", extra, "slope"), jnp.result_type(float))
        checks.scalar("scale_by_inverse_slope: slope", slope)
        return divide(jnp.ones_like(slope), slope), state

    return scaled_by("scale_by_inverse_slope", Measure(lambda params: optax.EmptyState(), update))


def normalized_logistic(learning_rate: ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """Gradient descent of the logistic loss with normalised steps: a perceptron at any learning rate.

    Equations, for the loss mean_i log(1 + exp(-m_i)) of margins m_i = y_i <a_i, theta>, with slopes
    p_i = 1 / (1 + exp(m_i)):

        g = -mean_i p_i y_i a_i,    slope = mean_i p_i
        theta <- theta - learning_rate g / slope

    The direction is a convex combination of the y_i a_i, as in the perceptron.

    Args:
      learning_rate: step size >= 0, or a schedule. Any learning rate > 0 separates separable data.

    Returns:
      A transformation that needs `slope`, the mean over the minibatch of |l'(m_i)|, for the logistic loss
      `jnp.mean(jax.nn.sigmoid(-m))`. No state. Elementwise: no collective.

    Raises:
      ValueError: a learning rate outside its range; at `update`, `slope` missing or not a scalar.

    Example:
      >>> tx = normalized_logistic(1.0)
      >>> theta, a, y = jnp.zeros(1), jnp.array([2.0]), 1.0
      >>> g, slope = -0.5 * y * a, 0.5
      >>> tx.update(g, tx.init(theta), theta, slope=slope)[0].tolist()  # a step of the perceptron
      [2.0]

    Reference: Tyurin. From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent with Large Step
    Sizes. 2024, arXiv 2412.08424. The divisor is the mean slope; the loss as divisor differs by a constant factor.
    """
    return optimizer(
        Method("normalized_logistic", learning_rate),
        scale_by_inverse_slope(),
        scale_by_learning_rate(learning_rate),
    )


COMMON: dict[str, Any] = {"paper": PAPER, "needs": ("slope",)}
register(scale_by_inverse_slope, form="primitive", **COMMON)
register(
    normalized_logistic,
    form="optimizer",
    **COMMON,
    opt_outs={"race": "it asks for the slope of a logistic loss, which the workloads have not"},
)
