"""Forward gradients: a random direction, times the slope of the loss along it, without a backward pass."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.directions import DISTRIBUTIONS, direction
from gradkit.engine.keys import NoKey, as_key
from gradkit.engine.matching import check_leaves
from gradkit.gradients.replicas import mean_over, own_copy
from gradkit.types import PyTree

PAPER = Paper("Gradients without Backpropagation", "Baydin et al.", 2022, "2202.08587")


def custom_rules(jaxpr: Any) -> list[str]:
    """Names of the functions in a program that have a rule for reverse mode alone."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith("custom_vjp"):
            found.append(equation.params["call_jaxpr"].jaxpr.debug_info.func_name.split(" ")[0])
        else:
            for inner in jax.tree.leaves(list(equation.params.values())):
                inner = getattr(inner, "jaxpr", inner)
                found += custom_rules(inner) if hasattr(inner, "eqns") else []
    return found


def slope_along(method: str, loss: Callable[[Any], Any], params: PyTree, z: Any, has_aux: bool) -> tuple[Any, Any, Any]:
    """(value, derivative along z, aux).

    Raises:
      ValueError: a loss that is no scalar, or with a function that has no derivative in forward mode.
    """
    tangent = jax.tree.map(lambda z, x: z.astype(x.dtype), z, params)
    try:
        value, slope, *aux = jax.jvp(loss, (params,), (tangent,), has_aux=has_aux)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        known = ", ".join(custom_rules(jax.make_jaxpr(loss)(params).jaxpr)) or "unknown"
        raise ValueError(
            f"{method}: loss_fn must have derivatives in forward mode, got jax.custom_vjp functions ({known}); write "
            "them with jax.custom_jvp, or leave out the custom rule"
        ) from error
    if jnp.shape(value) != ():
        raise ValueError(
            f"{method}: loss_fn must return a scalar, got an array of shape {jnp.shape(value)}; write jnp.mean of it"
        )
    return value, slope, (aux[0] if has_aux else None)


def forward_gradient(
    loss_fn: Callable[..., Any],
    num_directions: int = 1,
    *,
    distribution: str = "normal",
    chunk: int = 1,
    has_aux: bool = False,
    axis_name: Any = None,
) -> Callable[..., tuple[Any, Any]]:
    """An unbiased gradient from derivatives in forward mode: nothing of the forward pass is kept.

        v_k ~ N(0, I), or random signs,    k = 1 .. K
        d_k = <grad L(x), v_k>             by one pass in forward mode, together with L(x)
        g   = (1 / K) sum_k d_k v_k,       E g = grad L(x)
        E |g|^2 = (1 + (n + 1) / K) |grad L|^2 (normal),    (1 + (n - 1) / K) |grad L|^2 (signs)

    for n parameters. The error grows with n: a learning rate that suits the gradient must be divided by about n / K.

    Args:
      loss_fn: (params, *args) -> scalar, or (scalar, aux); differentiable in forward mode.
      num_directions: K, >= 1. Default 1 (paper).
      distribution: of v, "normal" (paper) or "rademacher", random signs, which have less variance at the same cost.
        Default "normal".
      chunk: how many directions are evaluated at once, a divisor of `num_directions`, >= 1. Default 1: one after
        another, with the memory of one.
      has_aux: whether `loss_fn` returns (scalar, aux). Default False.
      axis_name: axis of `vmap` or `shard_map` whose members hold parts of the batch and the same key: value and slopes
        are averaged over them, 1 + K numbers; aux is not. Default None.

    Returns:
      fn(params, *args, key, **kwargs) -> (value, gradient), or ((value, aux), gradient). `key` is a typed key or an
      integer, another one every step. The value is that of the loss at the parameters. No state; one tangent in
      memory; no collective but that of `axis_name`.

    Raises:
      ValueError: an argument outside its range; when called, no key, leaves that are not real floating point numbers,
        a loss that is no scalar or has functions with a `jax.custom_vjp` alone, which are named.

    Example:
      >>> fn = forward_gradient(lambda x: 3.0 * x, distribution="rademacher")
      >>> value, g = fn(jnp.array(2.0), key=0)  # with one parameter v^2 is 1
      >>> float(value), float(g)
      (6.0, 3.0)

    Reference: Baydin et al. Gradients without Backpropagation. 2022, arXiv 2202.08587. The paper's learning rates fall
    as exp(-1e-4 t); a schedule has that. It has normal directions alone.
    """
    checks.function("loss_fn", loss_fn)
    num_directions = checks.integer("num_directions", num_directions, 1)
    checks.choice("distribution", distribution, DISTRIBUTIONS)
    chunk = checks.integer("chunk", chunk, 1)
    checks.switch(has_aux=has_aux)
    checks.axis_name("axis_name", axis_name)
    if num_directions % chunk:
        raise ValueError(f"chunk must be a divisor of num_directions={num_directions}, got {chunk}; write chunk=1")

    def fn(params: Any, *args: Any, key: Any = None, **kwargs: Any) -> tuple[Any, Any]:
        if key is None:
            raise NoKey("forward_gradient", call="fn(params, batch, key=...)")
        random = as_key(key)
        check_leaves("forward_gradient", params, complex_leaves=False)
        params = own_copy(jax.tree.map(jnp.asarray, params), axis_name)

        def along(i: Any) -> tuple[Any, Any, Any]:
            v = direction(random if num_directions == 1 else jax.random.fold_in(random, i), params, distribution)
            # What the parameters' dtype makes of v, so that both factors are of the same direction.
            v = jax.tree.map(lambda v, x: v.astype(x.dtype).astype(v.dtype), v, params)
            value, slope, aux = slope_along(
                "forward_gradient", lambda p: loss_fn(p, *args, **kwargs), params, v, has_aux
            )
            value, slope = mean_over((value, slope), axis_name)
            return value, jax.tree.map(lambda v: slope.astype(v.dtype) * v, v), aux

        def rows(group: Any) -> tuple[Any, Any, Any]:
            """The value, and the sum over the directions of one chunk."""
            if chunk == 1:
                return along(group)
            value, g, aux = jax.vmap(along)(group * chunk + jnp.arange(chunk))
            return value[0], jax.tree.map(lambda g: jnp.sum(g, axis=0), g), jax.tree.map(lambda a: a[0], aux)

        value, total, aux = rows(0)
        if num_directions > chunk:
            more = lambda i, total: jax.tree.map(jnp.add, total, rows(i)[1])  # noqa: E731
            total = jax.lax.fori_loop(1, num_directions // chunk, more, total)
        g = jax.tree.map(lambda t, x: (t / num_directions).astype(x.dtype), total, params)
        return ((value, aux) if has_aux else value), g

    return fn


RANDOM = "the gradient is right in expectation over keys: the test of its paper has its mean and its variance"
register(
    forward_gradient,
    form="source",
    paper=PAPER,
    needs=("key",),
    example={"num_directions": 8, "chunk": 4},
    opt_outs={"linear": RANDOM, "bfloat16": RANDOM},
    notes="no backward pass; the variance grows with the number of parameters",
)
