"""Clipping by the global norm: a gradient that is too long is shortened, its direction kept.

g <- g max_norm / |g|   where |g| > max_norm,   |g| over all leaves together
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import transformation
from gradkit.engine.norms import global_norm
from gradkit.types import Scalar


class ClipByGlobalNormState(NamedTuple):
    """Metrics of the last update: the norm before clipping, and 1 where it was clipped."""

    metrics: dict[str, jax.Array]


def clip_by_global_norm(max_norm: Scalar, *, nonfinite: str = "propagate") -> optax.GradientTransformationExtraArgs:
    """Shortens updates to a global norm of at most `max_norm`.

    Under gradient accumulation clip the mean gradient, once: clipping every microbatch is another,
    biased, estimator.

    Args:
      max_norm: largest norm let through, in the gradient's units, > 0.
      nonfinite: what becomes of updates whose norm is infinite or NaN: "propagate" (a NaN stays visible) or
        "zero": what comes out is zeros. The step is then not skipped: momenta, decay and counters of the links
        behind go on, and move the parameters; `gk.guard` skips it. Default "propagate".

    Returns:
      A transformation. State: the metrics `gradient_norm` and `clipped`. Collectives: one scalar.

    Raises:
      ValueError: `max_norm` not > 0.

    Example:
      >>> tx = clip_by_global_norm(1.0)
      >>> g = {"a": jnp.array(3.0), "b": jnp.array(4.0)}
      >>> updates, state = tx.update(g, tx.init(g))
      >>> [round(float(x), 4) for x in updates.values()], float(state.metrics["gradient_norm"])
      ([0.6, 0.8], 5.0)

    Reference: Pascanu, Mikolov, Bengio. On the difficulty of training Recurrent Neural Networks. 2013, arXiv
    1211.5063. The same numbers as optax's link, which lets XLA merge the squares of the norm with those of
    the next link and write them out, and publishes nothing.
    """
    checks.real("max_norm", max_norm, "(0, inf]")
    checks.choice("nonfinite", nonfinite, ("propagate", "zero"))

    def published(norm: jax.Array, clipped: jax.Array) -> ClipByGlobalNormState:
        return ClipByGlobalNormState(
            {"gradient_norm": norm.astype(jnp.float32), "clipped": clipped.astype(jnp.float32)}
        )

    def init(params: optax.Params) -> ClipByGlobalNormState:
        del params
        return published(jnp.zeros(()), jnp.zeros(()))

    def update(updates: Any, state: ClipByGlobalNormState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del state, params, extra
        norm = global_norm(updates)
        limit = jnp.asarray(max_norm).astype(norm.dtype)
        clipped = ~(norm <= limit)  # NaN is clipped, and stays NaN
        factor = jnp.where(clipped, limit / norm, jnp.ones_like(norm))

        def shorten(u: jax.Array) -> jax.Array:
            short = u * factor.astype(u.dtype)
            return short if nonfinite == "propagate" else jnp.where(jnp.isfinite(norm), short, jnp.zeros_like(short))

        return jax.tree.map(shorten, updates), published(norm, clipped)

    return transformation("clip_by_global_norm", init, update, complex_leaves=True)


register(
    clip_by_global_norm,
    form="primitive",
    paper=Paper(
        "On the difficulty of training Recurrent Neural Networks", "Pascanu, Mikolov, Bengio", 2013, "1211.5063"
    ),
    collectives="norms",
    example={"max_norm": 1.0},
    variants={"clipped_sgd": Race(1e-1, {"max_norm": 1.0}, before="sgd")},
)
