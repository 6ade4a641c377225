"""Spectral decoupling: a penalty of the logits, with which a network learns all features and not the easiest alone.

Equations: in the docstring of `spectral_decoupling`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar, wide_dtype
from gradkit.types import Scalar

PAPER = Paper("Gradient Starvation: A Learning Proclivity in Neural Networks", "Pezeshki et al.", 2020, "2011.09468")


def spectral_decoupling(logits: Any, *, coef: Scalar = 1e-3, target: Any = 0.0) -> jax.Array:
    """The penalty of spectral decoupling, which is added to the loss in the place of weight decay.

        coef mean((y - target)^2)        y the logits

    Args:
      logits: y, real numbers of any shape.
      coef: >= 0: a number, or one per example or class, of a shape that broadcasts to the logits. Default 1e-3.
      target: what the logits are drawn to, likewise. Default 0. For imbalanced classes one per example by its label:
        the authors' code for CelebA has 2.5 for y = 1 and 0.44 for y = 0.

    Returns:
      A scalar, in float32 or wider. Its derivative by a logit is 2 coef (y - target) / (number of logits).

    Raises:
      ValueError: a coefficient outside its range, or logits that are not floating point.

    Example:
      >>> float(spectral_decoupling(jnp.array([1.0, 3.0]), coef=0.1))
      0.5

    Reference: Pezeshki et al. Gradient Starvation: A Learning Proclivity in Neural Networks. 2020, arXiv 2011.09468.
    The paper writes lambda / 2 |y|^2; this is the authors' code, with lambda = 2 coef and a mean over the batch.
    """
    checks.arrays(logits=logits, coef=coef, target=target)
    if jnp.ndim(coef) == 0:
        checks.real("coef", coef, "[0, inf)")
    y = jnp.asarray(logits)
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise ValueError(f"logits must be floating point, got {y.dtype}; write logits.astype(jnp.float32)")
    y = y.astype(wide_dtype(y.dtype))
    weight, toward = (jnp.broadcast_to(scalar(x, y), y.shape) for x in (coef, target))
    return jnp.mean(weight.astype(y.dtype) * jnp.square(y - toward.astype(y.dtype)))


register(spectral_decoupling, form="layer", paper=PAPER)
