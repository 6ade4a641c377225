"""What sources of gradients with a memory share: what they are, and the two evaluations that they are made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from gradkit.engine.core import wide_dtype, widen
from gradkit.gradients.replicas import mean_over
from gradkit.types import PyTree


class StatefulGradient(NamedTuple):
    """A source of gradients that keeps something from step to step.

    Attributes:
      init: parameters -> state.
      value_and_grad: (state, params, *args, **kwargs) -> (value, gradient, state), or ((value, aux), gradient, state);
        args and kwargs go to the loss.
    """

    init: Callable[[Any], Any]
    value_and_grad: Callable[..., tuple[Any, Any, Any]]


class Evaluations(NamedTuple):
    """A loss at the parameters and beside them, averaged over an axis of replicas.

    Attributes:
      loss_fn: (params, *args) -> scalar, or (scalar, aux).
      has_aux: which of the two.
      axis_name: the axis, or None.
    """

    loss_fn: Callable[..., Any]
    has_aux: bool
    axis_name: Any

    def here(self, params: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """(value or (value, aux), gradient in float32 or wider)."""
        value, g = jax.value_and_grad(self.loss_fn, has_aux=self.has_aux)(params, *args, **kwargs)
        value, aux = value if self.has_aux else (value, None)
        value, g = mean_over((value, widen(g)), self.axis_name)
        return ((value, aux) if self.has_aux else value), g

    def beside(self, params: Any, displacement: Any, args: Any, kwargs: Any) -> Any:
        """The gradient at params + displacement, in float32 or wider."""

        def move(x: jax.Array, e: jax.Array) -> jax.Array:
            return (x.astype(wide_dtype(x.dtype)) + e).astype(x.dtype)

        g = jax.grad(self.loss_fn, has_aux=self.has_aux)(jax.tree.map(move, params, displacement), *args, **kwargs)
        return mean_over(widen(g[0] if self.has_aux else g), self.axis_name)


def as_params(g: Any, params: PyTree) -> Any:
    """A gradient in the dtypes of the parameters."""
    return jax.tree.map(lambda g, x: g.astype(x.dtype), g, params)
