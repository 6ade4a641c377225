"""The gradient of the Moreau envelope: a measure of stationarity for losses that are not smooth."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import widen
from gradkit.engine.matching import check_match
from gradkit.types import PyTree, Scalar

PAPER = Paper(
    "Stochastic model-based minimization of weakly convex functions", "Davis, Drusvyatskiy", 2018, "1803.06523"
)


def moreau_gradient(prox_fn: Callable[[Any, Any], Any], params: PyTree, lam: Scalar) -> Any:
    """The gradient of the Moreau envelope, whose norm measures stationarity where the loss has no gradient.

    Equations:

        f_lam(x) = min_y f(y) + |y - x|^2 / (2 lam)
        prox(x)  = argmin_y f(y) + |y - x|^2 / (2 lam)
        gradient of f_lam at x = (x - prox(x)) / lam

    Args:
      prox_fn: (parameters, lam) -> the proximal point argmin_y f(y) + |y - x|^2 / (2 lam).
      params: x.
      lam: > 0; for a rho-weakly convex loss below 1 / rho, in the paper 1 / (2 rho).

    Returns:
      A tree like the parameters, in float32 or wider. Elementwise: no collective of its own.

    Raises:
      ValueError: `lam` outside its range, or a proximal point that does not match the parameters.

    Example:
      >>> shrink = lambda x, lam: jnp.sign(x) * jnp.maximum(jnp.abs(x) - lam, 0)  # f is the sum of |x|
      >>> print(moreau_gradient(shrink, jnp.array([3.0, 0.25]), 0.5))
      [1.  0.5]

    Reference: Davis, Drusvyatskiy. Stochastic model-based minimization of weakly convex functions. 2018, arXiv
    1803.06523.
    """
    checks.arrays(params=params)
    checks.function("prox_fn", prox_fn)
    checks.real("lam", lam, "(0, inf)")
    point = prox_fn(params, lam)
    check_match("moreau_gradient", point, params)
    return jax.tree.map(lambda x, y: (x - y) / jnp.asarray(lam, x.dtype), widen(params), widen(point))


register(
    moreau_gradient,
    form="function",
    paper=PAPER,
    example={"prox_fn": lambda x, lam: x, "params": {"w": np.ones(2, np.float32)}, "lam": 0.5},
)
