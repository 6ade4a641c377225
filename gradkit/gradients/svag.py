"""SVAG: gradients of a small batch with l^2 times the variance, so that SGD or Adam approach their SDE."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar, widen
from gradkit.engine.matching import check_leaves, check_match


def svag(grad_1: Any, grad_2: Any, l: Any) -> Any:  # noqa: E741 - the paper's letter
    """Combines two gradients to one of the same mean and l^2 times the covariance.

    Equations:

        g = (1 - sqrt(2 l^2 - 1)) / 2 g_1 + (1 + sqrt(2 l^2 - 1)) / 2 g_2

    The gradients g_1, g_2 are independent: the weights add up to 1, their squares to l^2. Train with learning_rate / l,
    1 - (1 - b) / l^2 for every decay b, and eps l, for l^2 times as many steps (SGD: with learning_rate / l^2). With
    l = 1 this is the method itself, and for l -> infinity it approaches its stochastic differential equation (SDE).

    Args:
      grad_1: the gradient of a minibatch; any tree.
      grad_2: the gradient of another minibatch, drawn independently, at the same parameters.
      l: the factor of the standard deviation, >= 1. May be traced.

    Returns:
      A tree like `grad_2`, in its dtypes; with l = 1 it is `grad_2`. Elementwise: no collective.

    Raises:
      ValueError: l below 1, or trees that do not match.

    Example:
      >>> float(svag(jnp.array(1.0), jnp.array(3.0), 5.0))  # -3 g_1 + 4 g_2
      9.0

    Reference: Malladi et al. On the SDEs and Scaling Rules for Adaptive Gradient Algorithms. 2022, arXiv 2205.10287;
    first for SGD in Li, Malladi, Arora. On the Validity of Modeling SGD with Stochastic Differential Equations. 2021,
    arXiv 2102.12470. The hyperparameters that go with it: `gk.batches.sqrt_scaling(hparams, 1 / l**2)`.
    """
    checks.arrays(grad_1=grad_1, grad_2=grad_2)
    checks.real("l", l, "[1, inf)")
    check_match("svag", grad_1, grad_2)
    for tree in (grad_1, grad_2):
        check_leaves("svag", tree, complex_leaves=True)
    root = math.sqrt(2 * l * l - 1) if isinstance(l, int | float) else jnp.sqrt(2 * jnp.square(l) - 1)

    def combined(a: jax.Array, b: jax.Array) -> jax.Array:
        # Written as a difference, which is exact where both gradients are equal.
        return b + scalar((root - 1) / 2, b) * (b - a)

    wide = jax.tree.map(combined, widen(grad_1), widen(grad_2))
    return jax.tree.map(lambda x, g: x.astype(g.dtype), wide, grad_2)


register(
    svag,
    form="function",
    paper=Paper("On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", "Malladi et al.", 2022, "2205.10287"),
    example={"grad_1": np.ones(2, np.float32), "grad_2": np.zeros(2, np.float32), "l": 2.0},
)
