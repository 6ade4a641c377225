"""Gradient regularization: a penalty on the norm of the gradient, for one more gradient, by finite differences."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype, widen
from gradkit.gradients.replicas import mean_over, own_copy
from gradkit.types import Scalar

PAPER = Paper(
    "Understanding Gradient Regularization in Deep Learning: Efficient Finite-Difference Computation and Implicit Bias",
    "Karakida et al.",
    2022,
    "2210.02720",
)
SCHEMES = ("forward", "backward", "double_backward")


def _beside(x: Any, e: Any, g: Any) -> Any:
    """x + e conj(g), in the dtypes of x: JAX's gradient of a complex leaf is the conjugate of the ascent direction."""

    def leaf(x: jax.Array, g: jax.Array) -> jax.Array:
        return (x.astype(g.dtype) + jnp.asarray(e, wide_dtype(x.dtype)).astype(g.dtype) * jnp.conj(g)).astype(x.dtype)

    return jax.tree.map(leaf, x, g)


def gradient_regularization(
    loss_fn: Callable[..., Any],
    gamma: Scalar,
    eps: Scalar,
    scheme: str = "forward",
    *,
    has_aux: bool = False,
    axis_name: Any = None,
) -> Callable[..., tuple[Any, Any]]:
    """The gradient of the loss plus gamma / 2 times the square of its gradient's norm, by finite differences.

    Equations, with g = grad L(x), and H the Hessian of L at x:

        r = (grad L(x + eps g) - g) / eps            "forward"
        r = (g - grad L(x - eps g)) / eps            "backward"
        r = H g                                      "double_backward": the derivative of the gradient along g
        result = g + gamma r                         the gradient of L + gamma / 2 |grad L|^2 where r = H g

    With gamma = eps and "forward" it is the gradient at x + eps g: SAM without its normalization.

    Args:
      loss_fn: (params, *args) -> scalar, or (scalar, aux).
      gamma: weight of the penalty, >= 0. May be traced.
      eps: length of the displacement per length of the gradient, > 0; not read with "double_backward". In the paper
        "forward" generalizes best with a rather large one. May be traced.
      scheme: "forward", "backward" or "double_backward". Default "forward" (paper).
      has_aux: whether `loss_fn` returns (scalar, aux). Default False.
      axis_name: axis of `vmap` or `shard_map` over whose members value and gradients are averaged, before the
        displacement and after. Default None.

    Returns:
      fn(params, *args, **kwargs) -> (value, gradient) or ((value, aux), gradient): a drop-in for
      `jax.value_and_grad(loss_fn)`, with the value of the loss alone. Two gradients a step, of the same arguments; no
      state; collectives: two means of the gradient with `axis_name`, none without.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> loss = lambda x: jnp.sum(jnp.array([1.0, 3.0]) * x**2) / 2
      >>> value, grads = gradient_regularization(loss, 0.5, 0.125)(jnp.array([2.0, 1.0]))
      >>> print(value, grads)  # a + gamma a^2 of each curvature a
      3.5 [3.  7.5]

    Reference: Karakida et al. Understanding Gradient Regularization in Deep Learning: Efficient Finite-Difference
    Computation and Implicit Bias. 2022, arXiv 2210.02720. The gradient is not normalized.
    """
    checks.axis_name("axis_name", axis_name)
    checks.switch(has_aux=has_aux)
    checks.function("loss_fn", loss_fn)
    checks.real("gamma", gamma, "[0, inf)")
    checks.real("eps", eps, "(0, inf)")
    checks.choice("scheme", scheme, SCHEMES)

    def fn(params: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        params = own_copy(params, axis_name)
        value, g = jax.value_and_grad(loss_fn, has_aux=has_aux)(params, *args, **kwargs)
        value, aux = value if has_aux else (value, None)
        value, g = mean_over((value, widen(g)), axis_name)

        def gradient(x: Any) -> Any:
            found = jax.grad(loss_fn, has_aux=has_aux)(x, *args, **kwargs)
            return found[0] if has_aux else found

        def share(numerator: Any, like: jax.Array, denominator: Any = 1.0) -> jax.Array:
            real = wide_dtype(like.dtype)
            return (jnp.asarray(numerator, real) / jnp.asarray(denominator, real)).astype(like.dtype)

        if scheme == "double_backward":
            way = jax.tree.map(lambda g, x: jnp.conj(g).astype(x.dtype), g, params)
            r = mean_over(widen(jax.jvp(gradient, (params,), (way,))[1]), axis_name)
            new = jax.tree.map(lambda g, r: g + share(gamma, g) * r, g, r)
        else:
            sign = 1 if scheme == "forward" else -1
            there = mean_over(widen(gradient(_beside(params, sign * eps, g))), axis_name)
            new = jax.tree.map(lambda g, t: g + sign * share(gamma, g, eps) * (t - g), g, there)
        new = jax.tree.map(lambda n, x: n.astype(x.dtype), new, params)
        return ((value, aux) if has_aux else value), new

    return fn


register(gradient_regularization, form="source", paper=PAPER, example={"gamma": 0.1, "eps": 0.2})
