"""The correction of MARS: a gradient plus a multiple of its change since the last step, clipped."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment, scalar, transformation, widen, zeros
from gradkit.engine.norms import packed_norms
from gradkit.leaves import Layout, names, resolve_layout
from gradkit.types import Scalar

PAPER = Paper(
    "MARS: Unleashing the Power of Variance Reduction for Training Large Models", "Yuan et al.", 2024, "2411.10438"
)


class MarsCorrectionState(NamedTuple):
    """Number of updates made, and the previous gradient."""

    count: jax.Array
    previous: Any


class ExactMarsCorrectionState(NamedTuple):
    """Number of updates made, and the previous parameters, at which the gradient of this step's loss is taken."""

    count: jax.Array
    previous: Any

    exact_fields = ("previous",)  # parameters, which gk.precision(state=...) must not round


AnyState = MarsCorrectionState | ExactMarsCorrectionState


def mars_correction(
    *,
    gamma: Scalar = 0.025,
    b1: Scalar = 0.95,
    max_norm: Scalar = 1.0,
    exact: bool = False,
    first_step: str = "zero",
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces the gradient by MARS's corrected and clipped one; a preconditioner may follow.

    Equations, with the gradient g_t at x_{t-1}, and the previous gradient p_t, which is g_{t-1}, or with `exact` the
    gradient of this step's loss at x_{t-2}; p_1 = 0:

        c_t = g_t + gamma b1 / (1 - b1) (g_t - p_t)
        c_t <- c_t min(1, max_norm / |c_t|)                 per tensor

    The corrected gradient is clipped, per tensor, not the correction.

    Args:
      gamma: factor of the correction, >= 0. Default 0.025 (official code).
      b1: decay of the momentum that follows, in [0, 1). Default 0.95 (official code).
      max_norm: largest norm of a tensor's corrected gradient, > 0; infinity never clips. Default 1 (official code).
      exact: whether the subtracted gradient is that of this step's loss at the previous parameters, which costs a
        second gradient, and not last step's. Default False (paper, for language models).
      first_step: "zero" starts from a previous gradient of zero, so that the first corrected one is longer (official
        code); "skip" does not correct the first one (paper). Default "zero". Where the clip acts both are the same.
      layout: which axes are stacks: every layer of a scan is clipped by itself.

    Returns:
      A transformation. With `exact` it needs params and either `previous_grads`, the gradient of this step's loss at
      the previous parameters, or `grad_fn`, params -> gradient, which is called at the previous parameters in
      float32 or wider. State: 1 word per parameter and a counter. Collectives: one scalar per tensor.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, neither extra argument with `exact`.

    Example:
      >>> tx = mars_correction(gamma=0.1, b1=0.5, first_step="skip")
      >>> g = jnp.array([0.3, 0.4])
      >>> first, state = tx.update(g, tx.init(g), g)
      >>> second, _ = tx.update(2 * g, state, g)  # 2 g + 0.1 (2 g - g) has norm 1.05
      >>> [[round(float(x), 4) for x in c] for c in (first, second)]
      [[0.3, 0.4], [0.6, 0.8]]

    Reference: Yuan et al. MARS: Unleashing the Power of Variance Reduction for Training Large Models. 2024, arXiv
    2411.10438.
    """
    checks.layout(layout)
    checks.switch(exact=exact)
    checks.real("gamma", gamma, "[0, inf)")
    checks.real("b1", b1, "[0, 1)")
    checks.real("max_norm", max_norm, "(0, inf]")
    checks.choice("first_step", first_step, ("zero", "skip"))

    kept = ExactMarsCorrectionState if exact else MarsCorrectionState

    def previous_gradient(updates: Any, state: AnyState, params: Any, extra: Any) -> Any:
        if not exact:
            return state.previous
        given, grad_fn = extra.get("previous_grads"), extra.get("grad_fn")
        if given is None and grad_fn is None:
            raise ValueError(
                "mars_correction with exact=True needs the extra argument previous_grads or grad_fn: "
                "call update(grads, state, params, grad_fn=...)"
            )
        if given is None:
            # The first step has no previous parameters: the gradient is computed at the current ones and not used.
            given = grad_fn(jax.tree.map(lambda p, x: jnp.where(state.count == 0, x, p), state.previous, params))
        return widen(given)

    def update(updates: Any, state: AnyState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        before = previous_gradient(updates, state, params, extra)

        def corrected(g: jax.Array, p: jax.Array) -> jax.Array:
            b = scalar(b1, g)
            p = jnp.where(state.count == 0, g if first_step == "skip" else jnp.zeros_like(g), p)
            return g + (scalar(gamma, g) * b / (1 - b)) * (g - p)

        c = jax.tree.map(corrected, updates, before)
        leaves, structure = jax.tree.flatten(c)
        norms = packed_norms(names(c), "tensor", layout, leaves, large=(0,))

        def factor(norm: jax.Array) -> jax.Array:
            limit = scalar(max_norm, norm)
            long = norm > limit
            return jnp.where(long, limit / jnp.where(long, norm, jnp.ones_like(norm)), jnp.ones_like(norm))

        c = structure.unflatten([c * f.astype(c.dtype) for c, f in zip(leaves, norms.each(factor), strict=True)])
        return c, kept(increment(state.count), params if exact else updates)

    def init(params: optax.Params) -> AnyState:
        resolve_layout(layout, params, method="mars_correction", matters=True)
        return kept(jnp.zeros((), jnp.int32), zeros(params))

    return transformation("mars_correction", init, update, needs_params=exact, complex_leaves=True)


register(mars_correction, form="primitive", paper=PAPER, words=1, collectives="norms", golden=("adaptive/mars_adamw",))
