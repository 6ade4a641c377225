"""Error feedback: what a compressed exchange failed to say in one step, it says in later ones.

Replica w of W, with the gradient g_w and a memory e_w that starts at 0:

    p_w   = g_w + decay e_w
    sent_w = what the others understand of p_w
    e_w   <- p_w - sent_w
    mean  = (1/W) sum_w sent_w

With decay = 1, at every step t:   sum_s mean_s + (1/W) sum_w e_w = sum_s (1/W) sum_w g_ws.  Nothing is lost.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar, zeros
from gradkit.parallel.compressors import Compressor, compressing, compressor_of, no_state
from gradkit.parallel.quantized_replica_mean import int8_compressor
from gradkit.parallel.replicas import alike, wide_mean
from gradkit.types import Scalar

PAPER = Paper(
    "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", "Karimireddy et al.", 2019, "1901.09847"
)


class ErrorFeedbackState(NamedTuple):
    """What this replica has not yet said, float32 or wider; the state of the compressor."""

    error: Any
    compressor: Any

    exact_fields = ("error",)  # what is rounded off here is never said


def error_feedback(
    compressor: optax.GradientTransformation, *, decay: Scalar = 1.0, axis_name: Any = "replica"
) -> optax.GradientTransformationExtraArgs:
    """Keeps what a compressor failed to send, and adds it to what is sent next.

    Equations: at the head of this file. The first link of a chain, on the gradient of one replica:

        tx = optax.chain(gk.parallel.error_feedback(gk.parallel.top_k_compressor(0.01)), gk.adamw(3e-4))

    The memory is one per replica and part of the state, so a checkpoint of the state has it. It is what this replica
    did not send of its own, not its difference from the mean: that one grows like the root of the number of steps.

    Args:
      compressor: a compressor of `gk.parallel`.
      decay: how much of the memory is added, in [0, 1]. Default 1 (paper): nothing is ever lost.
      axis_name: name of the axis of the replicas, or a tuple of names. Default "replica". A strategy that is handed
        this as its `exchange` uses its own.

    Returns:
      A compressor, and as a transformation: the gradient of a replica in, the mean out. State, per replica: 1 word per
      parameter, and that of `compressor`. Collectives: those of `compressor`.

    Raises:
      ValueError: `compressor` is none, `decay` outside its range; at `update`, no axis of this name.

    Example:
      >>> from gradkit.parallel import top_k_compressor
      >>> tx = error_feedback(top_k_compressor(0.5))  # one of two entries is sent
      >>> g = jnp.array([[2.0, 1.0]])  # of one replica
      >>> step = jax.vmap(tx.update, axis_name="replica")
      >>> sent, state = step(g, jax.vmap(tx.init)(g))
      >>> print(sent, step(0 * g, state)[0])
      [[2. 0.]] [[0. 1.]]

    Reference: Karimireddy et al. Error Feedback Fixes SignSGD and other Gradient Compression Schemes. 2019, arXiv
    1901.09847. There the memory is in units of the step, gamma g; here in those of the gradient, so that the link
    stands in front of any optimizer.
    """
    inner = compressor_of(compressor, "compressor")
    checks.real("decay", decay, "[0, 1]")

    def init(like: Any) -> ErrorFeedbackState:
        return ErrorFeedbackState(zeros(like), inner.init(like))

    def exchange(tree: Any, state: ErrorFeedbackState, axis_name: Any, *, key: Any = None) -> tuple[Any, Any, Any]:
        p = jax.tree.map(lambda g, e: g + scalar(decay, e) * e, tree, state.error)
        mean, sent, own = inner.exchange(p, state.compressor, axis_name, key=key)
        new = ErrorFeedbackState(jax.tree.map(jnp.subtract, p, sent), own)
        return mean, sent, alike(new, state)

    return compressing("error_feedback", Compressor(init, exchange), axis_name)


def mean_compressor(*, axis_name: Any = "replica") -> optax.GradientTransformationExtraArgs:
    """The compressor that compresses nothing: the mean in float32. What the others are compared with.

        mean = (1/W) sum_w g_w,    sent_w = g_w

    Args:
      axis_name: name of the axis of the replicas, or a tuple of names. Default "replica".

    Returns:
      A compressor, and as a transformation: the gradient of a replica in, the mean out. No state. Collectives: one
      all-reduce of the tree.

    Raises:
      ValueError: at `update`, no axis of this name.

    Example:
      >>> tx = mean_compressor()
      >>> g = jnp.array([[1.0], [3.0]])  # of two replicas
      >>> print(jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="replica")(g))
      [[2.]
       [2.]]

    Reference: the exchange that error feedback leaves as it is: Karimireddy et al. 2019, arXiv 1901.09847.
    """

    def exchange(tree: Any, state: Any, axis_name: Any, *, key: Any = None) -> tuple[Any, Any, Any]:
        del key
        return wide_mean("mean_compressor", tree, axis_name), tree, state

    return compressing("mean_compressor", Compressor(no_state, exchange), axis_name, complex_leaves=True)


register(
    error_feedback,
    form="exchange",
    paper=PAPER,
    words=1,
    collectives="replicas",
    example={"compressor": int8_compressor(bits=4)},
    notes="around any compressor",
)
register(mean_compressor, form="exchange", paper=PAPER, collectives="replicas")
