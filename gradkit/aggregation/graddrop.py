"""GradDrop: in every coordinate the gradients of one sign are kept, drawn with the weight that the sign has.

Equations: in the docstring of `graddrop`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.aggregation.makers import aggregator
from gradkit.aggregation.preferences import check_vector, vector_of
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype
from gradkit.engine.keys import check_key, first_key, needed_key
from gradkit.engine.lazy_gradients import stacked
from gradkit.types import Key, Scalar

PAPER = Paper(
    "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout", "Chen et al.", 2020, "2010.06808"
)


class GradDropState(NamedTuple):
    """The random key of the next step; None where it comes with the step, or nothing is random."""

    key: Any


def drop(x: jax.Array, u: jax.Array, f: Callable[[jax.Array], jax.Array] | None, leak: jax.Array | None) -> jax.Array:
    """The rule for one leaf: its m gradients along axis 0, and uniform numbers of the shape of one."""
    size = jnp.sum(jnp.abs(x), axis=0)
    purity = (1 + jnp.sum(x, axis=0) / jnp.where(size > 0, size, jnp.ones_like(size))) / 2
    purity = purity if f is None else f(purity)
    kept = ((purity > u)[None] & (x > 0)) | ((purity < u)[None] & (x < 0))
    weight = kept.astype(x.dtype)
    if leak is not None:
        rate = leak.astype(x.dtype).reshape(len(x), *[1] * (x.ndim - 1))
        weight = rate + (1 - rate) * weight
    return jnp.sum(jnp.where(jnp.isnan(x), x, weight * x), axis=0)


def graddrop(
    *,
    f: Callable[[jax.Array], jax.Array] | None = None,
    leak: Scalar | None = None,
    key: Key | None = None,
    uniform: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient sign dropout: where tasks disagree about the sign of a coordinate, one of the two signs is drawn.

    For every coordinate, with J_i the value that it has in the gradient of task i and U uniform in [0, 1):

        P = (1 + sum_i J_i / sum_i |J_i|) / 2         1/2 where all J_i are 0
        mask_i = 1 where f(P) > U and J_i > 0, or f(P) < U and J_i < 0;    0 otherwise
        result = sum_i (leak_i + (1 - leak_i) mask_i) J_i

    Args:
      f: P -> [0, 1], increasing. Default None: the identity (paper).
      leak: m numbers in [0, 1], the part of a task's gradient that is always kept. Default None: 0 each.
      key: a random key (typed key or integer) from which the signs of all steps follow. Default None: `update` needs
        `key=`, which takes precedence where both are given. The same on all replicas.
      uniform: instead of random numbers, these at every step: a tree like the parameters. Default None.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; put it first in a
      chain, `optax.chain(graddrop(key=0), gk.adam(1e-3))`. State: a key. Elementwise: no collective; all m gradients
      are in memory. Its expectation is a sum in which the weaker sign of a coordinate counts less.

    Raises:
      ValueError: at construction, `f` that is no function, a leak outside its range, both key and uniform; when called,
        no key, another number of gradients than leaks, leading axes that differ or are missing, gradients that do not
        match the parameters.

    Example:
      >>> tx = graddrop(uniform=jnp.array([0.6, 0.6]))
      >>> g = jnp.array([[3.0, 1.0], [-1.0, -1.0]])  # positive with weights 3/4 and 1/2
      >>> print(tx.update(g, tx.init(g[0]))[0])
      [ 3. -1.]

    Reference: Chen et al. Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout. 2020,
    arXiv 2010.06808. Here gradients of parameters, as in torchjd; the paper also applies it to gradients of
    activations, summed over the batch.
    """
    checks.arrays(uniform=uniform)
    check_key(key)
    if f is not None:
        checks.function("f", f)
    check_vector("leak", leak)
    if leak is not None and not isinstance(leak, jax.core.Tracer):
        values = np.asarray(leak)
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"leak must be numbers in [0, 1], one per gradient, got {leak!r}")
    if key is not None and uniform is not None:
        raise ValueError("graddrop takes a key or uniform numbers, not both: write uniform=None or key=None")

    def init(params: Any) -> GradDropState:
        del params
        return GradDropState(first_key(key))

    def update(gradients: Any, state: GradDropState, params: Any, **extra: Any) -> tuple[Any, GradDropState]:
        del params
        leaves, structure = jax.tree.flatten(stacked(gradients))
        if uniform is not None:
            draws = [jnp.asarray(u) for u in jax.tree.leaves(uniform)]
        else:
            kept, now = needed_key("graddrop", state.key, extra.get("key"))
            state = GradDropState(kept)
            # In float32, so that the signs are the same where float64 is enabled.
            keys = jax.random.split(now, len(leaves))
            draws = [jax.random.uniform(k, x.shape[1:], jnp.float32) for k, x in zip(keys, leaves, strict=True)]

        def leaf(x: jax.Array, u: jax.Array) -> jax.Array:
            wide = x.astype(wide_dtype(x.dtype))
            rates = None if leak is None else vector_of("graddrop", "leak", leak, len(x), wide.dtype)
            return drop(wide, u.astype(wide.dtype), f, rates).astype(x.dtype)

        return structure.unflatten([leaf(x, u) for x, u in zip(leaves, draws, strict=True)]), state

    return aggregator("graddrop", update, init=init, complex_leaves=False)


register(
    graddrop,
    form="aggregator",
    paper=PAPER,
    needs=("key",),
    golden=("estimators/graddrop",),
    opt_outs={"stacked": "the random numbers of one leaf are not those of two"},
    notes="needs `key` in every update, or once at construction; m gradients in memory",
)
