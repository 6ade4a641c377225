"""Flooding in a chain: the gradient of |loss - b| + b, from the gradient of the loss and its value."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import need, transformation
from gradkit.types import Scalar

PAPER = Paper("Do We Need Zero Training Loss After Achieving Zero Training Error?", "Ishida et al.", 2020, "2002.08709")


def flood(b: Scalar) -> optax.GradientTransformationExtraArgs:
    """Reverses the gradient where the loss of the minibatch is below a level. The first link of a chain.

    Equation:

        g <- sign(value - b) g

    Args:
      b: the level, >= 0. The paper searches 0 to 0.2 for cross entropies.

    Returns:
      A transformation that needs `value`, the mean loss of this minibatch. No state. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `value` missing.

    Example:
      >>> tx, g = flood(0.1), jnp.array([1.0, -2.0])
      >>> print(tx.update(g, tx.init(g), value=0.05)[0])
      [-1.  2.]

    Reference: Ishida et al. Do We Need Zero Training Loss After Achieving Zero Training Error? 2020, arXiv 2002.08709.
    As a loss: `gk.losses.flooding`.
    """
    checks.real("b", b, "[0, inf)")

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, optax.EmptyState]:
        del params
        value = jnp.asarray(checks.scalar("flood: value", need("flood", extra, "value")))
        value = value.astype(jnp.result_type(float))
        sign = jnp.sign(value - jnp.asarray(b).astype(value.dtype))
        return jax.tree.map(lambda g: sign.astype(g.dtype) * g, updates), state

    return transformation("flood", lambda params: optax.EmptyState(), update, complex_leaves=True)


register(flood, form="primitive", paper=PAPER, needs=("value",), example={"b": 0.0})
