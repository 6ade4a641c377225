"""Gradients at displaced parameters."""

from collections.abc import Callable
from typing import Any

import jax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype
from gradkit.gradients.replicas import mean_over, own_copy

PAPER = Paper(
    "Sharpness-Aware Minimization for Efficiently Improving Generalization", "Foret et al.", 2020, "2010.01412"
)


def _move(x: jax.Array, e: jax.Array) -> jax.Array:
    wide = wide_dtype(x.dtype)
    return (x.astype(wide) + e.astype(wide)).astype(x.dtype)


def displaced_gradient(
    loss_fn: Callable[..., Any],
    displacement: Callable[[Any, Any], Any],
    *,
    has_aux: bool = False,
    axis_name: Any = None,
) -> Callable[..., tuple[Any, Any]]:
    """The value at the parameters, with the gradient at a displaced point.

    Equations:

        g = grad loss(x),    e = displacement(g, x),    result = grad loss(x + e)

    both gradients on the same minibatch. Methods of this kind differ in the displacement alone.

    Args:
      loss_fn: (params, *args) -> scalar, or (scalar, aux).
      displacement: (gradient tree, params) -> tree like params that is added to them.
      has_aux: whether `loss_fn` returns (scalar, aux). Default False.
      axis_name: axis of `vmap` or `shard_map` over whose members value and both gradients are averaged, so that
        all take the same displacement; aux is not. Default None: under such an axis each member has its own (m-SAM).

    Returns:
      fn(params, *args, **kwargs) -> (value, gradient), or ((value, aux), gradient): a drop-in for
      `jax.value_and_grad(loss_fn)`. Value and aux are those of the first pass, so statistics of BatchNorm never
      see the displaced parameters. Costs two gradients; no state; collectives: two means of the gradient with
      `axis_name`, none without. Both passes get the same arguments, so a random key means the same noise twice.

    Raises:
      ValueError: a function that cannot be called.

    Example:
      >>> import jax.numpy as jnp
      >>> fn = displaced_gradient(lambda x: jnp.sum(x**2) / 2, lambda g, x: 0.5 * g)
      >>> value, grads = fn(jnp.array([2.0]))
      >>> float(value), float(grads[0])
      (2.0, 3.0)

    Reference: Foret et al. Sharpness-Aware Minimization for Efficiently Improving Generalization. 2020,
    arXiv 2010.01412.
    """
    checks.axis_name("axis_name", axis_name)
    checks.switch(has_aux=has_aux)
    checks.function("loss_fn", loss_fn)
    checks.function("displacement", displacement)

    def fn(params: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        params = own_copy(params, axis_name)
        value, g = jax.value_and_grad(loss_fn, has_aux=has_aux)(params, *args, **kwargs)
        value, aux = value if has_aux else (value, None)
        value, g = mean_over((value, g), axis_name)
        beside = jax.tree.map(_move, params, displacement(g, params))
        gradient = jax.grad(loss_fn, has_aux=has_aux)(beside, *args, **kwargs)
        gradient = mean_over(gradient[0] if has_aux else gradient, axis_name)
        return ((value, aux) if has_aux else value), gradient

    return fn


register(
    displaced_gradient,
    form="source",
    paper=PAPER,
    example={"displacement": lambda g, x: jax.tree.map(lambda g: 0.01 * g, g)},
    notes="the frame of every method that asks for a second gradient at a shifted point",
)
