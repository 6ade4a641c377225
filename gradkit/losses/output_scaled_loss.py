"""A network whose outputs are scaled: from lazy training, in the kernel regime, to rich training."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.types import Scalar

PAPER = Paper("Grokking as the Transition from Lazy to Rich Training Dynamics", "Kumar et al.", 2023, "2310.06110")


def output_scaled_loss(
    loss_fn: Callable[..., Any], apply_fn: Callable[[Any, Any], Any], params0: Any, alpha: Scalar
) -> Callable[..., Any]:
    """The loss of the scaled change of a network's output, divided by the square of the scale.

        f_alpha(w) = alpha (f(w) - f(w_0)),    L(w) = loss(f_alpha(w), ...) / alpha^2
        grad L = J^T loss'(f_alpha) / alpha,   J the Jacobian of f

    A large alpha is lazy training: parameters move by O(1 / alpha) and the features of w_0 stay. A small one is rich.
    The learning rate is the same for all alpha: the first change of f_alpha, -eta J J^T loss'(0), does not depend on
    it.

    Args:
      loss_fn: (outputs, *rest) -> scalar, such as a mean squared error with the targets as rest.
      apply_fn: (params, inputs) -> outputs, an array or a tree.
      params0: w_0, where training begins. No gradient flows into it.
      alpha: > 0; may be traced.

    Returns:
      loss(params, inputs, *rest) -> scalar, for `jax.value_and_grad` or any source. Two forward passes.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> loss = output_scaled_loss(lambda y, t: (y - t) ** 2, lambda w, x: w * x, 1.0, 10.0)
      >>> round(float(loss(1.5, 2.0, 4.0)), 4)  # (10 (3 - 2) - 4)^2 / 100
      0.36

    Reference: Kumar et al. Grokking as the Transition from Lazy to Rich Training Dynamics. 2023, arXiv 2310.06110; the
    scaling is that of Chizat, Oyallon, Bach 2019.
    """
    checks.arrays(params0=params0)
    checks.function("loss_fn", loss_fn)
    checks.function("apply_fn", apply_fn)
    checks.real("alpha", alpha, "(0, inf)")

    def loss(params: Any, inputs: Any, *rest: Any) -> Any:
        def scaled(y: Any, y0: Any) -> jax.Array:
            return jnp.asarray(alpha).astype(jnp.result_type(y)) * (y - jax.lax.stop_gradient(y0))

        outputs = jax.tree.map(scaled, apply_fn(params, inputs), apply_fn(params0, inputs))
        value = loss_fn(outputs, *rest)
        return value / jnp.square(jnp.asarray(alpha).astype(jnp.result_type(value)))

    return loss


register(output_scaled_loss, form="program", paper=PAPER)
