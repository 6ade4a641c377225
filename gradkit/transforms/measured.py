"""A step size that depends on measurements of the step: norms, inner products, the loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.anchors import scalar_dtype
from gradkit.engine.core import cast, divide, need, transformation
from gradkit.engine.norms import global_square


class Measure(NamedTuple):
    """A measurement, as a pair of functions like those of an optax transformation.

    Attributes:
      init: parameters -> the first state; gets `jax.ShapeDtypeStruct`s too.
      update: (state, updates, parameters, **extra) -> (scale, state). The scale is a number, or a tree like the updates
        of arrays that broadcast against its leaves.
    """

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]


def loss_of(method: str, extra: dict[str, Any]) -> jax.Array:
    """The extra argument `value`, which must be one number.

    Raises:
      ValueError: it is missing, or not a scalar.
    """
    value = jnp.asarray(need(method, extra, "value"))
    if value.ndim:
        raise ValueError(
            f"{method}: value must be a scalar, the mean loss of this minibatch, got an array of shape {value.shape}; "
            "write value=jnp.mean(value)"
        )
    return value


def scaled_by(
    method: str, measure: Measure, *, skip_nonfinite: bool = False, needs_params: bool = False
) -> optax.GradientTransformationExtraArgs:
    """`scale_by_measured` under the name of a method."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        scale, new = measure.update(state, updates, params, **extra)
        if jax.tree.structure(scale) == jax.tree.structure(updates) and not isinstance(updates, jax.Array):
            scaled = jax.tree.map(lambda u, s: u * cast(s, u.dtype), updates, scale)
        else:
            scaled = jax.tree.map(lambda u: u * cast(jnp.asarray(scale), u.dtype), updates)
        if not skip_nonfinite:
            return scaled, new
        # Arrays that the measure returns unchanged, such as the initial parameters, need no check.
        same = {id(x) for x in jax.tree.leaves(state)}
        numbers = [
            x for x in jax.tree.leaves((scale, new)) if id(x) not in same and jnp.issubdtype(x.dtype, jnp.floating)
        ]
        # x * 0 is 0 only for a finite x.
        fine = jnp.isfinite(sum((jnp.sum(x * 0).astype(jnp.float32) for x in numbers), jnp.zeros((), jnp.float32)))
        kept = jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, state)
        return jax.tree.map(lambda u: jnp.where(fine, u, jnp.zeros_like(u)), scaled), kept

    return transformation(method, measure.init, update, needs_params=needs_params)


def scale_by_measured(measure: Measure, *, skip_nonfinite: bool = False) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by a number that is computed from norms, inner products or the loss of this step.

    Equations:

        scale_t, m_t = measure(m_{t-1}, u_t, x_t, value_t, ...)
        u_t <- scale_t u_t

    The scale is one number, or one per tensor of every leaf. It is positive: the sign is given once, by the learning
    rate. Put it after coupled weight decay, which a norm should contain, and after a preconditioner if the norm is
    meant in its space; before `gk.scale_by_learning_rate`. A clip before it clips what is measured. An average of the
    iterates must be outermost.

    Args:
      measure: a `Measure`. It gets as `value` the loss of the same batch at the point of the gradient, before the
        update; on a mesh the loss of the global batch, as under plain jit. `gk.accumulate_value` provides it for
        microbatches.
      skip_nonfinite: whether a step whose scale or state is not finite is skipped: zero updates, and the state does not
        change. Default False: NaN is visible.

    Returns:
      A transformation. State: that of the measure. Collectives: those of the measure.

    Raises:
      ValueError: `measure` is not a `Measure`.

    Example:
      >>> def polyak(state, updates, params, value, **extra):
      ...     return value / jnp.square(updates), state
      >>> tx = scale_by_measured(Measure(lambda params: (), polyak))
      >>> x = jnp.array(3.0)  # the loss is x^2
      >>> tx.update(2 * x, tx.init(x), x, value=x**2)[0].item()
      1.5

    Reference: This library; the common form of DoG, MoMo and Polyak's step size. 2026.
    """
    if not isinstance(measure, Measure):
        raise ValueError(
            f"measure must be a gk.Measure of two functions, got {measure!r}; write gk.Measure(init, update) with "
            "init(params) -> state and update(state, updates, params, **extra) -> (scale, state)"
        )
    checks.switch(skip_nonfinite=skip_nonfinite)
    return scaled_by("scale_by_measured", measure, skip_nonfinite=skip_nonfinite)


def _polyak() -> Measure:
    """Polyak's step size with the least loss 0, as the example of the card."""

    def update(state: jax.Array, updates: Any, params: Any, **extra: Any) -> tuple[jax.Array, jax.Array]:
        del params
        scale = divide(
            loss_of("scale_by_measured", extra).astype(state.dtype), global_square(updates).astype(state.dtype)
        )
        return scale, scale

    return Measure(lambda params: jnp.zeros((), scalar_dtype(params)), update)


register(
    scale_by_measured,
    form="primitive",
    paper=Paper("A step size that is measured", "", 2026),
    needs=("value",),
    collectives="norms",
    example={"measure": _polyak()},
)
