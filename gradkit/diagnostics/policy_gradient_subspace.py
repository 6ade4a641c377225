"""The subspaces of policy gradients: of actor and critic apart, from a large batch.

V = the eigenvectors of the k largest eigenvalues of the Hessian of one loss, over a large batch

    fraction(g) = |V^T g|^2 / |g|^2     of the gradient of the large batch, and of minibatches
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.diagnostics.gradient_subspace_fraction import Eigenpairs, gradient_subspace_fraction, top_eigenpairs
from gradkit.diagnostics.spectral_density import checked_steps
from gradkit.engine.keys import as_key
from gradkit.types import Key

PAPER = Paper("Identifying Policy Gradient Subspaces", "Schneider et al.", 2024, "2401.06604")


class PolicyGradientSubspace(NamedTuple):
    """What is measured of one loss.

    Attributes:
      pairs: the eigenvalues, eigenvectors and residuals over the large batch.
      large_fraction: of the gradient of the large batch.
      fractions: (n,), of the gradients of the minibatches.
      chance: k / d, the expected fraction of a random subspace.
    """

    pairs: Eigenpairs
    large_fraction: jax.Array
    fractions: jax.Array
    chance: float


def policy_gradient_subspace(
    loss_fns: Mapping[str, Callable[..., Any]],
    params: Mapping[str, Any],
    key: Key,
    large_batch: Any,
    minibatches: Any,
    *,
    k: int = 100,
    steps: int | None = None,
) -> dict[str, PolicyGradientSubspace]:
    """How much of the gradients of actor and critic is in their subspaces of largest curvature.

        f = |V^T g|^2 / |g|^2,   V of the Hessian of that loss alone, over the large batch

    Args:
      loss_fns: per name, such as "actor" and "critic", (parameters, batch) -> a scalar, twice differentiable.
      params: per name, the parameters of that loss.
      key: a typed key or an integer, for the first vectors of the Lanczos steps.
      large_batch: what the losses are given for V: transitions of many steps, in the paper a million.
      minibatches: a tree with one leading axis of length n: the minibatches of the updates.
      k: dimension of the subspaces, >= 1; of a loss with fewer parameters, all. Default 100 (paper).
      steps: products with each Hessian, at least k and at most as many as there are parameters. Default None: 2 k + 10.

    Returns:
      A `PolicyGradientSubspace` for every name.

    Raises:
      ValueError: losses and parameters of different names, an argument outside its range.

    Example:
      >>> loss = lambda x, c: 0.5 * jnp.sum(c * x**2)
      >>> batch = jnp.array([9.0, 1.0, 0.0])
      >>> measure = lambda x, key: policy_gradient_subspace({"actor": loss}, {"actor": x}, key, batch, batch[None], k=1)
      >>> found = jax.jit(measure)(jnp.ones(3), jax.random.key(0))
      >>> round(float(found["actor"].large_fraction), 3)  # 81 / 82
      0.988

    Reference: Schneider et al. Identifying Policy Gradient Subspaces. 2024, arXiv 2401.06604.
    """
    checks.arrays(large_batch=large_batch, minibatches=minibatches)
    k = checks.integer("k", k, 1)
    steps = checks.integer("steps", steps, 1, optional=True)
    if not isinstance(loss_fns, Mapping) or not isinstance(params, Mapping) or set(loss_fns) != set(params):
        raise ValueError(
            "policy_gradient_subspace: loss_fns and params must be mappings with the same names, got "
            f"{sorted(loss_fns) if isinstance(loss_fns, Mapping) else loss_fns!r} and "
            f"{sorted(params) if isinstance(params, Mapping) else params!r}; write "
            '{"actor": actor_loss, "critic": critic_loss} and {"actor": ..., "critic": ...}'
        )
    found = {}
    for name, subkey in zip(loss_fns, jax.random.split(as_key(key), max(len(loss_fns), 1)), strict=False):
        checks.function(f"loss_fns[{name!r}]", loss_fns[name])
        found[name] = _one(loss_fns[name], params[name], subkey, large_batch, minibatches, k, steps)
    return found


def _one(
    loss_fn: Callable[..., Any], x: Any, key: jax.Array, large: Any, minibatches: Any, k: int, steps: int | None
) -> PolicyGradientSubspace:
    size = checked_steps("policy_gradient_subspace", x, None, 2**62)
    own = min(k, size)
    steps = None if steps is None else min(max(steps, own), size)
    grad_fn = jax.grad(loss_fn)
    # Made once, and differentiated at every product.
    product = jax.linearize(lambda p: grad_fn(p, large), x)
    pairs = top_eigenpairs(product[1], key, x, own, steps=steps)
    fractions = jax.lax.map(lambda batch: gradient_subspace_fraction(pairs.vectors, grad_fn(x, batch)), minibatches)
    return PolicyGradientSubspace(
        pairs, gradient_subspace_fraction(pairs.vectors, product[0]), jnp.asarray(fractions), own / size
    )


register(policy_gradient_subspace, form="program", paper=PAPER, collectives="norms")
