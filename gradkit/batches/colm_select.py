"""CoLM: small batches that stand for large ones, by medoids of what examples would do to the last layer."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.batches.greedy_select import greedy_select
from gradkit.catalogue import Paper, register
from gradkit.engine.arrays import refuse
from gradkit.engine.core import wide_dtype
from gradkit.engine.directions import direction, directional_difference
from gradkit.engine.keys import as_key
from gradkit.types import Key, PyTree, Scalar

PAPER = Paper(
    "Mini-batch Coresets for Memory-efficient Language Model Training on Data Mixtures",
    "Nguyen et al.",
    2024,
    "2407.19580",
)
METRICS = ("l1", "l2", "cosine")


class ColmState(NamedTuple):
    """Number of selections made, and the moments of the examples that were selected last, (dimensions,) each."""

    count: jax.Array
    mu: jax.Array
    nu: jax.Array


def init_colm(dim: int) -> ColmState:
    """The state of `colm_select` before its first selection.

    Args:
      dim: of the representations, >= 1.

    Returns:
      `ColmState` of zeros, 2 numbers per dimension.

    Raises:
      ValueError: `dim` below 1.

    Example:
      >>> init_colm(4).mu.shape
      (4,)

    Reference: Nguyen et al. Mini-batch Coresets for Memory-efficient Language Model Training on Data Mixtures. 2024,
    arXiv 2407.19580.
    """
    dim = checks.integer("dim", dim, 1)
    return ColmState(jnp.zeros((), jnp.int32), jnp.zeros(dim), jnp.zeros(dim))


def _apart(x: jax.Array, metric: str) -> jax.Array:
    """Distances of all pairs of rows, one row after another."""
    if metric == "cosine":
        length = jnp.linalg.norm(x, axis=1, keepdims=True)
        unit = x / jnp.where(length > 0, length, jnp.ones_like(length))
        return 1 - jnp.dot(unit, unit.T, precision="highest")
    norm = (lambda d: jnp.sum(jnp.abs(d), axis=1)) if metric == "l1" else (lambda d: jnp.linalg.norm(d, axis=1))
    return jax.lax.map(lambda row: norm(x - row[None]), x)


def similarity_matrix(features: Any, *, metric: str = "l1") -> jax.Array:
    """How alike examples are, for `facility_location`.

        sim_ij = max D - D_ij        D the distances of all pairs

    Args:
      features: (n, d), floating point.
      metric: "l1" (official code), "l2" or "cosine" (1 - cos). Default "l1".

    Returns:
      (n, n), >= 0; of traced features, NaN in the rows and columns of examples with a NaN.

    Raises:
      ValueError: an unknown metric; features that are no floating point matrix, or NaN.

    Example:
      >>> similarity_matrix(jnp.array([[0.0], [1.0], [3.0]])).tolist()
      [[3.0, 2.0, 0.0], [2.0, 3.0, 1.0], [0.0, 1.0, 3.0]]

    Reference: Nguyen et al. Mini-batch Coresets for Memory-efficient Language Model Training on Data Mixtures. 2024,
    arXiv 2407.19580.
    """
    checks.arrays(features=features)
    checks.choice("metric", metric, METRICS)
    x = jnp.asarray(features)
    if x.ndim != 2 or not x.size or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"features must be floating point of shape (n, d), got {x.dtype} of shape {x.shape}")
    refuse("similarity_matrix", "features", x, jnp.isnan, "numbers; leave rows with NaN out")
    D = _apart(x.astype(wide_dtype(x.dtype)), metric)
    return jnp.max(jnp.where(jnp.isnan(D), jnp.zeros_like(D), D)) - D


def _greedy(similarity: jax.Array, budget: int, group: jax.Array, quota: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Facility location of every group by itself: an example counts for its own group, which has a quota."""
    # An example that is not similar to itself by any number is neither chosen nor counted.
    known = ~jnp.isnan(jnp.diagonal(similarity))
    able = known & ~jnp.any(known[:, None] & jnp.isnan(similarity), axis=0)
    clear = ~jnp.isnan(similarity)
    low = jnp.min(jnp.where(clear, similarity, jnp.inf))
    s = jnp.where((group[:, None] == group[None]) & clear, similarity, low)

    def gains(state: Any) -> jax.Array:
        best, left = state
        return jnp.where(left[group] > 0, jnp.sum(jnp.maximum(s - best[:, None], 0), axis=0), -jnp.inf)

    def add(state: Any, j: jax.Array) -> Any:
        best, left = state
        return jnp.maximum(best, s[:, j]), left.at[group[j]].add(-1)

    n = len(s)
    chosen, _ = greedy_select(gains, add, (jnp.full((n,), low), quota), budget, candidates=able)
    same = (group[:, None] == group[chosen][None]) & known[:, None] & (chosen >= 0)[None]
    nearest = jnp.argmax(jnp.where(same, s[:, chosen], -jnp.inf), axis=1)
    places = jnp.where(chosen < 0, n, chosen)
    nearest = nearest.at[places].set(jnp.arange(budget, dtype=nearest.dtype), mode="drop")
    # An example of a group of which none was chosen counts for none.
    counts = jnp.zeros((budget,), s.dtype).at[nearest].add(jnp.any(same, axis=1).astype(s.dtype))
    return chosen.astype(jnp.int32), counts


