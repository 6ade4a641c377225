"""Hutchinson's estimate of the diagonal of a Hessian, from Hessian-vector products with random vectors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.hutchinson import check_hutchinson, hutchinson
from gradkit.engine.keys import as_key
from gradkit.engine.matching import check_leaves
from gradkit.gradients.replicas import mean_over, own_copy
from gradkit.leaves import Layout, resolve_layout
from gradkit.types import Key, PyTree

PAPER = Paper("ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning", "Yao et al.", 2020, "2006.00719")


def scalar_loss(name: str, loss: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The loss, which raises unless its value is a scalar."""

    def checked(params: Any) -> Any:
        value = loss(params)
        if jnp.shape(value) != ():
            raise ValueError(f"{name}: the loss must be a scalar, got shape {jnp.shape(value)}")
        return value

    return checked


def hutchinson_diag(
    loss_fn: Callable[[Any], Any],
    params: PyTree,
    key: Key,
    *,
    num_samples: int = 1,
    distribution: str = "rademacher",
    absolute: bool = False,
    spatial_average: str | None = None,
    layout: Layout | None = None,
    axis_name: Any = None,
) -> Any:
    """An unbiased estimate of the diagonal of the Hessian, for about two gradients per sample.

    Equations:

        h = mean over samples of z (H z),    z of random signs, or standard normal:    E[h] = diag(H)

    The vectors are derived from the key and the names of the leaves: they are the same on all replicas of the data, and
    different for the shards of a leaf. Use another key for every call.

    Args:
      loss_fn: params -> scalar, a mean over the examples of a minibatch.
      params: the parameters at which the Hessian is taken.
      key: a random key (typed key or integer).
      num_samples: the number of vectors, one after another, >= 1. Default 1 (AdaHessian).
      distribution: "rademacher" (signs; exact where the Hessian is diagonal) or "normal". Default "rademacher".
      absolute: whether |h| is returned, before the spatial average. Default False.
      spatial_average: AdaHessian's average over entries of one unit. "conv": only over the window of a convolution (its
        code for images); "all": also over the inputs of a matrix, and the features of an entry of an embedding. Default
        None.
      layout: what the axes of a leaf mean.
      axis_name: axis of `vmap` or `shard_map` whose members hold parts of the batch: one mean over them, as for a
        gradient. Give all of them the same key. Default None.

    Returns:
      A tree like the parameters, float32 or wider. Collectives: those of a gradient.

    Raises:
      ValueError: an argument outside its range; no parameters; a loss that is no scalar; leaves that are not real
        floating point numbers.

    Example:
      >>> a = jnp.array([1.0, 4.0])
      >>> print(hutchinson_diag(lambda x: jnp.sum(a * x**2) / 2, jnp.ones(2), jax.random.key(0)))
      [1. 4.]

    Reference: Yao et al. ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning. 2020, arXiv 2006.00719;
    Hutchinson 1989. No new key is returned, as everywhere in JAX: the caller splits it, as `gk.with_curvature` does.
    """
    checks.arrays(params=params)
    checks.axis_name("axis_name", axis_name)
    checks.function("loss_fn", loss_fn)
    check_hutchinson(num_samples, distribution, absolute, spatial_average)
    if params is None:
        raise ValueError("hutchinson_diag needs params, at which the Hessian is taken, got None; pass the parameters")
    key = as_key(key)
    check_leaves("hutchinson_diag", params, complex_leaves=False)
    params = own_copy(params, axis_name)
    layout = resolve_layout(layout, params, method="hutchinson_diag")
    gradient = jax.grad(scalar_loss("hutchinson_diag", loss_fn))

    def hvp(z: Any) -> Any:
        return mean_over(jax.jvp(gradient, (params,), (own_copy(z, axis_name),))[1], axis_name)

    return hutchinson(
        hvp,
        params,
        key,
        num_samples=num_samples,
        distribution=distribution,
        absolute=absolute,
        spatial_average=spatial_average,
        layout=layout,
    )


FUNCTION = "a function of a loss and parameters, which keeps no state and has no update"
register(
    hutchinson_diag,
    form="diagnostic",
    paper=PAPER,
    example={"loss_fn": lambda x: jnp.sum(x**2), "params": np.ones(3, np.float32), "key": np.zeros(2, np.uint32)},
    opt_outs=dict.fromkeys(("pure", "missing", "abstract", "bad input", "mesh"), FUNCTION),
)
