"""STORM: momentum that is corrected by the change of the gradient of this batch since the last step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import as_arrays, increment, need, scalar, transformation, widen, zeros
from gradkit.types import Scalar

PAPER = Paper("Momentum-Based Variance Reduction in Non-Convex SGD", "Cutkosky, Orabona", 2019, "1905.10018")


class StormState(NamedTuple):
    """Number of updates made; w_{t-1}, and d_{t-1}."""

    count: jax.Array
    previous: Any
    estimate: Any

    exact_fields = ("previous",)  # parameters, which gk.precision(state=...) must not round


def storm(*, a: Scalar = 0.1) -> optax.GradientTransformationExtraArgs:
    """A link before any optimizer that reduces the noise of batches in the gradient, without a full gradient.

    Equations, with the gradient g_t of the batch of step t at both points:

        d_1 = g_1(w_1)
        d_t = g_t(w_t) + (1 - a) (d_{t-1} - g_t(w_{t-1}))

    Args:
      a: weight of the new gradient, in [0, 1]. Default 0.1. 1 is the gradient itself; 0 is SARAH's recursion without a
        refresh.

    Returns:
      A transformation that needs `params` and the extra argument `grad_fn`, params -> gradient of this batch, which is
      called at the last step's parameters. State: 2 words per parameter and a counter. Elementwise: no collective of
      its own.

    Raises:
      ValueError: `a` outside its range; at `update`, no `grad_fn`.

    Example:
      >>> tx, w = storm(a=0.0), jnp.array(2.0)
      >>> d, state = tx.update(w, tx.init(w), w, grad_fn=lambda w: w)
      >>> noisy = lambda w: w + 5.0  # the batch's own error is the same at both points
      >>> float(tx.update(noisy(w - d / 2), state, w - d / 2, grad_fn=noisy)[0])
      1.0

    Reference: Cutkosky, Orabona. Momentum-Based Variance Reduction in Non-Convex SGD. 2019, arXiv 1905.10018. In the
    paper the learning rate and a depend on the past gradients, eta_t = k / (w + sum |g|^2)^(1/3) and a = c eta^2; here
    a is a constant, and the learning rate that of the optimizer that follows.
    """
    checks.real("a", a, "[0, 1]")

    def init(params: optax.Params) -> StormState:
        return StormState(jnp.zeros((), jnp.int32), zeros(params), zeros(params))

    def update(g: Any, state: StormState, params: Any = None, **extra: Any) -> tuple[Any, StormState]:
        grad_fn = need("storm", extra, "grad_fn")

        def corrected() -> Any:
            before = widen(as_arrays(grad_fn(state.previous)))
            return jax.tree.map(lambda g, p, d: g + (1 - scalar(a, g)) * (d - p), g, before, state.estimate)

        d = jax.lax.cond(state.count == 0, lambda: g, corrected)
        return d, StormState(increment(state.count), params, d)

    return transformation("storm", init, update, needs_params=True, complex_leaves=True)


register(
    storm,
    form="primitive",
    paper=PAPER,
    needs=("grad_fn",),
    words=2,
    notes="a link ahead of an optimizer; a second gradient per step, of the same batch",
)
