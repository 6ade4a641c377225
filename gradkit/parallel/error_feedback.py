"""Error feedback: the error of a compressed exchange is added to the next one."""

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
    """The part that this replica has not yet sent, in float32 or wider; the state of the compressor."""

    error: Any
    compressor: Any

    exact_fields = ("error",)  # a rounding error here would never be sent


def error_feedback(
    compressor: optax.GradientTransformation, *, decay: Scalar = 1.0, axis_name: Any = "replica"
) -> optax.GradientTransformationExtraArgs:
    """Keeps the error of a compressor, and adds it to the next gradient before compression.

    Equations for replica w of W, with the gradient g_w and an error e_w that starts at 0:

        p_w    = g_w + decay e_w
        sent_w = the decompressed payload of p_w
        e_w   <- p_w - sent_w
        mean   = (1/W) sum_w sent_w

    With decay = 1 nothing is lost, since at every step

        sum_s mean_s + (1/W) sum_w e_w = sum_s (1/W) sum_w g_ws

    Put it first in a chain, on the gradient of one replica:

        tx = optax.chain(gk.parallel.error_feedback(gk.parallel.top_k_compressor(0.01)), gk.adamw(3e-4))

    Every replica has an error of its own, which is part of the state and so of a checkpoint. It is the unsent part of
    this replica's gradient, not its difference from the mean, which would grow like the root of the number of steps.

    Args:
      compressor: a compressor of `gk.parallel`.
      decay: factor of the error that is added, in [0, 1]. Default 1 (paper): nothing is lost.
      axis_name: name of the axis of the replicas, or a tuple of names. Default "replica". A strategy that takes this as
        its `exchange` uses its own.

    Returns:
      A compressor, and as a transformation: it replaces the gradient of a replica by the mean. State, per replica: 1
      word per parameter, and that of `compressor`. Collectives: those of `compressor`.

    Raises:
      ValueError: `compressor` is not a compressor, `decay` outside its range; at `update`, no axis of this name.

    Example:
      >>> from gradkit.parallel import top_k_compressor
      >>> tx = error_feedback(top_k_compressor(0.5))  # one of two entries is sent
      >>> g = jnp.array([[2.0, 1.0]])  # of one replica
      >>> step = jax.vmap(tx.update, axis_name="replica")
      >>> sent, state = step(g, jax.vmap(tx.init)(g))
      >>> print(sent, step(0 * g, state)[0])
      [[2. 0.]] [[0. 1.]]

    Reference: Karimireddy et al. Error Feedback Fixes SignSGD and other Gradient Compression Schemes. 2019, arXiv
    1901.09847. In the paper the error is in units of the step, gamma g; here in those of the gradient, so that any
    optimizer can follow.
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
    """The compressor without compression: the mean in float32, as a baseline for the others.

    Equations:

        mean = (1/W) sum_w g_w,    sent_w = g_w

    Args:
      axis_name: name of the axis of the replicas, or a tuple of names. Default "replica".

    Returns:
      A compressor, and as a transformation: it replaces the gradient of a replica by the mean. No state. Collectives:
      one all-reduce of the tree.

    Raises:
      ValueError: at `update`, no axis of this name.

    Example:
      >>> tx = mean_compressor()
      >>> g = jnp.array([[1.0], [3.0]])  # of two replicas
      >>> print(jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="replica")(g))
      [[2.]
       [2.]]

    Reference: The exchange that error feedback does not change: Karimireddy et al. 2019, arXiv 1901.09847.
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
