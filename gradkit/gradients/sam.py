"""SAM and ASAM: the gradient at the worst point near the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import widen
from gradkit.engine.norms import global_norm
from gradkit.gradients.displaced import displaced_gradient
from gradkit.leaves import check_mask, check_mask_form, resolve_mask
from gradkit.types import Mask, Scalar

PAPER = Paper(
    "Sharpness-Aware Minimization for Efficiently Improving Generalization", "Foret et al.", 2020, "2010.01412"
)
ADAPTIVE = Paper(
    "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks",
    "Kwon et al.",
    2021,
    "2102.11600",
)
TINY = 1e-12


def ascent(g: Any, rho: Any, T: Any = None) -> Any:
    """rho T^2 g / (|T g| + 1e-12), finite at g = 0."""
    # The gradient of JAX with respect to a complex leaf is the conjugate of the direction of ascent.
    scaled = g if T is None else jax.tree.map(jnp.multiply, T, g)
    norm = global_norm(scaled)
    share = jnp.asarray(rho, norm.dtype) / (norm + TINY)
    e = jax.tree.map(lambda x: share.astype(x.dtype) * jnp.conj(x), scaled)
    return e if T is None else jax.tree.map(jnp.multiply, T, e)


def sam(
    loss_fn: Callable[..., Any], rho: Scalar = 0.05, *, has_aux: bool = False, axis_name: Any = None
) -> Callable[..., tuple[Any, Any]]:
    """Sharpness-aware minimization: the gradient at the end of a step of length rho uphill.

    Equations:

        g = grad loss(x)
        e = rho g / (|g| + 1e-12)                                the norm runs over the whole tree
        result = grad loss(x + e)

    Args:
      loss_fn: (params, *args) -> scalar, or (scalar, aux).
      rho: length of the step uphill, >= 0. Default 0.05 (paper). May be traced.
      has_aux: whether `loss_fn` returns (scalar, aux). Default False.
      axis_name: axis of `vmap` or `shard_map` over whose members gradients are averaged, before the step uphill
        and after. Default None: each member steps uphill along its own gradient (m-SAM).

    Returns:
      fn(params, *args, **kwargs) -> (value, gradient) or ((value, aux), gradient), with value and aux at the
      parameters themselves, so weight decay in the optimizer also acts there. Two gradients a step; no state; a
      norm of the whole tree.

    Raises:
      ValueError: rho negative or NaN.

    Example:
      >>> value, grads = sam(lambda x: jnp.sum(x**2) / 2, rho=0.5)(jnp.array([3.0, 4.0]))
      >>> print(value, grads)
      12.5 [3.3 4.4]

    Reference: Foret et al. Sharpness-Aware Minimization for Efficiently Improving Generalization. 2020,
    arXiv 2010.01412. optax.contrib.sam agrees where the gradient is not zero; there it gives NaN.
    """
    checks.axis_name("axis_name", axis_name)
    checks.switch(has_aux=has_aux)
    checks.real("rho", rho, "[0, inf)")

    def displacement(g: Any, x: Any) -> Any:
        del x
        return ascent(widen(g), rho)

    return displaced_gradient(loss_fn, displacement, has_aux=has_aux, axis_name=axis_name)


def asam(
    loss_fn: Callable[..., Any],
    rho: Scalar = 0.5,
    eta: Scalar = 0.01,
    mask: Mask | None = None,
    *,
    has_aux: bool = False,
    axis_name: Any = None,
) -> Callable[..., tuple[Any, Any]]:
    """Adaptive SAM: the step uphill is measured relative to the absolute value of each parameter.

    Equations: those of `sam`, with another step uphill:

        e = rho T^2 g / (|T g| + 1e-12),    T = |x| + eta on the leaves of the mask, 1 elsewhere

    It is invariant where one layer is multiplied by a factor and the next is divided by it.

    Args:
      loss_fn: (params, *args) -> scalar, or (scalar, aux).
      rho: length of the step uphill, >= 0. Default 0.5 (paper). May be traced.
      eta: added to |x|, >= 0, so that zero parameters are perturbed too. Default 0.01 (paper). May be traced.
      mask: leaves with T = |x| + eta, as a tree of booleans, a function of the parameters or a selector. Default all.
        The paper leaves biases out: `gk.leaves.no_decay()`.
      has_aux: whether `loss_fn` returns (scalar, aux). Default False.
      axis_name: as in `sam`.

    Returns:
      fn(params, *args, **kwargs) -> (value, gradient) or ((value, aux), gradient), as `sam`.

    Raises:
      ValueError: rho or eta negative or NaN; a mask that does not match the parameters.

    Example:
      >>> value, grads = asam(lambda x: jnp.sum(x), rho=0.5)(jnp.array([3.0, 4.0]))
      >>> print(value, grads)
      7.0 [1. 1.]

    Reference: Kwon et al. ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural
    Networks. 2021, arXiv 2102.11600. The most copied PyTorch class has eta = 0, so it never perturbs a weight that is
    zero.
    """
    checks.axis_name("axis_name", axis_name)
    checks.switch(has_aux=has_aux)
    checks.real("rho", rho, "[0, inf)")
    checks.real("eta", eta, "[0, inf)")
    check_mask_form(mask=mask)

    def displacement(g: Any, x: Any) -> Any:
        check_mask(mask, x, method="asam", argument="mask", instead="mask=False")

        def size(x: jax.Array, counts: bool) -> jax.Array:
            return jnp.abs(x).astype(x.dtype) + jnp.asarray(eta, x.dtype) if counts else jnp.ones_like(x)

        return ascent(widen(g), rho, jax.tree.map(size, widen(x), resolve_mask(mask, x)))

    return displaced_gradient(loss_fn, displacement, has_aux=has_aux, axis_name=axis_name)


register(sam, form="source", paper=PAPER, collectives="norms", golden=("step_size/sam",))
register(asam, form="source", paper=ADAPTIVE, collectives="norms", golden=("step_size/asam",))
