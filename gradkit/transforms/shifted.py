"""Shifted parameters: the user has the point where the NEXT gradient is taken, and the state its distance from the
true parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import inside, transformation, zeros


class ShiftedParametersState(NamedTuple):
    """The distance of the user's parameters from the true ones, and the inner state."""

    shift: Any
    inner: Any

    def eval_params(self, params: Any) -> Any:
        """The true parameters."""
        return jax.tree.map(lambda y, s: (y.astype(s.dtype) - s).astype(y.dtype), params, self.shift)


def shifted_parameters(
    inner: optax.GradientTransformation,
    shift: Callable[[Any], Any],
    *,
    after: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lets the next gradient be taken at a point ahead of (or behind) the true parameters.

    Equations, with the true parameters x_t and the user's parameters y_t:

        y_t = x_t + s_t
        x_{t+1} = x_t + u_t            u_t from the inner transformation, which gets the gradient at y_t, and x_t
        s_{t+1} = shift(u_t)           the returned update is y_{t+1} - y_t = u_t + s_{t+1} - s_t

    Args:
      inner: moves the true parameters, which its decay uses.
      shift: tree of updates -> tree of displacements, from the update the inner transformation just made.
      after: further changes of the inner update that move the true parameters and are not part of the argument of
        `shift`, such as decoupled weight decay. Default none.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter (the displacement, zero at the start; the state
      has no parameters) and the inner state. The true parameters are `gk.eval_params(state, params)`.

    Raises:
      ValueError: `shift` is not callable.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkit.transforms import eval_params
      >>> tx = shifted_parameters(optax.sgd(0.1), lambda u: u)  # one step ahead
      >>> y = jnp.array(1.0)
      >>> state = tx.init(y)
      >>> updates, state = tx.update(jnp.array(1.0), state, y)
      >>> y = y + updates
      >>> round(float(y), 4), round(float(eval_params(state, y)), 4)
      (0.8, 0.9)

    Reference: The form that Nesterov's method, weight prediction and implicit gradient transport share;
    Nesterov. A method for solving the convex programming problem with convergence rate O(1/k^2). 1983.
    """
    checks.function("shift", shift)
    inner = inside(inner)
    tail = inside(after if after is not None else optax.identity(), "after")

    def init(params: optax.Params) -> ShiftedParametersState:
        return ShiftedParametersState(zeros(params), (inner.init(params), tail.init(params)))

    def update(updates: Any, state: ShiftedParametersState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        true = jax.tree.map(lambda y, s: y - s, params, state.shift)
        moved, first = inner.update(updates, state.inner[0], true, **extra)
        ahead = shift(moved)
        moved, second = tail.update(moved, state.inner[1], true, **extra)
        moved = jax.tree.map(lambda u, new, old: u + new - old, moved, ahead, state.shift)
        return moved, ShiftedParametersState(ahead, (first, second))

    return transformation("shifted_parameters", init, update, needs_params=True, complex_leaves=True)


register(
    shifted_parameters,
    form="wrapper",
    paper=Paper("A method for solving the convex programming problem with convergence rate O(1/k^2)", "Nesterov", 1983),
    words=1,
    example={"shift": lambda u: jax.tree.map(lambda x: 0.5 * x, u)},
)
