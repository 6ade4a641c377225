"""Simultaneous perturbations of which every output says only what its own parameters did."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.directions import direction
from gradkit.engine.keys import as_key
from gradkit.engine.matching import check_leaves

PAPER = Paper(
    "Transforming a Non-Differentiable Rasterizer into a Differentiable One with Stochastic Gradient Estimation",
    "Deliot, Heitz, Belcour",
    2024,
    "2404.09758",
)


def _once(ids: jax.Array, n: int) -> jax.Array:
    """Every contributor of a row once; what is there again, and what is no index, is n."""
    ids = jnp.where((ids >= 0) & (ids < n), ids, n)
    k = ids.shape[1]
    earlier = jnp.tril(jnp.ones((k, k), bool), -1)
    again = jnp.any((ids[:, :, None] == ids[:, None]) & earlier[None], axis=2)
    return jnp.where(again, n, ids)


def local_spsa(
    per_output_loss: Callable[[Any], Any], contributes: Any = None, *, epsilon: Any, axis_name: Any = None
) -> Callable[[Any, Any], tuple[jax.Array, Any]]:
    """A gradient from two evaluations, in which an output is noise for the parameters that it depends on alone.

        s_i = 1 or -1 at random,    x_+- = x +- epsilon s
        g_i = sum over the outputs p that i contributes to of (E_p(x_+) - E_p(x_-)) / (2 epsilon s_i)

    The value that the gradient is of is the sum of all outputs. For parameter i the others of the same outputs are
    noise, and no others: the error does not grow with the number of parameters. With contributes=None all of them
    contribute to all outputs: plain SPSA. A contributor that is missing, such as one that a change of occlusion brings
    in, is a bias.

    Args:
      per_output_loss: params -> (P,), a loss per output, such as a pixel; or ((P,), ids), where ids are `contributes`
        at these parameters: both evaluations' are then united.
      contributes: (P, k) integers: which parameters can change output p, as places in the tree's entries one after
        another (`jax.flatten_util.ravel_pytree`); -1 for none. Default None: all, or what the function returns.
      epsilon: > 0; or a tree of numbers like the parameters or a prefix of it, as groups differ in size.
      axis_name: axis of `vmap` or `shard_map` whose members have outputs of their own. All have the same key. Default
        None.

    Returns:
      source(params, key) -> (the mean of the two sums, a tree like the parameters, in their dtypes). No backward pass,
      no activations. Collectives with `axis_name`: those of a gradient.

    Raises:
      ValueError: an argument outside its range; losses that are not (P,); contributors that are not integers (P, k).

    Example:
      >>> square = local_spsa(lambda x: x**2, jnp.arange(3)[:, None], epsilon=0.5)
      >>> print(square(jnp.array([1.0, 2.0, 3.0]), 0)[1])  # one parameter per output: the central difference
      [2. 4. 6.]

    Reference: Deliot, Heitz, Belcour. Transforming a Non-Differentiable Rasterizer into a Differentiable One with
    Stochastic Gradient Estimation. 2024, arXiv 2404.09758. The equation is from descriptions of the paper.
    """
    checks.arrays(contributes=contributes)
    checks.axis_name("axis_name", axis_name)
    checks.function("per_output_loss", per_output_loss)
    for value in jax.tree.leaves(epsilon) or [epsilon]:
        checks.real("epsilon", value, "(0, inf)")

    def source(params: Any, key: Any) -> tuple[jax.Array, Any]:
        check_leaves("local_spsa", params, complex_leaves=False)
        params = jax.tree.map(jnp.asarray, params)
        z = direction(as_key(key), params, "rademacher")
        sizes = jax.tree.broadcast(epsilon, params)

        def at(sign: float) -> tuple[jax.Array, Any]:
            def leaf(x: jax.Array, e: Any, s: jax.Array) -> jax.Array:
                return (x.astype(s.dtype) + sign * jnp.asarray(e).astype(s.dtype) * s).astype(x.dtype)

            found = per_output_loss(jax.tree.map(leaf, params, sizes, z))
            losses, ids = found if isinstance(found, tuple) else (found, contributes)
            if jnp.ndim(losses) != 1:
                raise ValueError(
                    f"local_spsa: per_output_loss must give (P,), one loss per output, got shape {jnp.shape(losses)}; "
                    "leave the sum out"
                )
            return losses, None if ids is None else _ids(ids, len(losses))

        (above, ids), (below, other) = at(1.0), at(-1.0)
        change = above - below
        leaves, structure = jax.tree.flatten(z)
        n = sum(x.size for x in leaves)
        if ids is None:
            total = jnp.broadcast_to(jnp.sum(change), (n,))
        else:
            own = _once(ids if other is None else jnp.concatenate([ids, other], axis=1), n)
            each = jnp.broadcast_to(change[:, None], own.shape)
            total = jnp.zeros((n,), change.dtype).at[own.reshape(-1)].add(each.reshape(-1), mode="drop")
        value = (jnp.sum(above) + jnp.sum(below)) / 2
        if axis_name is not None:
            value, total = jax.lax.psum((value, total), axis_name)
        ends = np.cumsum([x.size for x in leaves])[:-1].tolist()
        parts = jnp.split(total, ends)
        # 1 / s = s of a sign.
        scaled = [p.reshape(s.shape).astype(s.dtype) * s for p, s in zip(parts, leaves, strict=True)]

        def over(x: jax.Array, g: jax.Array, e: Any) -> jax.Array:
            return (g / (2 * jnp.asarray(e).astype(g.dtype))).astype(x.dtype)

        return value, jax.tree.map(over, params, structure.unflatten(scaled), sizes)

    return source


def _ids(ids: Any, outputs: int) -> jax.Array:
    ids = jnp.asarray(ids)
    if ids.ndim != 2 or len(ids) != outputs or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"local_spsa: contributes must be integers ({outputs}, k), got {ids.dtype} of shape {ids.shape}; write -1 "
            "where an output has fewer"
        )
    return ids.astype(jnp.int32)


register(local_spsa, form="program", paper=PAPER)
