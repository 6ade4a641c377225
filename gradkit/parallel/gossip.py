"""Decentralised training: every replica communicates only with its neighbours."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gradkit import checks
from gradkit.engine.core import wide_dtype
from gradkit.parallel.compressors import Compressor, number_of_replicas
from gradkit.parallel.replicas import alike
from gradkit.types import Key, PyTree

NAME = "gossip_mix"
RING = "ring"
# Tolerance for a mixing matrix that a user has written with seven digits.
CLOSE = 1e-6


def ring_mixing(replicas: int) -> np.ndarray:
    """The mixing matrix of a ring: a third of the replica itself and of each neighbour.

    Args:
      replicas: number of replicas, >= 1.

    Returns:
      A symmetric matrix (replicas, replicas) whose rows add up to 1; its entries are 1/2 for two replicas, 1 for one.

    Raises:
      ValueError: `replicas` below 1.

    Example:
      >>> print(ring_mixing(4).round(2)[0])
      [0.33 0.33 0.   0.33]
    """
    replicas = checks.integer("replicas", replicas, 1)
    shifts = sorted({0, 1 % replicas, replicas - 1})
    W = np.zeros((replicas, replicas))
    for shift in shifts:
        W[np.arange(replicas), (np.arange(replicas) + shift) % replicas] = 1 / len(shifts)
    return W


def check_mixing(mixing: Any) -> Any:
    """The mixing matrix in float64, or "ring".

    Raises:
      ValueError: it is neither: not square, not symmetric, an entry below 0, or rows that do not add up to 1.
    """
    if isinstance(mixing, str) and mixing == RING:
        return mixing
    known = not isinstance(mixing, Tracer | str) and np.ndim(mixing) == 2
    W = np.asarray(mixing, np.float64) if known else np.zeros((0, 0))
    square = W.shape[0] == W.shape[1] and W.size > 0
    if not square or not (np.abs(W - W.T) <= CLOSE).all() or not (np.abs(W.sum(0) - 1) <= CLOSE).all() or W.min() < 0:
        raise ValueError(
            "mixing must be 'ring', or a symmetric matrix of numbers >= 0 whose rows add up to 1, one row per replica, "
            f"got {mixing!r}; write mixing=gk.parallel.ring_mixing(replicas)"
        )
    return W


def _matrix(mixing: Any, method: str, axis_name: Any) -> np.ndarray:
    """The mixing matrix for the number of replicas of the axis."""
    replicas = number_of_replicas(method, axis_name)
    W = ring_mixing(replicas) if isinstance(mixing, str) else mixing
    if replicas != len(W):
        raise ValueError(
            f"{method}: mixing must have one row per replica, got {len(W)} rows and {replicas} replicas along "
            f"{axis_name!r}; write a matrix of {replicas} rows, or mixing='ring'"
        )
    return W


def _shifts(W: np.ndarray) -> dict[int, float] | None:
    """Shift -> weight, where all replicas have the same neighbours relative to themselves; else None."""
    n = len(W)
    rows = np.stack([np.roll(W[i], -i) for i in range(n)])
    if np.abs(rows - rows[:1]).max() > 0 or np.count_nonzero(rows[0]) > (n + 1) // 2 + 1:
        return None
    return {shift: float(w) for shift, w in enumerate(rows[0]) if w}


def mix_payloads(payload: Any, mixing: Any, axis_name: Any, decode: Callable[[Any], Any], method: str = NAME) -> Any:
    """sum_j W_ij decode(payload_j): payloads are sent only to neighbours where all replicas have the same ones."""
    W = _matrix(mixing, method, axis_name)
    replicas = len(W)
    shifts = _shifts(W)
    if shifts is not None:
        total = None
        for shift, weight in shifts.items():
            pairs = [((i + shift) % replicas, i) for i in range(replicas)]
            there = payload if shift == 0 else jax.lax.ppermute(payload, axis_name, pairs)
            share = jax.tree.map(lambda x, w=weight: w * x, decode(there))
            total = share if total is None else jax.tree.map(jnp.add, total, share)
        return total
    rows = jnp.asarray(W)[jax.lax.axis_index(axis_name)]
    everyone = jax.lax.all_gather(payload, axis_name)

    def add(total: Any, item: Any) -> tuple[Any, None]:
        weight, row = item
        return jax.tree.map(lambda t, x: t + weight.astype(x.dtype) * x, total, decode(row)), None

    like = decode(payload)
    start = jax.tree.map(lambda x: alike(jnp.zeros_like(x), x), like)
    total, _ = jax.lax.scan(add, start, (alike(rows, jax.tree.leaves(payload)[0]), everyone))
    return total


def gossip_mix(tree: PyTree, mixing: Any = RING, axis_name: Any = "replica") -> Any:
    """One round of gossip: every replica gets a weighted mean of its neighbours' trees.

    Equations:

        x_i <- sum_j W_ij x_j

    Args:
      tree: real floating point leaves, of one replica.
      mixing: W, a symmetric matrix of NumPy of numbers >= 0 whose rows add up to 1, one row per replica; or "ring",
        that of `ring_mixing`. Default "ring".
      axis_name: name of the axis of the replicas, of `jax.vmap` or `jax.shard_map`. Default "replica".

    Returns:
      A tree like the one given, of its dtypes, mixed in float32 or wider; the mean over the replicas does not change.
      Collectives: where all replicas have the same neighbours relative to themselves, as on a ring, one permutation per
      neighbour; else an all-gather.

    Raises:
      ValueError: a matrix that is not a mixing matrix, or of another size than the axis; no axis of this name.

    Example:
      >>> x = jnp.array([[3.0], [0.0], [0.0], [0.0]])
      >>> print(jax.vmap(lambda x: gossip_mix(x), axis_name="replica")(x)[:, 0])
      [1. 1. 0. 1.]

    Reference: The communication of decentralised methods, as in Yan et al. Compressed Decentralized Proximal Stochastic
    Gradient Method for Nonconvex Composite Problems with Heterogeneous Data. 2023.
    """
    checks.axis_name("axis_name", axis_name, optional=False)
    mixing = check_mixing(mixing)
    tree = jax.tree.map(jnp.asarray, tree)
    wide = jax.tree.map(lambda x: x.astype(wide_dtype(x.dtype)), tree)
    if not jax.tree.leaves(tree):
        return tree
    return jax.tree.map(lambda m, x: m.astype(x.dtype), mix_payloads(wide, mixing, axis_name, lambda x: x), tree)


def mixed_differences(
    value: Any, known: Any, mixture: Any, own: Any, compressor: Compressor, mixing: Any, axis_name: Any, key: Key
) -> tuple[Any, Any, Any]:
    """(known, mixture, state of the compressor) after this replica sent its neighbours its difference from `known`."""
    assert compressor.encode is not None and compressor.decode is not None
    difference = jax.tree.map(jnp.subtract, value, known)
    worker = jax.lax.axis_index(axis_name)
    payload, own = compressor.encode(difference, own, worker=worker, key=key)
    decode = lambda payload: compressor.decode(payload, difference)  # noqa: E731
    said = decode(payload)
    mixed = mix_payloads(payload, mixing, axis_name, decode, "compressed_dproxsgt")
    return jax.tree.map(jnp.add, known, said), jax.tree.map(jnp.add, mixture, mixed), own