def facility_location(similarity: Any, budget: int) -> tuple[jax.Array, jax.Array]:
    """Medoids: examples that are near to all others, chosen greedily.

        maximise F(S) = sum_i max_{j in S} sim_ij,  |S| = budget:  the j with the largest F(S + j) goes into S, and
        again weight of j: how many examples have no more similar one in S than j; every chosen one counts itself

    F of the result is at least 1 - 1/e of the largest one, for similarities >= 0.

    Args:
      similarity: (n, n), real; row i the similarity of example i to all. See `similarity_matrix`.
      budget: how many, from 1 to n.

    Returns:
      (indices int32 (budget,) in the order of choice, weights (budget,) with the sum n). Can be jitted: an example
      whose traced similarities have a NaN is never chosen; -1, of weight 0, where no other is left.

    Raises:
      ValueError: an argument outside its range, NaN included.

    Example:
      >>> i, w = facility_location(similarity_matrix(jnp.array([[0.0], [0.1], [0.2], [5.0]])), 2)
      >>> i.tolist(), w.tolist()
      ([2, 3], [3.0, 1.0])

    Reference: Nguyen et al. Mini-batch Coresets for Memory-efficient Language Model Training on Data Mixtures. 2024,
    arXiv 2407.19580; Nemhauser, Wolsey, Fisher 1978.
    """
    checks.arrays(similarity=similarity)
    s = jnp.asarray(similarity)
    if s.ndim != 2 or s.shape[0] != s.shape[1] or not s.size or not jnp.issubdtype(s.dtype, jnp.floating):
        raise ValueError(f"similarity must be floating point of shape (n, n), got {s.dtype} of shape {s.shape}")
    refuse("facility_location", "similarity", s, jnp.isnan, "numbers; leave examples with NaN out")
    budget = checks.integer("budget", budget, 1, maximum=len(s))
    group = jnp.zeros(len(s), jnp.int32)
    return _greedy(s.astype(wide_dtype(s.dtype)), budget, group, jnp.full((1,), budget, jnp.int32))


