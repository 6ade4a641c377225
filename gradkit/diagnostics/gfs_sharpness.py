"""The sharpness of the gradient flow solution: of the minimum that gradient flow reaches from here.

GFS(x) = lambda_1(H(y)),   y = the end of dx/dt = -grad f from x

Scalar networks, f(x) = (x_1 ... x_n - target)^2 / 2: gradient flow keeps all x_i^2 - x_j^2, so that

    y_i = sign(x_i) sqrt(x_i^2 + c),   c the number for which y_1 ... y_n = target
    GFS(x) = target^2 sum_i 1 / y_i^2

Gradient descent does not keep them, and makes GFS smaller from step to step. With two factors and target 1, GFS is
sqrt((x^2 - y^2)^2 + 4), and a step of size h multiplies x^2 - y^2 by 1 - h^2 (x y - 1)^2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.diagnostics.gradient_subspace_fraction import top_eigenpairs
from gradkit.engine.core import widen
from gradkit.engine.matching import check_leaves, check_match
from gradkit.engine.norms import global_norm, global_square
from gradkit.types import Key, PyTree, Scalar

PAPER = Paper(
    "Gradient Descent Monotonically Decreases the Sharpness of Gradient Flow Solutions in Scalar Networks and Beyond",
    "Kreisler et al.",
    2023,
    "2305.13064",
)


class GfsSharpness(NamedTuple):
    """Where gradient flow ends, and how sharp it is there.

    Attributes:
      sharpness: the largest eigenvalue of the Hessian at the end.
      params: the end.
      gradient_norm: at the end; above the tolerance where the flow did not converge.
    """

    sharpness: jax.Array
    params: Any
    gradient_norm: jax.Array


def _flow(grad_fn: Callable[[Any], Any], x: Any, tolerance: Any, error_per_step: float, total_steps: int) -> Any:
    """The end of dx/dt = -grad f: pairs of orders 3 and 2 (Bogacki, Shampine), whose difference sets the step."""

    def moved(x: Any, *terms: tuple[Any, Any]) -> Any:
        for factor, g in terms:
            x = jax.tree.map(lambda a, b, f=factor: a - jnp.asarray(f, a.dtype) * b, x, g)
        return x

    def attempt(carry: Any) -> Any:
        x, g, h, n = carry
        k2 = grad_fn(moved(x, (h / 2, g)))
        k3 = grad_fn(moved(x, (3 * h / 4, k2)))
        new = moved(x, (2 * h / 9, g), (h / 3, k2), (4 * h / 9, k3))
        k4 = grad_fn(new)
        zero = jax.tree.map(jnp.zeros_like, x)
        off = moved(zero, (-5 * h / 72, g), (h / 12, k2), (h / 9, k3), (-h / 8, k4))
        # Relative to where it is, and to how far it goes: near the end a step that is too long for stability would
        # pass the former. Of a step that leaves all finite numbers nothing is kept.
        allowed = jnp.minimum(error_per_step * (1 + global_norm(new)), 0.02 * h * global_norm(g))
        error = global_norm(off) / jnp.where(allowed > 0, allowed, 1)
        good = error <= 1
        keep = lambda a, b: jnp.where(good, a, b)  # noqa: E731
        grown = jnp.where(error > 0, 0.9 * jnp.power(jnp.maximum(error, 1e-10), -1 / 3), 5.0)
        h = h * jnp.where(jnp.isfinite(error), jnp.clip(grown, 0.2, 5.0), 0.2).astype(h.dtype)
        return jax.tree.map(keep, new, x), jax.tree.map(keep, k4, g), h, n + 1

    def unfinished(carry: Any) -> jax.Array:
        return (global_norm(carry[1]) > tolerance) & (carry[3] < total_steps)

    g = grad_fn(x)
    size = global_norm(g)
    h = 0.01 * (1 + jnp.sqrt(global_square(x))) / jnp.where(size > 0, size, 1)
    return jax.lax.while_loop(unfinished, attempt, (x, g, h, jnp.zeros((), jnp.int32)))[0]


def gfs_sharpness(
    loss_fn: Callable[..., Any],
    params: PyTree,
    key: Key,
    *args: Any,
    flow_solver: Callable[..., Any] | None = None,
    tolerance: Scalar = 1e-5,
    error_per_step: float = 1e-5,
    total_steps: int = 10_000,
    steps: int | None = None,
) -> GfsSharpness:
    """The sharpness of the minimum that gradient flow reaches from the parameters.

        GFS(x) = lambda_1(H(y)),   y = the end of dx/dt = -grad f from x

    Args:
      loss_fn: (params, *args) -> a scalar, twice differentiable.
      params: x.
      key: a typed key or an integer, for the first Lanczos vector.
      *args: further arguments of the loss, such as the data set.
      flow_solver: (loss of the parameters alone, params) -> the end of the flow. Default None: an explicit integrator
        of third order with steps by its error; a flow that is stiff (a sharp minimum far away) takes many steps.
      tolerance: of the default solver: the norm of the gradient at which it ends, > 0. Default 1e-5.
      error_per_step: of the default solver, relative to the parameters, > 0. Default 1e-5.
      total_steps: of the default solver, >= 1. Default 10,000.
      steps: Lanczos steps for the eigenvalue. Default None: 12, or as many as there are parameters.

    Returns:
      A `GfsSharpness`.

    Raises:
      ValueError: an argument outside its range, leaves that are not real, a solver whose end does not match.

    Example:
      >>> loss = lambda x: 0.5 * (x[0] * x[1] - 1) ** 2
      >>> measure = jax.jit(lambda x, key: gfs_sharpness(loss, x, key).sharpness)
      >>> round(float(measure(jnp.array([2.0, 1.0]), jax.random.key(0))), 1)  # sqrt(3^2 + 4)
      3.6

    Reference: Kreisler et al. Gradient Descent Monotonically Decreases the Sharpness of Gradient Flow Solutions in
    Scalar Networks and Beyond. 2023, arXiv 2305.13064.
    """
    checks.arrays(params=params)
    checks.function("loss_fn", loss_fn)
    checks.real("tolerance", tolerance, "(0, inf)")
    checks.real("error_per_step", error_per_step, "(0, inf)")
    total_steps = checks.integer("total_steps", total_steps, 1)
    check_leaves("gfs_sharpness", params, complex_leaves=False)

    def loss(x: Any) -> jax.Array:
        return loss_fn(x, *args)

    params = widen(params)
    if flow_solver is None:
        end = _flow(jax.grad(loss), params, tolerance, error_per_step, total_steps)
    else:
        checks.function("flow_solver", flow_solver)
        end = flow_solver(loss, params)
        check_match("gfs_sharpness", end, params)
    g, product = jax.linearize(jax.grad(loss), end)
    found = top_eigenpairs(product, key, end, 1, steps=steps)
    return GfsSharpness(found.values[0], end, global_norm(g))


def scalar_gfs_sharpness(x: Any, *, target: Any = 1.0) -> jax.Array:
    """The sharpness of the gradient flow solution of a scalar network, f(x) = (x_1 ... x_n - target)^2 / 2.

        y_i = sign(x_i) sqrt(x_i^2 + c),   y_1 ... y_n = target,   GFS(x) = target^2 sum_i 1 / y_i^2

    Args:
      x: the weights, shape (n,), n >= 1, none of them 0.
      target: a number that is not 0 and has the sign of the product. Default 1 (paper).

    Returns:
      A number, in float32 or wider; NaN where x is traced and the product has the other sign: gradient flow then ends
      elsewhere. By bisection for min y_i^2.

    Raises:
      ValueError: another shape, a target that is 0, a product that is 0 or of the other sign.

    Example:
      >>> round(float(scalar_gfs_sharpness(jnp.array([2.0, 1.0]))), 4)  # sqrt(3^2 + 4)
      3.6056

    Reference: Kreisler et al. Gradient Descent Monotonically Decreases the Sharpness of Gradient Flow Solutions in
    Scalar Networks and Beyond. 2023, arXiv 2305.13064.
    """
    checks.arrays(x=x)
    checks.real("target", target)
    x = jnp.asarray(x, jnp.result_type(float))
    if x.ndim != 1 or not x.size:
        raise ValueError(
            f"scalar_gfs_sharpness: x must have shape (n,), n >= 1, got {x.shape}; write jnp.array([2.0, 1.0])"
        )
    T = jnp.asarray(target, x.dtype)
    reachable = (jnp.prod(jnp.sign(x)) * jnp.sign(T)) > 0
    if not isinstance(reachable, Tracer) and not bool(reachable):
        raise ValueError(
            f"scalar_gfs_sharpness: the product of x must have the sign of target={target!r} and not be 0, got "
            f"{np.asarray(x).tolist()}; gradient flow from there does not reach the target with these signs"
        )
    squares = jnp.square(x)
    above = squares - jnp.min(squares)
    goal, n = 2 * jnp.log(jnp.abs(T)), x.size

    # u = log min y_i^2; the product grows with it, and is the target's square at most where all are equal.
    def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        u = (low + high) / 2
        small = jnp.sum(jnp.log(jnp.exp(u) + above)) < goal
        return jnp.where(small, u, low), jnp.where(small, high, u)

    first = jnp.log(jnp.asarray(jnp.finfo(x.dtype).tiny, x.dtype))
    low, high = jax.lax.fori_loop(0, 100, halve, (jnp.minimum(first, goal / n), goal / n))
    y2 = jnp.exp((low + high) / 2) + above
    return jnp.where(reachable, jnp.square(T) * jnp.sum(1 / y2), jnp.nan)


SHARED: dict[str, Any] = {"form": "function", "paper": PAPER}
register(
    gfs_sharpness,
    **SHARED,
    collectives="norms",
    example={
        "loss_fn": lambda x: jnp.sum(x**2),
        "params": np.ones(2, np.float32),
        "key": np.zeros(2, np.uint32),
    },
)
register(scalar_gfs_sharpness, **SHARED, example={"x": np.array([2.0, 1.0], np.float32)})
