"""InfoBatch: an epoch leaves out some of the examples with a low loss, and the rest of them get a larger weight."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register

PAPER = Paper(
    "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", "Qin et al.", 2024, "2303.04947"
)


class InfoBatchState(NamedTuple):
    """The score of every example, float32."""

    scores: jax.Array


class InfoBatch(NamedTuple):
    """A plan for every epoch, as pure functions that may be compiled.

    Attributes:
      init: number of examples -> state.
      plan_epoch: (state, key, epoch from 0) -> (indices, weights), both of the number of examples. The examples of the
        epoch come first, shuffled; those left out follow with weight 0.
      record: (state, indices, losses, weights=None) -> state, with the losses before weighting. Where weights are
        given, examples of weight 0 keep their score.
    """

    init: Callable[[int], InfoBatchState]
    plan_epoch: Callable[[InfoBatchState, jax.Array, Any], tuple[jax.Array, jax.Array]]
    record: Callable[..., InfoBatchState]


def infobatch(
    epochs: int,
    *,
    prune_ratio: float = 0.5,
    delta: float = 0.875,
    initial_score: float = 3.0,
    axis_name: Any = None,
) -> InfoBatch:
    """Which examples each epoch trains on, and with which weights.

    Equations:

        score_i  = the loss of example i when it was last seen, without its weight
        weight_i = 1                          score_i >= mean of all scores, or epoch >= ceil(delta epochs)
        weight_i = 1 / keep                   int(keep w) of the w other examples, drawn without replacement;
                                              keep = 1 - prune_ratio
        weight_i = 0                          the rest of them: left out of this epoch
        loss     = mean_i(weight_i loss_i)

    In expectation the sum of the weighted gradients of an epoch is that of all examples (but for the rounding by int).

    Args:
      epochs: the number of epochs of the whole run, >= 1.
      prune_ratio: fraction of the examples with a score below the mean that an epoch leaves out, in [0, 1). Default 0.5
        (official code).
      delta: fraction of the epochs that leave any examples out, in [0, 1]. Default 0.875 (official code): the last
        eighth uses all.
      initial_score: the score of examples that were not seen yet, any number. Default 3 (official package; its research
        code has 1). All are equal at first, so the first epoch leaves out nothing.
      axis_name: axis of `shard_map` (or `vmap`) over which a batch is sharded; `record` then gathers its indices,
        losses and weights. Default None.

    Returns:
      An `InfoBatch`: (init, plan_epoch, record). State: 1 word per example; a plan has 2 more. Collectives: with
      `axis_name` a gather of 2 or 3 words per example of a batch. Shapes do not depend on how many examples stay: count
      `weights > 0`, and stop there, or let the rest run with weight 0.

    Raises:
      ValueError: an argument outside its range; indices, losses or weights of different lengths.

    Example:
      >>> plan = infobatch(8)
      >>> state = plan.record(plan.init(4), jnp.arange(4), jnp.array([0.1, 0.2, 0.3, 9.0]))
      >>> indices, weights = plan.plan_epoch(state, jax.random.key(0), 1)  # of three that do well, one stays
      >>> sorted(weights.tolist()), 3 in indices[:2].tolist()
      ([0.0, 0.0, 1.0, 2.0], True)

    Reference: Qin et al. InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning. 2024, arXiv
    2303.04947. The package silently raises `keep` to 0.1 where it is less; here it is 1 - prune_ratio in all cases.
    """
    checks.axis_name("axis_name", axis_name)
    checks.integer("epochs", epochs, 1)
    checks.real("prune_ratio", prune_ratio, "[0, 1)")
    checks.real("delta", delta, "[0, 1]")
    checks.real("initial_score", initial_score)
    keep = 1 - float(prune_ratio)
    last = math.ceil(delta * epochs)

    def init(n: int) -> InfoBatchState:
        checks.integer("n", n, 1)
        return InfoBatchState(jnp.full((n,), initial_score, jnp.float32))

    def plan_epoch(state: InfoBatchState, key: jax.Array, epoch: Any) -> tuple[jax.Array, jax.Array]:
        (n,) = state.scores.shape
        # int(keep w) for every w, in float64: float32 may round to just below an integer, which loses an example.
        staying = jnp.asarray((keep * np.arange(n + 1)).astype(np.int32))
        low = jnp.min(state.scores)
        # The mean of distances from the smallest score: a mean of equal scores is then exactly that score.
        well = (state.scores - low < jnp.mean(state.scores - low)) & (jnp.asarray(epoch) < last)
        draw, shuffle = jax.random.split(key)
        order = jax.random.permutation(draw, n)
        rank = jnp.cumsum(well[order].astype(jnp.int32))
        stays = jnp.zeros((n,), bool).at[order].set(~well[order] | (rank <= staying[rank[-1]]))
        indices = jax.random.permutation(shuffle, n)
        indices = indices[jnp.argsort(~stays[indices], stable=True)].astype(jnp.int32)
        weights = jnp.where(well, jnp.float32(1 / keep), jnp.float32(1)) * stays.astype(jnp.float32)
        return indices, weights[indices]

    def record(state: InfoBatchState, indices: Any, losses: Any, weights: Any = None) -> InfoBatchState:
        indices, losses = jnp.asarray(indices), jnp.asarray(losses).astype(jnp.float32)
        weights = jnp.ones_like(losses) if weights is None else jnp.asarray(weights)
        if indices.ndim != 1 or not indices.shape == losses.shape == weights.shape:
            raise ValueError(
                f"infobatch: indices, losses and weights must be of one shape (batch,), got {indices.shape}, "
                f"{losses.shape} and {weights.shape}"
            )
        # Indices outside the range are dropped.
        indices = jnp.where(weights > 0, indices, state.scores.size)
        if axis_name is not None:
            indices, losses = jax.lax.all_gather((indices, losses), axis_name, tiled=True)
        return InfoBatchState(state.scores.at[indices].set(losses, mode="drop"))

    return InfoBatch(init, plan_epoch, record)


def infobatch_loss(losses: Any, weights: Any) -> jax.Array:
    """The loss of a batch whose examples have weights.

    Equations: the loss of `infobatch`:

        loss = mean_i(weight_i loss_i)

    Args:
      losses: the loss of every example, floating point, shape (batch,).
      weights: the weights of the plan, of the same shape.

    Returns:
      mean(weights * losses), a scalar of the dtype of the losses: a mean over the whole batch, not a weighted mean.

    Raises:
      ValueError: shapes that differ.

    Example:
      >>> print(infobatch_loss(jnp.array([1.0, 3.0]), jnp.array([2.0, 1.0])))
      2.5
    """
    checks.arrays(losses=losses, weights=weights)
    losses, weights = jnp.asarray(losses), jnp.asarray(weights)
    if losses.shape != weights.shape:
        raise ValueError(
            f"infobatch_loss: losses and weights must have the same shape, got {losses.shape} and {weights.shape}"
        )
    return jnp.mean(weights.astype(losses.dtype) * losses)


register(
    infobatch,
    form="program",
    paper=PAPER,
    example={"epochs": 8},
    notes="the state is 1 word per example, none per parameter",
)
