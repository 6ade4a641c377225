"""Dataset quantization: bins from the most representative examples to the most diverse, and a share of every bin."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gradkit import checks
from gradkit.batches.colm_select import quotas
from gradkit.batches.greedy_select import greedy_select
from gradkit.catalogue import Paper, register
from gradkit.engine.arrays import reals
from gradkit.engine.keys import as_key
from gradkit.types import Key, Scalar

PAPER = Paper("Dataset Quantization", "Zhou et al.", 2023)


def dataset_bins(features: Any, *, num_bins: int = 10, balance: Scalar = 1.0) -> jax.Array:
    """Splits a data set into bins of equal sizes, each of which stands for what was left when it was filled.

        sim(i, j) = the cosine of features i and j
        gain_i = balance sum of sim(i, j) over j in what was left before this bin - 2 sum of sim(i, j) over j in the bin
        a bin: the example with the largest gain, again and again, until it is full; then it is taken out of what is
        left

    Early bins have what is typical, late ones what is rare. Take the same share of each: `sample_bins`.

    Args:
      features: (N, d), floating point: of the last hidden layer.
      num_bins: n, from 1 to N. Default 10 (paper). The first N mod n bins have one example more.
      balance: weight of what is typical, >= 0. Default 1 (official code).

    Returns:
      The bin of every example, (N,) int32 from 0 on. N passes over the features, and no matrix of similarities.

    Raises:
      ValueError: an argument outside its range; features that are not (N, d).

    Example:
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.2], [1.0, 0.1]])
      >>> dataset_bins(x, num_bins=2, balance=10.0).tolist()
      [1, 1, 0, 0]

    Reference: Zhou et al. Dataset Quantization. ICCV 2023. The official code compares gradients of the last layer, of a
    cross entropy that is fed probabilities, a softmax twice; here features are compared.
    """
    checks.arrays(features=features)
    num_bins = checks.integer("num_bins", num_bins, 1)
    checks.real("balance", balance, "[0, inf)")
    x = reals("dataset_bins", "features", features, 2)
    n = len(x)
    checks.integer("num_bins", num_bins, 1, maximum=n)
    norm = jnp.linalg.norm(x, axis=1, keepdims=True)
    x = x / jnp.where(norm > 0, norm, jnp.ones_like(norm))
    weight = jnp.asarray(balance).astype(x.dtype)

    def fill(carry: Any, size: int) -> tuple[jax.Array, jax.Array]:
        left, bins = carry
        typical = weight * (x @ jnp.sum(jnp.where(left[:, None], x, jnp.zeros_like(x)), axis=0))
        gain = lambda total: typical - 2 * (x @ total)  # noqa: E731
        chosen, _ = greedy_select(gain, lambda total, j: total + x[j], jnp.zeros_like(x[0]), size, candidates=left)
        return left.at[chosen].set(False), bins.at[chosen].set(jnp.max(bins) + 1)

    carry = (jnp.ones(n, bool), jnp.full(n, -1, jnp.int32))
    sizes = [n // num_bins + (b < n % num_bins) for b in range(num_bins)]
    for size in sorted(set(sizes), reverse=True):  # a program for each of the two sizes
        carry = jax.lax.fori_loop(0, sizes.count(size), lambda _, carry, size=size: fill(carry, size), carry)
    return carry[1]


def sample_bins(key: Key, bins: Any, fraction: Scalar, *, labels: Any = None) -> np.ndarray:
    """The same share of every bin, drawn uniformly.

        round(fraction N) examples, split over bins (with `labels`: over classes in bins) by their sizes

    Args:
      key: a typed key or an integer.
      bins: of `dataset_bins`, (N,), integers >= 0.
      fraction: of examples that are kept, in (0, 1].
      labels: class of every example, (N,), integers >= 0: classes keep their shares as well. Default None.

    Returns:
      Indices, sorted. On the host: bins and labels must be known.

    Raises:
      ValueError: an argument outside its range; bins or labels that are traced or no such integers.

    Example:
      >>> len(sample_bins(0, jnp.array([0, 0, 1, 1]), 0.5))
      2

    Reference: Zhou et al. Dataset Quantization. ICCV 2023.
    """
    checks.real("fraction", fraction, "(0, 1]")
    arrays = {"bins": bins} | ({} if labels is None else {"labels": labels})
    for name, value in arrays.items():
        if isinstance(value, Tracer):
            raise ValueError(
                f"{name} must be known when the program is built, got a traced array; write NumPy integers"
            )
        found = np.asarray(value)
        if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer) or not len(found) or found.min() < 0:
            raise ValueError(f"{name} must be integers >= 0, one per example, got {found.dtype} of shape {found.shape}")
        arrays[name] = found
    own = arrays["bins"]
    if labels is not None:
        if len(arrays["labels"]) != len(own):
            raise ValueError(f"labels must be like bins, of length {len(own)}, got {len(arrays['labels'])}")
        own = own * (arrays["labels"].max() + 1) + arrays["labels"]
    share = quotas(np.bincount(own), round(float(fraction) * len(own)))
    order = np.asarray(jax.random.permutation(as_key(key), len(own)))
    chosen = [order[own[order] == group][:count] for group, count in enumerate(share) if count]
    return np.sort(np.concatenate([*chosen, np.zeros(0, int)])).astype(int)


register(
    dataset_bins,
    form="function",
    paper=PAPER,
    example={"features": jax.ShapeDtypeStruct((16, 4), "float32"), "num_bins": 3},
)
register(sample_bins, form="function", paper=PAPER, example={"key": 0, "bins": np.array([0, 0, 1, 1]), "fraction": 0.5})
