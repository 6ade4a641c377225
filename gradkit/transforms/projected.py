"""Parameters that stay in a set: after every step they are projected to the nearest point of the set."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import inside, transformation


def projected(
    inner: optax.GradientTransformation, projection: Callable[[Any], Any]
) -> optax.GradientTransformationExtraArgs:
    """Projects the parameters into a set after every step of another transformation: projected gradient descent.

    Equations:

        u_t <- P(x_t + u_t) - x_t        so that x_{t+1} = P(x_t + u_t) is in the set

    It must go around the whole optimizer, learning rate and weight decay included: a link after it could leave the set.
    Parameters that start outside are in the set after the first step. In float32 x + (P(x + u) - x) is P(x + u) up to a
    rounding of x.

    Args:
      inner: any transformation; its updates are added to the parameters.
      projection: P: a function from a tree of real parameters to the nearest point of the set, for example one of
        `optax.projections`. It gets float32 or wider. It should satisfy P(P(x)) = P(x); that is not checked.

    Returns:
      A transformation. State: that of `inner`. Collectives: those of `inner` and of `projection`.

    Raises:
      ValueError: `inner` is not a transformation; `projection` is not a function, or returns another tree or other
        shapes; no parameters.

    Example:
      >>> tx = projected(optax.sgd(1.0), optax.projections.projection_non_negative)
      >>> w = jnp.array([0.5, 2.0])
      >>> u, _ = tx.update(jnp.ones(2), tx.init(w), w)
      >>> print(w + u)
      [0. 1.]

    Reference: Garrigos, Gower. Handbook of Convergence Theorems for (Stochastic) Gradient Methods. 2023, arXiv
    2301.11235.
    """
    below = inside(inner)
    checks.function("projection", projection)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, state = below.update(updates, state, params, **extra)
        moved = jax.tree.map(lambda x, u: x + u.astype(x.dtype), params, updates)
        new = projection(moved)
        here, there = (
            (jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)]) for tree in (moved, new)
        )
        if here != there:
            raise ValueError(
                f"projected: projection must return a tree like its argument, {here[0]} of shapes {here[1]}, got "
                f"{there[0]} of shapes {there[1]}"
            )
        return jax.tree.map(lambda p, x: p - x, new, params), state

    return transformation("projected", below.init, update, needs_params=True)


register(
    projected,
    form="wrapper",
    paper=Paper(
        "Handbook of Convergence Theorems for (Stochastic) Gradient Methods", "Garrigos, Gower", 2023, "2301.11235"
    ),
    example={"projection": lambda params: jax.tree.map(lambda x: jnp.clip(x, -10.0, 10.0), params)},
)
