"""Cluster momentum: one running mean of gradients per class of examples, as control variates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import need, rows_of, scalar, transformation, widen, zeros
from gradkit.types import Scalar


class ClusterMomentumState(NamedTuple):
    """The momentum of every cluster, along a leading axis."""

    momenta: Any


def cluster_momentum(
    num_clusters: int, *, beta: Scalar = 0.9, cluster_probs: Any = None
) -> optax.GradientTransformationExtraArgs:
    """A link before any optimizer that removes the differences between clusters from the gradient's noise.

    Equations, for a batch of n examples with n_c of cluster c, whose mean gradient is g_c; p_c is the fraction of the
    data in the cluster:

        v   = sum_c (n_c / n) (g_c - m_c) + sum_c p_c m_c
        m_c = beta m_c + (1 - beta) g_c        where n_c > 0

    The expectation of v is that of the gradient for any m, and its noise is that of the examples within their clusters.
    The incoming updates are not read.

    Args:
      num_clusters: K, >= 1; for instance the number of classes.
      beta: decay of the momenta, in [0, 1). Default 0.9. 0 is SAGA with one slot per cluster.
      cluster_probs: p, K numbers >= 0 that sum to 1. Default None: all 1 / K.

    Returns:
      A transformation that needs `cluster_grads`, a tree like the parameters with a leading axis K (entries of a
      cluster without examples are not read), and `cluster_counts`, n_c >= 0 of shape (K,), integers or floats. State: K
      words per parameter. Elementwise: no collective. A batch without examples gives sum_c p_c m_c.

    Raises:
      ValueError: an argument outside its range; at `update`, extra arguments missing or not of K clusters, counts that
        are not traced and sum to 0.

    Example:
      >>> tx, x = cluster_momentum(2), jnp.zeros(1)
      >>> state = tx.init(x)
      >>> extra = {"cluster_grads": jnp.array([[1.0], [3.0]]), "cluster_counts": jnp.array([3, 1])}
      >>> v, state = tx.update(x, state, x, **extra)
      >>> float(v[0]), [round(float(m[0]), 4) for m in state.momenta]
      (1.5, [0.1, 0.3])

    Reference: Tondji et al. Variance Reduction in Deep Learning: More Momentum is All You Need. 2021, arXiv
    2111.11828. The form of the estimator is that of a control variate per cluster, which is unbiased.
    """
    checks.arrays(cluster_probs=cluster_probs)
    num_clusters = checks.integer("num_clusters", num_clusters, 1)
    checks.real("beta", beta, "[0, 1)")
    K = num_clusters
    probs = np.full(K, 1 / K) if cluster_probs is None else cluster_probs
    if np.shape(probs) != (K,):
        raise ValueError(f"cluster_momentum: cluster_probs must be {K} numbers, got shape {np.shape(probs)}")
    if not isinstance(probs, Tracer):
        p = np.asarray(probs, np.float64)
        if not (np.all(p >= 0) and abs(p.sum() - 1) < 1e-5):
            raise ValueError(f"cluster_momentum: cluster_probs must be >= 0 and sum to 1, got {p.tolist()}")

    def along(vector: Any, g: jax.Array) -> jax.Array:
        return jnp.asarray(vector, g.dtype).reshape((K,) + (1,) * (g.ndim - 1))

    def init(params: optax.Params) -> ClusterMomentumState:
        return ClusterMomentumState(jax.tree.map(lambda m: rows_of(m, K), zeros(params)))

    def update(updates: Any, state: ClusterMomentumState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        grads = widen(need("cluster_momentum", extra, "cluster_grads"))
        counts = jnp.asarray(need("cluster_momentum", extra, "cluster_counts"))
        shapes = jax.tree.map(lambda u, g: g.shape == (K, *u.shape), updates, grads)
        if counts.shape != (K,) or not all(jax.tree.leaves(shapes)):
            raise ValueError(
                f"cluster_momentum: cluster_grads and cluster_counts must have a leading axis of {K}, got shapes "
                f"{[g.shape for g in jax.tree.leaves(grads)]} and {counts.shape}"
            )
        if not isinstance(counts, Tracer) and not np.any(np.asarray(counts)):
            raise ValueError(
                "cluster_momentum: cluster_counts must not sum to 0, got only zeros; count at least one example"
            )
        n = jnp.sum(counts)
        n = jnp.where(n > 0, n, jnp.ones_like(n))

        def change(g: jax.Array, m: jax.Array) -> jax.Array:
            return jnp.where(along(counts, g) != 0, g - m, jnp.zeros_like(g))

        def estimate(d: jax.Array, m: jax.Array) -> jax.Array:
            share = along(counts, d) / n.astype(d.dtype)
            return jnp.sum(share * d + along(probs, d) * m, axis=0)

        d = jax.tree.map(change, grads, state.momenta)
        v = jax.tree.map(estimate, d, state.momenta)
        momenta = jax.tree.map(lambda m, d: m + (1 - scalar(beta, d)) * d, state.momenta, d)
        return v, ClusterMomentumState(momenta)

    return transformation("cluster_momentum", init, update, complex_leaves=True)


register(
    cluster_momentum,
    form="primitive",
    paper=Paper(
        "Variance Reduction in Deep Learning: More Momentum is All You Need", "Tondji et al.", 2021, "2111.11828"
    ),
    needs=("cluster_grads", "cluster_counts"),
    words=3,
    example={"num_clusters": 3},
)
