"""The mean loss of the microbatches of a step, for the optimizer inside an accumulation of gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.anchors import scalar_dtype
from gradkit.engine.core import inside, transformation
from gradkit.transforms.measured import loss_of


class AccumulateValueState(NamedTuple):
    """Number of microbatches since the last step, the sum of their losses, and the inner state."""

    count: jax.Array
    total: jax.Array
    inner: Any


def _told(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optax.MultiSteps` as a transformation with extra arguments: it forwards them to its inner optimizer, but its
    `gradient_transformation()` is declared without them."""
    steps: Any = getattr(inner.update, "__self__", None)
    if not isinstance(steps, optax.MultiSteps):
        return inner
    update: Any = steps.update
    return optax.GradientTransformationExtraArgs(steps.init, update)


def accumulate_value(inner: optax.GradientTransformation, every_k: int) -> optax.GradientTransformationExtraArgs:
    """Passes the mean loss of k microbatches to an accumulation of their gradients.

    Equations, with i = 1, ..., k the number of the microbatch in its step:

        s_i = s_{i-1} + value_i,   s_0 = 0
        the inner transformation gets value = s_i / i

    At the k-th microbatch, where an accumulation makes its step, this is the mean of all k losses. `optax.MultiSteps`
    alone passes the loss of the last microbatch with the mean gradient of all, so a step size that depends on the loss
    is wrong. Write `gk.accumulate_value(optax.MultiSteps(gk.momo(1.0), k), k)`.

    Args:
      inner: accumulates gradients over the same number of microbatches, and makes a step from their mean:
        `optax.MultiSteps`, also its `gradient_transformation()`.
      every_k: k, microbatches per step, >= 1.

    Returns:
      A transformation that needs `value`, the mean loss of the microbatch; microbatches must have equal sizes. State: a
      counter, a number, and the inner state. Elementwise: no collective.

    Raises:
      ValueError: an argument outside its range; at `update`, `value` missing or not a scalar.

    Example:
      >>> import gradkit as gk
      >>> tx = accumulate_value(gk.momo(10.0, b1=0.0), 2)  # in place of an accumulation
      >>> x = jnp.array(0.0)
      >>> state = tx.init(x)
      >>> for value in (4.0, 8.0):
      ...     u, state = tx.update(jnp.array(2.0), state, x, value=value)
      >>> u.item()  # the mean loss 6 over the gradient 2
      -3.0

    Reference: This library. 2026.
    """
    every_k = checks.integer("every_k", every_k, 1)
    checks.transformation(inner=inner)
    below = inside(_told(inner))

    def init(params: optax.Params) -> AccumulateValueState:
        return AccumulateValueState(jnp.zeros((), jnp.int32), jnp.zeros((), scalar_dtype(params)), below.init(params))

    def update(updates: Any, state: AccumulateValueState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        value = loss_of("accumulate_value", extra)
        count = state.count + 1
        total = state.total + value.astype(state.total.dtype)
        mean = total / count.astype(total.dtype)
        updates, own = below.update(updates, state.inner, params, **{**extra, "value": mean})
        full = count == every_k
        return updates, AccumulateValueState(
            jnp.where(full, jnp.zeros_like(count), count), jnp.where(full, jnp.zeros_like(total), total), own
        )

    return transformation("accumulate_value", init, update, complex_leaves=True)


register(
    accumulate_value,
    form="wrapper",
    paper=Paper("The mean loss of microbatches", "", 2026),
    needs=("value",),
    example={"every_k": 2},
    opt_outs={"extra": "hands on the mean loss in place of the last one"},
)
