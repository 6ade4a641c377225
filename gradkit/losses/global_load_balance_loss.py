"""The load-balancing loss of a mixture of experts, with the load of the whole batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.arrays import reals

PAPER = Paper(
    "Demons in the Detail: On Implementing Load Balancing Loss for Training Specialized Mixture-of-Expert Models",
    "Qiu et al.",
    2025,
    "2501.11873",
)


class RouterCounts(NamedTuple):
    """How many tokens selected every expert, (experts,), and how many tokens there were; int32, of one layer."""

    experts: jax.Array
    tokens: jax.Array


def _selections(selected: Any, tokens: int, experts: int) -> jax.Array:
    """A mask (tokens, experts) of what was selected."""
    s = jnp.asarray(selected)
    if s.dtype == bool and s.shape == (tokens, experts):
        return s
    if jnp.issubdtype(s.dtype, jnp.integer) and s.ndim == 2 and len(s) == tokens:
        return jnp.any(s[:, :, None] == jnp.arange(experts, dtype=s.dtype)[None, None], axis=1)
    raise ValueError(
        f"global_load_balance_loss: selected must be the experts of every token, integers ({tokens}, top_k) or a mask "
        f"({tokens}, {experts}), got {s.dtype} of shape {s.shape}"
    )


def global_load_balance_loss(
    router_probs: Any,
    selected: Any,
    valid: Any = None,
    *,
    axis_name: Any = None,
    accumulated: RouterCounts | None = None,
) -> tuple[jax.Array, RouterCounts]:
    """The loss that keeps the experts of one layer equally busy, over a batch that is spread over devices and time.

        f_i = (tokens that selected expert i) / (tokens)    of the whole batch: sum_i f_i = top_k; no gradient
        p_i = the mean probability of expert i              of the tokens here
        loss = N sum_i f_i p_i                              N experts; top_k where all are equally busy

    The mean of the loss over devices is that of the whole batch, as the loss is linear in p. With f of the tokens here,
    every device has to be balanced by itself, and experts cannot specialize on what one device holds. Call it once per
    layer, and take the mean over layers: one f of all layers hides opposite imbalances. Under plain `jit` the batch is
    global already.

    Args:
      router_probs: (tokens, experts), floating point: what the router gives, each row with the sum 1.
      selected: experts of every token: integers (tokens, top_k), or a mask (tokens, experts).
      valid: mask (tokens,), False for padding, which counts nowhere. Default None: all.
      axis_name: axis of `vmap` or `shard_map` whose members hold parts of the batch, or a tuple. Default None.
      accumulated: the counts that the last microbatch of this step has returned: f is then of all tokens so far.
        Default None: the first microbatch, or no accumulation.

    Returns:
      (loss, counts): a scalar in float32 or wider, and the counts up to here, to be handed to the next microbatch. With
      devices or microbatches of unequal numbers of tokens, take a mean over microbatches by tokens; devices are
      weighed already. Collective: one all-reduce of N + 1 numbers.

    Raises:
      ValueError: shapes that do not fit; a dtype of another kind.

    Example:
      >>> probs = jnp.array([[1.0, 0.0], [1.0, 0.0]])  # all tokens choose the first of two experts
      >>> loss, counts = global_load_balance_loss(probs, jnp.array([[0], [0]]))
      >>> float(loss), counts.experts.tolist(), int(counts.tokens)
      (2.0, [2, 0], 2)

    Reference: Qiu et al. Demons in the Detail: On Implementing Load Balancing Loss for Training Specialized
    Mixture-of-Expert Models. 2025, arXiv 2501.11873. The counts are divided by the tokens that were counted, where a
    public trainer divides by microbatches times the tokens of the present one. A device with fewer valid tokens has
    a smaller share in p, so that the mean over devices is exact.
    """
    checks.arrays(selected=selected, valid=valid)
    if accumulated is not None:
        checks.instance("accumulated", accumulated, RouterCounts)
    checks.arrays(router_probs=router_probs)
    checks.axis_name("axis_name", axis_name)
    p = reals("global_load_balance_loss", "router_probs", router_probs, 2)
    tokens, experts = p.shape
    mask = jnp.ones(tokens, bool) if valid is None else jnp.asarray(valid)
    if mask.shape != (tokens,) or mask.dtype != bool:
        raise ValueError(
            f"global_load_balance_loss: valid must be a mask ({tokens},), got {mask.dtype} of shape {mask.shape}"
        )
    if accumulated is not None and jnp.shape(accumulated.experts) != (experts,):
        raise ValueError(
            f"global_load_balance_loss: accumulated must be of {experts} experts, got {jnp.shape(accumulated.experts)}"
            "; write None in the first microbatch"
        )
    chosen = _selections(selected, tokens, experts) & mask[:, None]
    counts = jnp.concatenate([jnp.sum(chosen, axis=0, dtype=jnp.int32), jnp.sum(mask, dtype=jnp.int32)[None]])
    devices = 1
    if axis_name is not None:
        counts, devices = jax.lax.psum(counts, axis_name), jax.lax.axis_size(axis_name)
    here = jnp.maximum(counts[-1], 1).astype(p.dtype) / devices
    if accumulated is not None:
        counts = counts + jnp.concatenate([accumulated.experts, accumulated.tokens[None]]).astype(jnp.int32)
    f = jax.lax.stop_gradient(counts[:-1].astype(p.dtype) / jnp.maximum(counts[-1], 1).astype(p.dtype))
    mean = jnp.sum(jnp.where(mask[:, None], p, jnp.zeros_like(p)), axis=0) / here
    return experts * jnp.sum(f * mean), RouterCounts(counts[:-1], counts[-1])


register(
    global_load_balance_loss,
    form="layer",
    paper=PAPER,
    example={
        "router_probs": jax.ShapeDtypeStruct((16, 4), "float32"),
        "selected": jax.ShapeDtypeStruct((16, 2), "int32"),
    },
)
