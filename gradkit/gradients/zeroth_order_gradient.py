"""Gradients from two evaluations of the loss, along a random direction: the memory is that of inference."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine import directions
from gradkit.engine.zeroth_order import Estimate
from gradkit.gradients.replicas import mean_over, own_copy
from gradkit.types import PyTree, Scalar

PAPER = Paper(
    "ZeroFlow: Overcoming Catastrophic Forgetting is Easier than You Think", "Feng et al.", 2025, "2501.01045"
)


def directional_difference(
    loss: Callable[[Any], Any], params: PyTree, z: Any, epsilon: Scalar = 1e-3, two_sided: bool = True
) -> jax.Array:
    """The slope of a loss along a direction, from two of its values.

        c = (L(x + epsilon z) - L(x - epsilon z)) / (2 epsilon)      two-sided
        c = (L(x + epsilon z) - L(x)) / epsilon                      one-sided

    Args:
      loss: parameters -> scalar; need not be differentiable.
      params: x, a tree of real floating point arrays.
      z: the direction, a tree like the parameters.
      epsilon: distance, > 0. Default 1e-3 (official code).
      two_sided: which of both. Default True.

    Returns:
      c, a scalar in float32 or wider. Both points are in the dtype of `params`: a distance below its spacing, 2^-7 at 1
      in bfloat16, is lost, and `zeroth_order_gradient` evaluates in float32. No collective.

    Raises:
      ValueError: an argument outside its range, leaves that are not real floating point numbers, a direction of other
        shapes, a loss that is no scalar.

    Example:
      >>> directional_difference(lambda x: x**2, jnp.array(3.0), jnp.array(1.0), 0.5).item()
      6.0
      >>> directional_difference(lambda x: x**2, jnp.array(3.0), jnp.array(1.0), 0.5, two_sided=False).item()
      6.5

    Reference: Feng et al. ZeroFlow: Overcoming Catastrophic Forgetting is Easier than You Think. 2025, arXiv
    2501.01045.
    """
    checks.arrays(params=params, z=z)
    checks.function("loss", loss)
    rule = Estimate("directional_difference", epsilon, 1, two_sided, "normal", False, 1.0).checked()
    own, _ = rule.prepared(loss, params, (), {})
    params = jax.tree.map(jnp.asarray, params)
    of = rule.directions(None, jax.tree.map(lambda z: jnp.asarray(z)[None], z), params)
    z = jax.tree.map(lambda z: z.astype(directions.wide_dtype(z.dtype)), of(0))
    return rule.along(own, params, z, None if two_sided else own(params), lambda tree: tree)[0]


def zeroth_order_gradient(
    loss_fn: Callable[..., Any],
    epsilon: Scalar = 1e-3,
    num_directions: int = 1,
    two_sided: bool = True,
    *,
    distribution: str = "normal",
    scalar_sign: bool = False,
    nonzero_fraction: Scalar = 1.0,
    axis_name: Any = None,
) -> Callable[..., tuple[Any, Any]]:
    """A gradient from values of the loss alone: no backward pass, and no activation is kept.

        z_k ~ N(0, I) over all leaves,                                     k = 1 .. q
        c_k = (L(x + epsilon z_k) - L(x - epsilon z_k)) / (2 epsilon)      two-sided
        c_k = (L(x + epsilon z_k) - L(x)) / epsilon                        one-sided
        g   = (1 / q) sum_k c_k z_k
        E |g|^2 = (d + 2) |grad L|^2 (normal),    d |grad L|^2 (signs),    q = 1, to first order in epsilon

    for d parameters: the error grows with d, and on a quadratic of curvature lambda in all directions gradient descent
    is stable in mean square for learning rates below 2 / ((d + 2) lambda).

    Args:
      loss_fn: (params, *args) -> scalar; need not be differentiable. It must be deterministic given its arguments: a
        key of dropout is the same in both evaluations, else the difference is noise.
      epsilon: distance, > 0. Default 1e-3 (official code). The difference of two losses has few digits: about the cube
        root of the losses' precision, times the scale of the parameters, is best.
      num_directions: q >= 1. Default 1 (official code).
      two_sided: whether both sides are evaluated, two evaluations per direction, or the parameters once and one side
        per direction, 1 + q. Default True (official code).
      distribution: of z: "normal" (official code), "rademacher", random signs, or "sphere", uniform on the sphere of
        radius sqrt(d). Default "normal".
      scalar_sign: whether c is replaced by its sign, as `zo_sign_sgd` does. Default False.
      nonzero_fraction: the probability with which an entry of z is kept and not set to 0, in (0, 1]; E g is this times
        the gradient. Default 1 (official code's method without sparsity).
      axis_name: axis of `vmap` or `shard_map` whose members hold parts of the batch and the same key: value and c are
        averaged over them. Default None.

    Returns:
      fn(params, *args, key, direction=None, **kwargs) -> (value, gradient). `key` is a typed key or an integer, another
      one every step. `direction`, a tree like the parameters with a leading axis of length q, takes precedence over it.
      The value is the loss at the parameters (one-sided), or the mean over both points and all directions (two-sided),
      as a further pass is not made. A loss that is not finite makes the gradient NaN. No state; one perturbed copy of
      the parameters in flight, in float32 or wider whatever their dtype, as bfloat16 rounds a distance of 1e-3 away.
      Collectives: those of `axis_name`, two numbers per direction.

    Raises:
      ValueError: an argument outside its range; when called, neither key nor direction, leaves that are not real
        floating point numbers, a loss that is no scalar.

    Example:
      >>> fn = zeroth_order_gradient(lambda x: jnp.sum(x**2) / 2)
      >>> x, z = jnp.array([1.0, -2.0]), jnp.array([[1.0, 1.0]])
      >>> [round(float(g), 2) for g in fn(x, direction=z)[1]]  # <grad, z> z = -z
      [-1.0, -1.0]

    Reference: Feng et al. ZeroFlow: Overcoming Catastrophic Forgetting is Easier than You Think. 2025, arXiv
    2501.01045; Zhang et al. Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning: A Benchmark.
    2024, arXiv 2402.11592. Departures from their code: entries are set to 0 by a uniform number, where it compares a
    normal one with the sparsity, so that a sparsity of 0 sets half of them to 0; the mean is over all directions, where
    the low-memory step of the benchmark keeps the last alone; parameters are not changed in place.
    """
    checks.function("loss_fn", loss_fn)
    rule = Estimate(
        "zeroth_order_gradient", epsilon, num_directions, two_sided, distribution, scalar_sign, nonzero_fraction
    ).checked()
    checks.axis_name("axis_name", axis_name)

    def fn(params: Any, *args: Any, key: Any = None, direction: Any = None, **kwargs: Any) -> tuple[Any, Any]:
        params = own_copy(jax.tree.map(jnp.asarray, params), axis_name)
        return rule.gradient(loss_fn, params, args, kwargs, key, direction, partial(mean_over, axis_name=axis_name))

    return fn


RANDOM = "the gradient is right in expectation over keys: the test of its paper has its mean and its size"
register(
    zeroth_order_gradient,
    form="source",
    paper=PAPER,
    needs=("key",),
    golden=("second_shelf/zo_sgd", "second_shelf/zo_sgd_one_sided"),
    example={"epsilon": 0.1, "num_directions": 4},
    opt_outs={
        "linear": RANDOM,
        "bfloat16": RANDOM,
        "value_and_grad": "the value is the mean of the losses of both points: a further pass is not made",
    },
    notes="no backward pass, memory of inference; the variance grows with the number of parameters",
)
register(directional_difference, form="program", paper=PAPER)
