"""Opposing signals: the few examples whose losses change most in a step, some up and as many down.

change_i = loss_i after - loss_i before;   up = the k largest changes, down = the k most negative

    cosine = <mean g of up, mean g of down> / product of the norms        near -1 of opposing groups
    share  = |sum of g over the group| / |sum of g over all|              above 1 where the groups cancel

Tracked over steps at the edge of stability, the groups swap: what went up goes down.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, widen
from gradkit.engine.krylov import inner
from gradkit.engine.matching import check_leaves
from gradkit.types import PyTree

PAPER = Paper(
    "Outliers with Opposing Signals Have an Outsized Effect on Neural Network Optimization",
    "Rosenfeld, Risteski",
    2023,
    "2311.04163",
)


class OpposingSignals(NamedTuple):
    """Two groups of examples, each in the order of its changes, the largest first.

    Attributes:
      up: (top,), the indices of the examples whose losses rose most, or fell least.
      up_changes: (top,), their changes.
      down: (top,), the indices of those whose losses fell most.
      down_changes: (top,), their changes.
      cosine: between the mean gradients of the groups; None without gradients.
      up_share: the norm of the sum of the gradients of `up`, as a share of that of all; None without gradients.
      down_share: the same of `down`.
    """

    up: jax.Array
    up_changes: jax.Array
    down: jax.Array
    down_changes: jax.Array
    cosine: jax.Array | None
    up_share: jax.Array | None
    down_share: jax.Array | None


def opposing_signals(
    losses_before: Any, losses_after: Any, *, top: int = 20, gradients: PyTree = None
) -> OpposingSignals:
    """The examples whose losses rose and fell most in a step, and how their gradients oppose each other.

        change_i = loss_i after - loss_i before
        cosine = <mean g of up, mean g of down> / product of the norms,   share = |sum g of a group| / |sum g of all|

    Args:
      losses_before: (m,), the loss of every example before the step.
      losses_after: (m,), after it.
      top: examples in each group, from 1 to m / 2. Default 20.
      gradients: a tree with a leading axis of length m: the gradients of the examples, before the step. Default None.

    Returns:
      `OpposingSignals`. Collectives: where leaves are sharded, scalars.

    Raises:
      ValueError: losses that are no vectors of one length, `top` outside its range, gradients of another number.

    Example:
      >>> before, after = jnp.array([1.0, 1.0, 1.0, 1.0]), jnp.array([1.1, 3.0, 0.9, 0.0])
      >>> g = jnp.array([[0.0, 1.0], [5.0, 1.0], [0.0, 1.0], [-5.0, 1.0]])
      >>> found = opposing_signals(before, after, top=1, gradients=g)
      >>> found.up.tolist(), found.down.tolist(), round(found.cosine.item(), 3)
      ([1], [3], -0.923)

    Reference: Rosenfeld, Risteski. Outliers with Opposing Signals Have an Outsized Effect on Neural Network
    Optimization. 2023, arXiv 2311.04163. The paper then groups examples by what is seen in them, which no formula does.
    """
    checks.arrays(losses_after=losses_after, gradients=gradients)
    checks.arrays(losses_before=losses_before)
    before, after = (jnp.asarray(x, jnp.result_type(float)) for x in (losses_before, losses_after))
    if before.ndim != 1 or before.shape != after.shape or before.size < 2:
        raise ValueError(
            "opposing_signals: losses_before and losses_after must be vectors of one length >= 2, one loss per "
            f"example, got {before.shape} and {after.shape}; write jax.vmap(loss, (None, 0))(params, examples)"
        )
    m = before.size
    top = checks.integer("top", top, 1)
    if top > m // 2:
        raise ValueError(
            f"opposing_signals: top must be at most {m // 2}, half of the {m} examples, got {top}; write top={m // 2}"
        )
    change = after - before
    rise, up = jax.lax.top_k(change, top)
    fall, down = jax.lax.top_k(-change, top)
    if gradients is None:
        return OpposingSignals(up, rise, down, -fall, None, None, None)
    check_leaves("opposing_signals", gradients, complex_leaves=False)
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(gradients)}
    if lengths != {(m,)}:
        raise ValueError(
            f"opposing_signals: gradients must have a leading axis of length {m} on every leaf, one entry per example, "
            f"got leading axes {sorted(lengths)}; write jax.vmap(jax.grad(loss), (None, 0))(params, examples)"
        )
    wide = widen(gradients)
    a, b = (jax.tree.map(lambda x, i=i: jnp.sum(x[i], axis=0), wide) for i in (up, down))
    everyone = jax.tree.map(lambda x: jnp.sum(x, axis=0), wide)
    size_a, size_b, size = (jnp.sqrt(inner(x, x)) for x in (a, b, everyone))
    cosine = divide(inner(a, b), size_a * size_b)
    return OpposingSignals(up, rise, down, -fall, cosine, divide(size_a, size), divide(size_b, size))


register(
    opposing_signals,
    form="function",
    paper=PAPER,
    collectives="norms",
    example={
        "losses_before": np.ones(4, np.float32),
        "losses_after": np.array([1.1, 3.0, 0.9, 0.0], np.float32),
        "top": 1,
    },
)
