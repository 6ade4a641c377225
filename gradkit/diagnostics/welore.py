"""WeLore: which matrices have a low rank, and which rank, from their singular values alone."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.leaves import Layout, map_named, names, resolve_layout
from gradkit.types import PyTree

PAPER = Paper(
    "From GaLore to WeLore: How Low-Rank Weights Non-uniformly Emerge from Low-Rank Gradients",
    "Jaiswal et al.",
    2024,
    "2407.11239",
)


def _normalised(s: Any) -> np.ndarray:
    """The normalized spectra s~, along the last axis."""
    s = np.asarray(s, np.float64)
    if s.ndim < 1 or not s.size or not np.isfinite(s).all():
        raise ValueError(f"singular_values must be finite numbers (..., k), k >= 1, got shape {s.shape}")
    low, high = s.min(axis=-1, keepdims=True), s.max(axis=-1, keepdims=True)
    flat = high == low
    return np.where(flat, 1.0, (s - low) / np.where(flat, 1.0, high - low))


def welore_ranks(singular_values: Any, threshold: float) -> Any:
    """The rank of every matrix: the number of its normalized singular values that reach a threshold.

    Equations, for the singular values s of a matrix:

        s~_i   = (s_i - min s) / (max s - min s)             all 1 where the spectrum is flat
        pruned = number of s~_i < threshold                  `welore_threshold` finds a threshold
        rank   = len(s) - pruned

    It needs concrete arrays, not traced ones.

    Args:
      singular_values: a tree of arrays (..., k), the spectra along the last axis, in any order.
      threshold: in [0, 1), for the normalized spectrum. Published for 10, 20, ... 70 % on LLaMA-2 7B and 13B: 0.0225,
        0.084, 0.115, 0.145, 0.175, 0.215, 0.26.

    Returns:
      A tree of the same structure with integers, shape (...); at least 1. A flat spectrum keeps its full rank. As
      `rank` of `gk.project_low_rank` it gives every matrix its own rank.

    Raises:
      ValueError: a threshold outside its range; spectra that are empty or not finite.

    Example:
      >>> welore_ranks({"a": np.array([5.0, 2.0, 1.0]), "b": np.ones(4)}, 0.3)
      {'a': 1, 'b': 4}

    Reference: Jaiswal et al. From GaLore to WeLore. 2024, arXiv 2407.11239.
    """
    checks.arrays(singular_values=singular_values)
    checks.real("threshold", threshold, "[0, 1)")

    def one(s: Any) -> Any:
        kept = (_normalised(s) >= float(threshold)).sum(axis=-1)
        return int(kept) if kept.ndim == 0 else kept.astype(np.int32)

    return jax.tree.map(one, singular_values)


def welore_threshold(singular_values: Any, target_reduction: float) -> float:
    """The threshold at which a given fraction of the singular values of all matrices together is pruned.

    Equations, with the normalized singular values s~ of `welore_ranks`:

        threshold = the smallest with number of s~ < threshold >= target_reduction times the number of all s~

    Args:
      singular_values: as in `welore_ranks`.
      target_reduction: fraction that is pruned, in [0, 1).

    Returns:
      The smallest threshold at which at least this fraction is pruned; 0 for a fraction of 0.

    Raises:
      ValueError: a fraction outside its range, or one that no threshold below 1 reaches: the largest singular value of
        a matrix is never pruned, nor any of a flat spectrum.

    Example:
      >>> spectra = {"a": np.array([4.0, 3.0, 2.0, 0.0]), "b": np.array([8.0, 1.0, 0.5, 0.0])}
      >>> threshold = welore_threshold(spectra, 0.5)
      >>> welore_ranks(spectra, threshold)
      {'a': 3, 'b': 1}

    Reference: Jaiswal et al. From GaLore to WeLore. 2024, arXiv 2407.11239. Departure: the official code lists
    thresholds that were searched by hand; here the normalized values are sorted, which is exact.
    """
    checks.arrays(singular_values=singular_values)
    checks.real("target_reduction", target_reduction, "[0, 1)")
    rows = [_normalised(s).ravel() for s in jax.tree.leaves(singular_values)]
    if not rows:
        raise ValueError("singular_values must have at least one spectrum, got an empty tree")
    every = np.sort(np.concatenate(rows))
    # A fraction that is an integer number of values up to rounding counts as that number.
    wanted = math.ceil(float(target_reduction) * every.size - 1e-9)
    if wanted <= 0:
        return 0.0
    threshold = float(np.nextafter(every[wanted - 1], np.inf))
    if threshold >= 1:
        reach = float((every < 1).mean())
        raise ValueError(f"target_reduction must be at most {reach:g} for these spectra, got {target_reduction!r}")
    return threshold


def welore_factorize(w: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """Two factors whose product is the best approximation of a matrix of a given rank.

    Equations, with the singular value decomposition W = U S V^T, of which the k largest singular values are kept:

        W ~ (U_k sqrt(S_k)) (sqrt(S_k) V_k^T)

    Args:
      w: (..., n, m), real.
      rank: k in [1, min(n, m)].

    Returns:
      (U_k sqrt(S_k), sqrt(S_k) V_k^T), of shapes (..., n, k) and (..., k, m), in the dtype of `w`; both are trained.
      Signs are fixed: the entry of largest absolute value of every column of the first is positive.

    Raises:
      ValueError: no real matrix; a rank out of range.

    Example:
      >>> a, b = welore_factorize(jnp.array([[0.0, 4.0], [1.0, 0.0]]), 1)
      >>> print(abs(a.T), b)
      [[2. 0.]] [[0. 2.]]

    Reference: Jaiswal et al. From GaLore to WeLore. 2024, arXiv 2407.11239.
    """
    checks.arrays(w=w)
    if jnp.ndim(w) < 2 or not jnp.issubdtype(w.dtype, jnp.floating):
        raise ValueError(f"w must be real matrices (..., n, m), got {w.dtype}{list(jnp.shape(w))}")
    checks.integer("rank", rank, 1)
    if rank > min(w.shape[-2:]):
        raise ValueError(f"rank must be an integer in [1, {min(w.shape[-2:])}], got {rank!r}")
    wide = w.dtype if jnp.finfo(w.dtype).bits >= 32 else jnp.dtype(jnp.float32)
    U, s, Vt = jnp.linalg.svd(w.astype(wide), full_matrices=False)
    U, root, Vt = U[..., :rank], jnp.sqrt(s[..., :rank]), Vt[..., :rank, :]
    largest = jnp.argmax(jnp.abs(U), axis=-2, keepdims=True)
    sign = jnp.where(jnp.take_along_axis(U, largest, axis=-2) < 0, -1.0, 1.0).astype(wide)
    a = U * (sign * jnp.expand_dims(root, -2))
    b = Vt * (jnp.swapaxes(sign, -1, -2) * jnp.expand_dims(root, -1))
    return a.astype(w.dtype), b.astype(w.dtype)


def welore_labels(params: PyTree, ranks: Any, min_ratio: float | None = None, *, layout: Layout | None = None) -> Any:
    """Which parameters are trained: the matrices of low rank.

    Equations, for a matrix (n, m) of the given rank:

        "lrc"  where  1 - rank / min(n, m) > min_ratio,    "nlrc" elsewhere
        min_ratio = max(0, 1 - n m / ((n + m) min(n, m)))  by default: above it two factors are smaller than the matrix

    Args:
      params: arrays, or shapes with their dtypes.
      ranks: a tree of ranks by the names of the matrices, as `welore_ranks` makes it. Leaves without a rank are "nlrc";
        of several matrices in one leaf the largest rank decides.
      min_ratio: the pruned fraction of the singular values above which a matrix is of low rank, in [0, 1). Default
        None: by the shape of each matrix.
      layout: which axes are inputs and outputs.

    Returns:
      A tree like `params` of "lrc" (low rank) and "nlrc" for `optax.partition`: `optax.partition({"lrc": tx, "nlrc":
      optax.set_to_zero()}, welore_labels(params, ranks))` trains the former and leaves the latter.

    Raises:
      ValueError: a ratio outside its range; a rank of a leaf that is not there or is no matrix, or above its shorter
        side.

    Example:
      >>> params = {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 8)), "bias": jnp.ones(8)}
      >>> welore_labels(params, {"a": 3, "b": 6})
      {'a': 'lrc', 'b': 'nlrc', 'bias': 'nlrc'}

    Reference: Jaiswal et al. From GaLore to WeLore. 2024, arXiv 2407.11239.
    """
    checks.arrays(params=params)
    checks.real("min_ratio", min_ratio, "[0, 1)", optional=True)
    given = dict(zip(names(ranks), jax.tree.leaves(ranks), strict=True))
    if unknown := sorted(given.keys() - set(names(params))):
        raise ValueError(f"ranks must be given for leaves of params, got {unknown}, which it does not have")

    declared = resolve_layout(layout, params, method="welore_labels")

    def one(name: str, x: Any) -> str:
        if name not in given:
            return "nlrc"
        axes, rank = declared(name, jnp.shape(x)), int(np.max(np.asarray(given[name])))
        n, m = (math.prod(jnp.shape(x)[a] for a in group) for group in (axes.inputs, axes.outputs))
        if not axes.inputs or not axes.outputs or not 0 <= rank <= min(n, m):
            raise ValueError(f"the rank of {name!r} must be that of a matrix of shape {(n, m)}, got {rank}")
        ratio = max(0.0, 1 - n * m / ((n + m) * min(n, m))) if min_ratio is None else float(min_ratio)
        return "lrc" if 1 - rank / min(n, m) > ratio else "nlrc"

    return map_named(one, params)


SHARED: dict[str, Any] = {
    "form": "diagnostic",
    "paper": PAPER,
    "opt_outs": dict.fromkeys(
        ("pure", "missing", "abstract", "bad input", "mesh"),
        "a function of matrices, called once before training: it keeps no state and has no update",
    ),
}
SPECTRUM = np.array([5.0, 2.0, 1.0])
register(welore_ranks, **SHARED, example={"singular_values": SPECTRUM, "threshold": 0.1})
register(welore_threshold, **SHARED, example={"singular_values": SPECTRUM, "target_reduction": 0.5})
register(welore_factorize, **SHARED, example={"w": np.eye(2, dtype=np.float32), "rank": 1})
register(welore_labels, **SHARED, example={"params": {"w": np.eye(8, dtype=np.float32)}, "ranks": {"w": 2}})