def spsa_features(losses_fn: Callable[[Any], Any], params: PyTree, key: Key, *, epsilon: Scalar = 1e-3) -> jax.Array:
    """What every example would do to a few parameters, from two forward passes.

        z ~ N(0, I) from the key, the same for all examples
        r_i = z (L_i(x + epsilon z) - L_i(x - epsilon z)) / (2 epsilon)

    Args:
      losses_fn: params -> (n,), the loss of every example of the large batch.
      params: those that move: the paper takes the last V-projection alone.
      key: a typed key or an integer; the official code has one for the whole run.
      epsilon: > 0. Default 1e-3 (official code).

    Returns:
      (n, number of parameters).

    Raises:
      ValueError: an argument outside its range; losses that are not one per example.

    Example:
      >>> r = spsa_features(lambda w: jnp.array([1.0, -2.0]) * w[0], jnp.ones(3), 0)
      >>> bool(jnp.allclose(r[1], -2 * r[0], rtol=1e-2))
      True

    Reference: Nguyen et al. Mini-batch Coresets for Memory-efficient Language Model Training on Data Mixtures. 2024,
    arXiv 2407.19580.
    """
    checks.arrays(params=params)
    checks.function("losses_fn", losses_fn)
    checks.real("epsilon", epsilon, "(0, inf)")
    z = direction(as_key(key), params)
    c, _ = directional_difference(losses_fn, params, z, epsilon)
    if c.ndim != 1:
        raise ValueError(f"losses_fn must give one loss per example, (n,), got shape {c.shape}; leave the mean out")
    flat = [x.reshape(-1) for x in jax.tree.leaves(z)]
    return c[:, None] * jnp.concatenate([x.astype(c.dtype) for x in flat])[None]


def quotas(counts: Any, budget: int) -> np.ndarray:
    """A budget split over sources in proportion to their sizes: rounded down, then by the largest remainders.

    >>> quotas([5, 3, 2], 6).tolist()
    [3, 2, 1]
    """
    counts = np.asarray(counts)
    share = budget * counts / max(counts.sum(), 1)
    own = np.floor(share).astype(int)
    order = np.argsort(-(share - own), kind="stable")
    own[order[: budget - own.sum()]] += 1
    return own


def colm_select(
    reps: Any,
    sources: Any,
    budget: int,
    state: ColmState,
    *,
    keep_sources: Collection[int] = (),
    zo_dim: int = 2560,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    metric: str = "l1",
) -> tuple[jax.Array, jax.Array, ColmState]:
    """Chooses a small batch out of a large one whose examples come from several sources.

        m_i = b1 m + (1 - b1) r_i,    v_i = b2 v + (1 - b2) r_i^2                              of every example
        h_i = (m_i / (1 - b1^t)) / (sqrt(v_i / (1 - b2^t)) + eps)                              what Adam would do
        sources of `keep_sources` are kept, with weight 1; the rest of the budget is split over the others by their
        sizes of every other source: the zo_dim coordinates with the largest |mean h|, then `facility_location`
        m, v <- the means of m_i, v_i over the examples that were chosen

    Train on sum_i weight_i loss_i / sum_i weight_i of the chosen ones; whether the paper's runs use the weights is not
    known.

    Args:
      reps: r, (n, d): see `spsa_features`.
      sources: number of the source of every example, (n,), concrete integers >= 0.
      budget: how many examples are chosen, from 1 to n, and at least as many as are kept.
      state: of the last selection, or `init_colm(d)`.
      keep_sources: numbers of the small sources.
      zo_dim: coordinates per source, >= 1; at most d are taken. Default 2560 (official code).
      b1: decay of m, in [0, 1). Default 0.9, as Adam's.
      b2: decay of v, in [0, 1). Default 0.999, as Adam's.
      eps: added to the root, > 0. Default 1e-8.
      metric: of `similarity_matrix`. Default "l1" (official code).

    Returns:
      (indices int32 (budget,), weights (budget,), state). Weights of a source sum to its number of examples where it
      has a place at all.

    Raises:
      ValueError: an argument outside its range; shapes that do not fit; sources that are traced.

    Example:
      >>> r = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
      >>> i, w, state = colm_select(r, [0, 0, 0, 1], 3, init_colm(2), keep_sources=[1])
      >>> sorted(zip(i.tolist(), w.tolist()))
      [(0, 2.0), (2, 1.0), (3, 1.0)]

    Reference: Nguyen et al. Mini-batch Coresets for Memory-efficient Language Model Training on Data Mixtures. 2024,
    arXiv 2407.19580, released code. What is left of the budget after rounding down goes to the largest remainders.
    """
    checks.instance("state", state, ColmState)
    checks.arrays(reps=reps)
    checks.choice("metric", metric, METRICS)
    checks.real("b1", b1, "[0, 1)")
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "(0, inf)")
    zo_dim = checks.integer("zo_dim", zo_dim, 1)
    r = jnp.asarray(reps)
    if isinstance(sources, jax.core.Tracer):
        raise ValueError("sources must be known when the program is built, got a traced array; write numpy integers")
    own = np.asarray(sources)
    if r.ndim != 2 or own.shape != r.shape[:1] or not np.issubdtype(own.dtype, np.integer) or (own < 0).any():
        raise ValueError(
            f"reps (n, d) and sources, integers >= 0 of shape (n,), must fit, got {r.shape} and {own.dtype} {own.shape}"
        )
    if state.mu.shape != r.shape[1:]:
        raise ValueError(f"state must be of {r.shape[1]} dimensions, got {state.mu.shape}; write init_colm")
    refuse("colm_select", "reps", r, jnp.isnan, "numbers; leave rows with NaN out")
    kept = np.isin(own, list(keep_sources))
    budget = checks.integer("budget", budget, 1, maximum=len(own))
    if kept.sum() > budget:
        raise ValueError(f"budget must be at least the {kept.sum()} examples of keep_sources, got {budget}")
    sizes = np.bincount(own, minlength=own.max() + 1)
    free = sizes * ~np.isin(np.arange(len(sizes)), list(keep_sources))
    quota = np.minimum(quotas(free, budget - int(kept.sum())), free) + (sizes - free)
    indices, weights, mu, nu = _chosen(
        r.astype(wide_dtype(r.dtype)), jnp.asarray(own), jnp.asarray(quota), jnp.asarray(kept), state, (b1, b2, eps),
        zo_dim=min(zo_dim, r.shape[1]), metric=metric, budget=budget,
    )  # fmt: skip
    return indices, weights, ColmState(state.count + 1, mu, nu)


