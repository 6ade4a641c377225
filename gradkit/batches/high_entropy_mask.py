"""The tokens at which a policy hesitates: the only ones that the policy loss is taken at."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.arrays import reals
from gradkit.types import Mask, Scalar

PAPER = Paper(
    "Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for LLM Reasoning",
    "Wang et al.",
    2025,
    "2506.01939",
)


def token_entropy(logits: Any) -> jax.Array:
    """The entropy of the distribution over the next token, without a gradient.

        H = logsumexp(l) - sum_k softmax(l)_k l_k

    Args:
      logits: (..., vocabulary), floating point; -inf for what is excluded.

    Returns:
      (...), in float32 or wider, >= 0 but for rounding.

    Raises:
      ValueError: logits that are not floating point, or empty.

    Example:
      >>> print(token_entropy(jnp.array([[0.0, 0.0], [0.0, 99.0]])).round(4))
      [0.6931 0.    ]

    Reference: Wang et al. Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning
    for LLM Reasoning. 2025, arXiv 2506.01939.
    """
    checks.arrays(logits=logits)
    l = jax.lax.stop_gradient(reals("token_entropy", "logits", logits))  # noqa: E741
    top = jax.nn.logsumexp(l, axis=-1, keepdims=True)
    p = jnp.exp(l - top)
    return -jnp.sum(jnp.where(p > 0, p * (l - top), jnp.zeros_like(p)), axis=-1)


def _check(method: str, entropy: Any, valid: Any) -> tuple[jax.Array, jax.Array]:
    h, valid = jax.lax.stop_gradient(reals(method, "entropy", entropy)), jnp.asarray(valid)
    if valid.shape != h.shape or not (valid.dtype == bool or jnp.issubdtype(valid.dtype, jnp.number)):
        raise ValueError(
            f"{method}: valid must be like entropy, of shape {h.shape}, got {valid.dtype} of shape {valid.shape}; "
            "write the mask of the tokens that are no padding"
        )
    return h, valid.astype(bool)


def _quantile(h: jax.Array, valid: jax.Array, q: jax.Array) -> jax.Array:
    """The quantile of the valid entries, linear between two of them."""
    n = jnp.sum(valid, dtype=jnp.int32)
    ordered = jnp.sort(jnp.where(valid, h, jnp.inf).reshape(-1))
    place = q * jnp.maximum(n - 1, 0).astype(q.dtype)
    below = jnp.floor(place)
    i = below.astype(jnp.int32)
    low, high = ordered[i], ordered[jnp.minimum(i + 1, jnp.maximum(n - 1, 0))]
    share = place - below
    return jnp.where(share > 0, low + (high - low) * share, low)


def _edge(h: jax.Array, valid: jax.Array, fraction: jax.Array, bins: int, axis_name: Any) -> jax.Array:
    """The highest edge of a bin above which there is at least the fraction."""
    over = (lambda f, x: x) if axis_name is None else (lambda f, x: f(x, axis_name))
    low = over(jax.lax.pmin, jnp.min(jnp.where(valid, h, jnp.inf)))
    high = over(jax.lax.pmax, jnp.max(jnp.where(valid, h, -jnp.inf)))
    width = (high - low) / bins
    edges = low + width * jnp.arange(bins).astype(h.dtype)
    # Counted against the edges themselves, so that no rounding puts an entry on the other side of its threshold.
    place = jnp.searchsorted(edges, h.reshape(-1), side="right") - 1
    counts = jnp.zeros((bins,), jnp.int32).at[jnp.clip(place, 0)].add(valid.reshape(-1).astype(jnp.int32))
    counts = over(jax.lax.psum, counts)
    above = jnp.cumsum(counts[::-1])[::-1]
    enough = above.astype(h.dtype) >= fraction * above[0].astype(h.dtype)
    return jnp.max(jnp.where(enough, edges, low))


def high_entropy_mask(
    entropy: Any, valid: Any, *, fraction: Scalar = 0.2, axis_name: Any = None, bins: int | None = None
) -> jax.Array:
    """The tokens of the batch with the largest entropies, at which alone the policy gradient is taken.

        tau = the (1 - fraction) quantile of H over all valid tokens of the batch, of all responses and replicas
        mask = H >= tau and valid

    Multiply the policy loss of every token by it; a penalty on the divergence from a reference stays on all tokens.
    `high_entropy_mean` divides by the number of valid tokens, as the paper does.

    Args:
      entropy: H, any shape: `token_entropy(logits)`. No gradient flows into it.
      valid: mask of the same shape: False for padding, which does not count in the quantile.
      fraction: of tokens that are kept, in (0, 1]; 1 keeps all. Default 0.2 (paper).
      axis_name: axis of `vmap` or `shard_map` whose members hold parts of the batch. Default None: all of it is here.
      bins: of a histogram between the smallest and the largest entropy, >= 1, which takes the place of the quantile:
        tau is the highest edge above which there is at least the fraction. Default None: the exact quantile.

    Returns:
      A mask, bool. Ties with tau are kept, all of them; nothing is where no token is valid. Collectives with
      `axis_name`: an all-gather of one number per token, or with `bins` all-reduces of as many numbers.

    Raises:
      ValueError: an argument outside its range; shapes that differ.

    Example:
      >>> h, valid = jnp.array([0.1, 2.0, 0.3, 9.0]), jnp.array([True, True, True, False])
      >>> high_entropy_mask(h, valid, fraction=0.5).tolist()
      [False, True, True, False]

    Reference: Wang et al. Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning
    for LLM Reasoning. 2025, arXiv 2506.01939. Public code takes the quantile over the microbatch of a gradient
    accumulation; give all microbatches of a step at once for that of the batch. The histogram is ours.
    """
    checks.arrays(valid=valid)
    checks.arrays(entropy=entropy)
    checks.axis_name("axis_name", axis_name)
    bins = checks.integer("bins", bins, 1, optional=True)
    checks.real("fraction", fraction, "(0, 1]")
    h, valid = _check("high_entropy_mask", entropy, valid)
    f = jnp.asarray(fraction).astype(h.dtype)
    if bins is not None:
        return (h >= _edge(h, valid, f, bins, axis_name)) & valid
    every, real = (h, valid) if axis_name is None else jax.lax.all_gather((h, valid), axis_name)
    return (h >= _quantile(every, real, 1 - f)) & valid


def high_entropy_mean(losses: Any, mask: Mask, valid: Any, *, denominator: str = "valid", axis_name: Any = None) -> Any:
    """The policy loss of the tokens that a mask keeps, divided by the number of tokens of one kind or the other.

        sum_i mask_i loss_i / number of valid tokens            "valid": what is kept has the gradient it always had
        sum_i mask_i loss_i / number of tokens kept             "kept": 1 / fraction times as large

    Args:
      losses: of every token, floating point, any shape.
      mask: of the same shape: `high_entropy_mask`.
      valid: of the same shape: False for padding.
      denominator: "valid" (paper) or "kept". Default "valid".
      axis_name: axis of `vmap` or `shard_map` whose members hold parts of the batch. Default None.

    Returns:
      A scalar, the mean over the whole batch; 0 where there is nothing to divide by.

    Raises:
      ValueError: shapes that differ; another denominator.

    Example:
      >>> losses, all = jnp.array([1.0, 4.0]), jnp.array([True, True])
      >>> [float(high_entropy_mean(losses, ~all | (losses > 2), all, denominator=d)) for d in ("valid", "kept")]
      [2.0, 4.0]

    Reference: Wang et al. Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning
    for LLM Reasoning. 2025, arXiv 2506.01939.
    """
    checks.arrays(mask=mask)
    checks.arrays(losses=losses, valid=valid)
    checks.axis_name("axis_name", axis_name)
    checks.choice("denominator", denominator, ("valid", "kept"))
    losses = reals("high_entropy_mean", "losses", losses)
    mask, valid = (jnp.asarray(m).astype(bool) for m in (mask, valid))
    if mask.shape != losses.shape or valid.shape != losses.shape:
        raise ValueError(
            f"high_entropy_mean: mask and valid must be like losses, of shape {losses.shape}, got {mask.shape} and "
            f"{valid.shape}; write one number per token"
        )
    kept = mask & valid
    total = jnp.sum(jnp.where(kept, losses, jnp.zeros_like(losses)))
    count = jnp.sum(valid if denominator == "valid" else kept, dtype=jnp.int32)
    if axis_name is not None:
        total, count = jax.lax.psum((total, count), axis_name)
    return total / jnp.maximum(count, 1).astype(total.dtype)


TOKENS, MASK = jax.ShapeDtypeStruct((4, 16), "float32"), jax.ShapeDtypeStruct((4, 16), "bool")
register(high_entropy_mask, form="function", paper=PAPER, example={"entropy": TOKENS, "valid": MASK})
register(high_entropy_mean, form="function", paper=PAPER, example={"losses": TOKENS, "mask": MASK, "valid": MASK})
register(token_entropy, form="function", paper=PAPER, example={"logits": TOKENS})
