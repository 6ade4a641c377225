"""SARAH: a full gradient, updated recursively by differences of gradients of one batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit.catalogue import Paper, register
from gradkit.engine.core import as_arrays, increment, need, transformation, widen, zeros

PAPER = Paper(
    "SARAH: A Novel Method for Machine Learning Problems Using Stochastic Recursive Gradient",
    "Nguyen et al.",
    2017,
    "1703.00102",
)


class SarahState(NamedTuple):
    """Number of updates made; w_{t-1}, and v_{t-1}."""

    count: jax.Array
    previous: Any
    estimate: Any

    exact_fields = ("previous",)  # parameters, which gk.precision(state=...) must not round


def sarah_estimator() -> optax.GradientTransformationExtraArgs:
    """A link before any optimizer that reduces the noise of the batch in the gradient by recursion.

    Equations, with the gradient g_t of the batch of step t at both points:

        v_t = g_t(w_t) - g_t(w_{t-1}) + v_{t-1}

    Where `refresh` is true, and in the first step, v_t is the incoming gradient, which should then be that of all data.
    Unlike SVRG's, v_t is not unbiased, and its variance falls between refreshes.

    Returns:
      A transformation that needs `params`, and the extra arguments `grad_fn`, params -> gradient of this batch, which
      is called at the last step's parameters; and `refresh`, whether the incoming gradient is the full one. The paper's
      SARAH+ refreshes once |v_t|^2 is below an eighth of that of the last refresh. State: 2 words per parameter and a
      counter. Elementwise: no collective of its own.

    Raises:
      ValueError: at `update`, an extra argument missing.

    Example:
      >>> tx, w = sarah_estimator(), jnp.array(2.0)
      >>> state = tx.init(w)
      >>> v, state = tx.update(w, state, w, grad_fn=lambda w: w, refresh=True)
      >>> noisy = lambda w: w + 5.0  # the batch's own error is the same at both points
      >>> v, _ = tx.update(noisy(w - v / 2), state, w - v / 2, grad_fn=noisy, refresh=False)
      >>> float(v)
      1.0

    Reference: Nguyen et al. SARAH: A Novel Method for Machine Learning Problems Using Stochastic Recursive Gradient.
    2017, arXiv 1703.00102.
    """

    def init(params: optax.Params) -> SarahState:
        return SarahState(jnp.zeros((), jnp.int32), zeros(params), zeros(params))

    def update(g: Any, state: SarahState, params: Any = None, **extra: Any) -> tuple[Any, SarahState]:
        grad_fn, refresh = need("sarah_estimator", extra, "grad_fn"), need("sarah_estimator", extra, "refresh")
        fresh = (state.count == 0) | jnp.asarray(refresh).astype(bool)

        def recursive() -> Any:
            before = widen(as_arrays(grad_fn(state.previous)))
            return jax.tree.map(lambda g, p, v: g - p + v, g, before, state.estimate)

        v = jax.lax.cond(fresh, lambda: g, recursive)
        return v, SarahState(increment(state.count), params, v)

    return transformation("sarah_estimator", init, update, needs_params=True, complex_leaves=True)


register(
    sarah_estimator,
    form="primitive",
    paper=PAPER,
    needs=("grad_fn", "refresh"),
    words=2,
    notes="a link ahead of an optimizer; refresh says when the gradient that comes in is that of all data",
)