def _chosen(
    r: jax.Array, group: jax.Array, quota: jax.Array, kept: jax.Array, state: ColmState, decays: Any,
    *, zo_dim: int, metric: str, budget: int,
) -> tuple[jax.Array, ...]:  # fmt: skip
    t = (state.count + 1).astype(r.dtype)
    b1, b2, eps = (jnp.asarray(x).astype(r.dtype) for x in decays)
    m = b1 * state.mu.astype(r.dtype)[None] + (1 - b1) * r
    v = b2 * state.nu.astype(r.dtype)[None] + (1 - b2) * jnp.square(r)
    h = (m / (1 - b1**t)) / (jnp.sqrt(v / (1 - b2**t)) + eps)
    totals = jnp.zeros((len(quota), r.shape[1]), r.dtype).at[group].add(h)
    coordinates = jax.lax.top_k(jnp.abs(totals), zo_dim)[1]
    D = _apart(jnp.take_along_axis(h, coordinates[group], axis=1), metric)
    same = group[:, None] == group[None]
    largest = jnp.zeros((len(quota),), D.dtype).at[group].max(jnp.max(jnp.where(same, D, jnp.zeros_like(D)), axis=1))
    similarity = jnp.where(same, largest[group][:, None] - D, jnp.zeros_like(D))
    indices, weights = _greedy(similarity, budget, group, quota)
    weights = jnp.where(kept[indices], jnp.ones_like(weights), weights)
    return indices, weights, jnp.mean(m[indices], axis=0), jnp.mean(v[indices], axis=0)


REPS = jax.ShapeDtypeStruct((8, 4), "float32")
COUNT: Any = jax.ShapeDtypeStruct((), "int32")
MOMENTS: Any = jax.ShapeDtypeStruct((4,), "float32")
register(
    colm_select,
    form="function",
    paper=PAPER,
    example={
        "reps": REPS,
        "sources": np.array([0, 0, 0, 0, 1, 1, 1, 2]),
        "budget": 4,
        "state": ColmState(COUNT, MOMENTS, MOMENTS),
        "keep_sources": (2,),
    },
)
register(
    facility_location,
    form="function",
    paper=PAPER,
    example={"similarity": jax.ShapeDtypeStruct((8, 8), "float32"), "budget": 4},
)
register(similarity_matrix, form="function", paper=PAPER, example={"features": REPS})
register(spsa_features, form="program", paper=PAPER)
