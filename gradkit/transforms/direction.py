"""Direction from the gradient, magnitude from another rule.

u = sign(g) |p|,   p the direction an inner transformation makes of g
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit.catalogue import Paper, register
from gradkit.engine.core import inside, transformation


def direction_from_gradient(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Keeps the magnitude of an inner direction, coordinate by coordinate, with the sign of the gradient.

    Args:
      inner: gives p from the gradient; its sign is not used, so it may or may not include the minus of
        a learning rate.

    Returns:
      A transformation. State: the inner one. Elementwise: no collective. Where g = 0 the update is 0.

    Raises:
      ValueError: complex leaves, which have no sign.

    Example:
      >>> tx = direction_from_gradient(optax.trace(0.5))
      >>> g = jnp.array([1.0, -1.0])
      >>> _, state = tx.update(g, tx.init(g))
      >>> print(tx.update(-0.25 * g, state)[0])  # the momentum, 0.25 g, still points along g
      [-0.25  0.25]

    Reference: Cao, Li, Song. Grams: Gradient Descent with Adaptive Momentum Scaling. 2024, arXiv 2412.17107.
    """
    inner = inside(inner)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        p, state = inner.update(updates, state, params, **extra)
        return jax.tree.map(lambda g, p: jnp.sign(g) * jnp.abs(p), updates, p), state

    return transformation("direction_from_gradient", inner.init, update)


register(
    direction_from_gradient,
    form="wrapper",
    paper=Paper("Grams: Gradient Descent with Adaptive Momentum Scaling", "Cao, Li, Song", 2024, "2412.17107"),
    wraps="direction",
)
