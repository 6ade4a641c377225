"""Bilevel problems in a single loop: the directions of the upper variable, the lower one, and of a linear system."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.matching import check_leaves, check_match
from gradkit.types import PyTree

PAPER = Paper(
    "Bilevel Optimization under Unbounded Smoothness: A New Algorithm and Convergence Analysis",
    "Hao, Gong, Liu",
    2024,
    "2401.09587",
)


class BilevelState(NamedTuple):
    """A run of a bilevel method.

    Attributes:
      count: number of steps made.
      x: the upper variable.
      y: the lower variable.
      v: the solution of the linear system, like y.
      memory: what the method keeps besides.
    """

    count: jax.Array
    x: Any
    y: Any
    v: Any
    memory: Any

    exact_fields = ("x", "y", "v")


class Bilevel(NamedTuple):
    """A bilevel method.

    Attributes:
      init: (x, y, ...) -> state.
      step: (state, ...) -> (state, value of the upper function at the point where the step began).
    """

    init: Callable[..., BilevelState]
    step: Callable[..., tuple[BilevelState, jax.Array]]


def inner(a: Any, b: Any) -> jax.Array:
    """The inner product of two trees."""
    products = [jnp.sum(x * y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]
    return sum((p.astype(jnp.result_type(*products)) for p in products), jnp.zeros((), jnp.result_type(*products)))


def stepped(tree: PyTree, rate: Any, direction: Any) -> Any:
    """tree - rate direction, in the dtypes of the tree."""
    return jax.tree.map(lambda p, d: (p - jnp.asarray(rate).astype(d.dtype) * d).astype(p.dtype), tree, direction)


def bilevel_directions(
    upper: Callable[[Any, Any, Any], Any], lower: Callable[[Any, Any, Any], Any]
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """The three directions of  min_x F(x, y*(x)),  y*(x) = argmin_y g(x, y),  at any point (x, y, v).

        d_y = grad_y g
        d_v = (hess_yy g) v - grad_y F                  to 0 where v = (hess_yy g)^-1 grad_y F
        d_x = grad_x F - grad_x <grad_y g, v>           the gradient of F(x, y*(x)), once d_y and d_v are 0

    To be SUBTRACTED, with a rate each. As a dictionary of x, y and v it is a gradient tree for any chain, such as
    `optax.partition` with a method per variable. One Hessian-vector product and one mixed product; no inverse.

    Args:
      upper: F, (x, y, batch) -> scalar, such as the loss on validation data.
      lower: g, (x, y, batch) -> scalar, twice differentiable, strongly convex in y near its minimum.

    Returns:
      fn(z, upper_batch=None, lower_batch=None) -> (F, directions): z a dictionary of x, y and v. Collectives: those of
      gradients.

    Raises:
      ValueError: functions that cannot be called; a z without its three parts; a v that is not like y.

    Example:
      >>> fn = bilevel_directions(lambda x, y, _: (y - 1.0) ** 2 / 2, lambda x, y, _: (2.0 * y - x) ** 2 / 2)
      >>> value, d = fn({"x": jnp.array(3.0), "y": jnp.array(1.5), "v": jnp.array(0.125)})  # y = x / 2, v = (y - 1) / 4
      >>> [float(d[name]) for name in "xyv"]  # dF/dx = (y - 1) / 2
      [0.25, 0.0, 0.0]

    Reference: Hao, Gong, Liu. Bilevel Optimization under Unbounded Smoothness: A New Algorithm and Convergence
      Analysis.
    2024, arXiv 2401.09587. Its code leaves out grad_x F, which is 0 in its experiments.
    """
    checks.function("upper", upper)
    checks.function("lower", lower)

    def fn(z: dict[str, Any], upper_batch: Any = None, lower_batch: Any = None) -> tuple[Any, dict[str, Any]]:
        if not isinstance(z, dict) or set(z) != {"x", "y", "v"}:
            raise ValueError(
                "bilevel_directions: z must be a dictionary of x, y and v, got "
                f"{sorted(z) if isinstance(z, dict) else type(z).__name__}; write dict(x=..., y=..., v=...)"
            )
        x, y, v = (jax.tree.map(jnp.asarray, z[name]) for name in "xyv")
        check_leaves("bilevel_directions", (x, y, v), complex_leaves=False)
        check_match("bilevel_directions: v", v, y)
        value, (F_x, F_y) = jax.value_and_grad(upper, (0, 1))(x, y, upper_batch)
        g_y = lambda x, y: jax.grad(lower, 1)(x, y, lower_batch)  # noqa: E731
        tangent = jax.tree.map(lambda v, y: v.astype(y.dtype), v, y)
        d_y, product = jax.jvp(lambda y: g_y(x, y), (y,), (tangent,))
        mixed = jax.grad(lambda x: inner(g_y(x, y), jax.lax.stop_gradient(tangent)))(x)
        subtract = lambda a, b: jax.tree.map(jnp.subtract, a, b)  # noqa: E731
        return value, {"x": subtract(F_x, mixed), "y": d_y, "v": subtract(product, F_y)}

    return fn


register(bilevel_directions, form="program", paper=PAPER, notes="a gradient tree over x, y and v for any chain")
