"""Coherence: how much the gradients of examples help each other.

    alpha = |g_1 + ... + g_m|^2 / (m sum_i |g_i|^2)                        in [0, 1];  E<g, g'> / E<g, g> of two draws
    unbiased over pairs:   (|sum g|^2 - sum |g|^2) / ((m - 1) sum |g|^2)   in [-1 / (m - 1), 1]
    m-coherence = (number of examples) alpha      how many examples a step on one of them helps, on average:
                                                  1 where gradients are orthogonal, m where they are all equal

of microbatches of k examples the same numbers are

    alpha_k = k alpha / (1 + (k - 1) alpha),      so   alpha = alpha_k / (k - (k - 1) alpha_k)
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, wide_dtype
from gradkit.engine.lazy_gradients import LazyGradients, fold
from gradkit.engine.matching import check_leaves
from gradkit.engine.norms import concatenated
from gradkit.engine.sums import block_sums
from gradkit.leaves import names
from gradkit.types import PyTree

PAPER = Paper("On the Generalization Mystery in Deep Learning", "Chatterjee, Zielinski", 2022, "2203.10036")


def _count(method: str, gradients: Any) -> int:
    if isinstance(gradients, LazyGradients):
        return gradients.count
    check_leaves(method, gradients, complex_leaves=False)
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(gradients)}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        raise ValueError(
            f"{method}: gradients must be a tree with the same leading axis on every leaf, one entry per gradient, got "
            f"leading axes {sorted(lengths)}; write jax.vmap(jax.grad(loss), (None, 0))(params, examples)"
        )
    return int(next(iter(lengths))[0])


def _squares(known: list[str], rows: list[jax.Array]) -> list[jax.Array]:
    """Per leaf, the sum of the squares of all entries, as an array of one number."""
    sums = block_sums(known, [jnp.square(x) for x in rows], [tuple(range(x.ndim)) for x in rows])
    return [s.reshape(1) for s in sums]


def coherence(gradients: PyTree, *, microbatch_size: int = 1, unbiased: bool = False, leafwise: bool = False) -> Any:
    """The coherence of gradients: 0 where they cancel or are 0, 1 where all are equal.

        alpha = |sum_i g_i|^2 / (m sum_i |g_i|^2)
        alpha = alpha_k / (k - (k - 1) alpha_k),   alpha_k the same of the mean gradients of microbatches of k examples

    Args:
      gradients: one gradient per example, or per microbatch: a tree with one leading axis of length m, or
        `gk.gradients.LazyGradients`, of which one chunk is in memory at a time.
      microbatch_size: k >= 1, examples in each. Default 1. What is returned is the coherence of examples.
      unbiased: whether pairs of a gradient with itself are left out, which the first formula counts: it is at least
        1 / m in expectation. To be chosen where m is small, as with microbatches. Default False (paper).
      leafwise: whether the result is a number for every leaf, a tree; default False: one for all leaves together.

    Returns:
      A number, or a tree of numbers, in float32 or wider. One tree of sums is in memory. Collectives: scalars.

    Raises:
      ValueError: an argument outside its range, leading axes that differ, one gradient where `unbiased`.

    Example:
      >>> g = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> float(coherence(g)), float(coherence(g, unbiased=True)), float(coherence(jnp.ones((2, 2))))
      (0.5, 0.0, 1.0)

    Reference: Chatterjee, Zielinski. On the Generalization Mystery in Deep Learning. 2022, arXiv 2203.10036. Gradients
    that are all 0 have coherence 0 here.
    """
    if not isinstance(gradients, LazyGradients):
        checks.arrays(gradients=gradients)
    m = _count("coherence", gradients)
    k = checks.integer("microbatch_size", microbatch_size, 1)
    checks.switch(unbiased=unbiased, leafwise=leafwise)
    if unbiased and m == 1:
        raise ValueError("coherence: unbiased must be False for one gradient, which has no pair; give two or more")
    like = gradients.like if isinstance(gradients, LazyGradients) else jax.tree.map(lambda x: x[0], gradients)
    known, leaves = names(like), jax.tree.leaves(like)
    start = (
        [jnp.zeros(x.shape, wide_dtype(x.dtype)) for x in leaves],
        [jnp.zeros((1,), wide_dtype(x.dtype)) for x in leaves],
    )

    def add(carry: Any, rows: Any, _: Any) -> Any:
        wide = [x.astype(wide_dtype(x.dtype)) for x in jax.tree.leaves(rows)]
        total = [t + jnp.sum(x, axis=0) for t, x in zip(carry[0], wide, strict=True)]
        return total, [s + p for s, p in zip(carry[1], _squares(known, wide), strict=True)]

    total, own = fold(gradients, add, start)
    together = _squares(known, total)

    def alpha(together: jax.Array, own: jax.Array) -> jax.Array:
        found = divide(together - own, (m - 1) * own) if unbiased else divide(together, m * own)
        return found / (k - (k - 1) * found)

    if leafwise:
        found = [alpha(a, b).reshape(()) for a, b in zip(together, own, strict=True)]
        return jax.tree.structure(like).unflatten(found)
    return alpha(jnp.sum(concatenated(together)), jnp.sum(concatenated(own)))


def m_coherence(gradients: PyTree, *, microbatch_size: int = 1, unbiased: bool = False, leafwise: bool = False) -> Any:
    """How many examples a step on one of them helps, on average.

        m-coherence = m k alpha,   alpha the coherence of examples, of m microbatches of k examples

    Args:
      gradients: as `gk.diagnostics.coherence` takes them.
      microbatch_size: k >= 1. Default 1.
      unbiased: see `gk.diagnostics.coherence`. Default False (paper).
      leafwise: whether the result is a number for every leaf. Default False.

    Returns:
      A number, or a tree of numbers: 1 where the gradients of examples are orthogonal and of one length, the number of
      examples where they are all equal, 0 where they cancel.

    Raises:
      ValueError: as `gk.diagnostics.coherence`.

    Example:
      >>> float(m_coherence(jnp.eye(3))), float(m_coherence(jnp.ones((3, 2))))
      (1.0, 3.0)

    Reference: Chatterjee, Zielinski. On the Generalization Mystery in Deep Learning. 2022, arXiv 2203.10036.
    """
    if not isinstance(gradients, LazyGradients):
        checks.arrays(gradients=gradients)
    m = _count("m_coherence", gradients)
    found = coherence(gradients, microbatch_size=microbatch_size, unbiased=unbiased, leafwise=leafwise)
    return jax.tree.map(lambda alpha: m * microbatch_size * alpha, found)


SHARED: dict[str, Any] = {"form": "function", "paper": PAPER, "collectives": "norms"}
register(coherence, **SHARED, example={"gradients": np.eye(2, dtype=np.float32)})
register(m_coherence, **SHARED, example={"gradients": np.eye(2, dtype=np.float32)})
