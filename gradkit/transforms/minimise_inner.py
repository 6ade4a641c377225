"""An inner loop: some steps of an optimizer on a surrogate of the loss, as one step of the outer method."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import inside, wide_dtype
from gradkit.types import PyTree

PAPER = Paper("Target-based Surrogates for Stochastic Optimization", "Lavington et al.", 2023, "2302.02607")


def descended(
    value_and_grad: Callable[[Any], tuple[Any, Any]],
    inner: optax.GradientTransformation,
    inner_steps: int,
    params: PyTree,
    state: Any,
    **functions: Any,
) -> tuple[Any, Any]:
    """(parameters, state of the optimizer) after the inner steps; `functions` are passed to every update."""
    inner = optax.with_extra_args_support(inner)

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
        y, state = carry
        value, g = value_and_grad(y)
        extra = functions if value is None else {"value": value, "grad": g, **functions}
        updates, state = inner.update(g, state, y, **extra)
        return (_added(y, updates), state), None

    return jax.lax.scan(step, (params, state), None, inner_steps)[0]


def _added(y: Any, updates: Any) -> Any:
    """y + u, in float32 or wider, in the dtype of y."""

    def leaf(x: jax.Array, u: jax.Array) -> jax.Array:
        wide = wide_dtype(x.dtype)
        return (x.astype(wide) + u.astype(wide)).astype(x.dtype)

    return jax.tree.map(leaf, y, updates)


def minimise_inner(
    surrogate: Callable[..., jax.Array], inner: optax.GradientTransformation, inner_steps: int
) -> Callable[..., tuple[Any, Any]]:
    """Some steps of an optimizer on a surrogate loss, as a function of the parameters.

    Equations:

        y_0 = x,   y_{k+1} = y_k + inner(gradient of s at y_k),   k = 0, ..., inner_steps - 1

    Methods differ only in the surrogate s: a proximal term, a cheaper loss, a model of the loss in the predictions.

    Args:
      surrogate: (params, *args) -> scalar.
      inner: any optimizer, learning rate included; it gets `value`, `grad`, `value_fn` and `grad_fn`.
      inner_steps: number of its steps, >= 1.

    Returns:
      fn(params, state=None, *args) -> (params, state of the optimizer): state=None starts from a fresh state. It costs
      `inner_steps` gradients of the surrogate in one `lax.scan`. Collectives: those of the optimizer and of the
      gradients.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> solve = minimise_inner(lambda y, x: (y - x) ** 2, optax.sgd(0.25), 3)
      >>> y, _ = solve(jnp.array(0.0), None, jnp.array(8.0))  # every step goes half of the remaining way
      >>> float(y)
      7.0

    Reference: Lavington et al. Target-based Surrogates for Stochastic Optimization. 2023, arXiv 2302.02607, whose inner
    loop this is.
    """
    checks.function("surrogate", surrogate)
    inner_steps = checks.integer("inner_steps", inner_steps, 1)
    inner = inside(inner)

    def fn(params: Any, state: Any = None, *args: Any) -> tuple[Any, Any]:
        def value_fn(y: Any) -> jax.Array:
            return surrogate(y, *args)

        state = inner.init(params) if state is None else state
        functions = {"value_fn": value_fn, "grad_fn": jax.grad(value_fn)}
        return descended(jax.value_and_grad(value_fn), inner, inner_steps, params, state, **functions)

    return fn


register(minimise_inner, form="program", paper=PAPER)
