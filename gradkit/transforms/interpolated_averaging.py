"""Gradients at an interpolation of the iterate of an optimizer and the average of its iterates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.anchors import copied, scalar_dtype
from gradkit.engine.core import cast, increment, inside, scalar, transformation, wide_dtype
from gradkit.engine.mismatches import check_fit
from gradkit.leaves import Method
from gradkit.transforms.running_average import include
from gradkit.types import DTypeLike, Scalar

PAPER = Paper("The Road Less Scheduled", "Defazio et al.", 2024, "2405.15682")


class InterpolatedAveragingState(NamedTuple):
    """Number of updates; b1; the state of the weights c_t; z, or x where b1 is 0; and the state of the optimizer."""

    count: jax.Array
    average_weight: jax.Array
    shares: Any
    z: Any
    x: Any
    inner: Any

    exact_fields = ("z", "x")  # parameters, which gk.precision(state=...) must not round

    def eval_params(self, params: Any) -> Any:
        """The average x, in the parameters' dtypes."""
        if self.z is None:
            return jax.tree.map(lambda y, x: x.astype(y.dtype), params, self.x)

        def average(y: jax.Array, z: jax.Array) -> jax.Array:
            wide = max(wide_dtype(y.dtype), wide_dtype(z.dtype), key=lambda dtype: dtype.itemsize)
            ahead = (1 / self.average_weight - 1).astype(wide)
            # This form gives exactly y where z equals y.
            return (y.astype(wide) + ahead * (y.astype(wide) - z.astype(wide))).astype(y.dtype)

        return jax.tree.map(average, params, self.z)


def interpolate(
    method: str,
    inner: optax.GradientTransformation,
    share: Callable[[Any, jax.Array], tuple[jax.Array, Any]],
    first: Callable[[Any], Any],
    b1: Scalar,
    *,
    sees_iterate: bool = False,
    state_dtype: DTypeLike | None = None,
    described: Method | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The three sequences of `interpolated_averaging`, for any weights c_t.

    Args:
      method: the public name, for messages.
      inner: makes u_t.
      share: (state of the weights, number of earlier steps) -> (c_t, state after this step).
      first: dtype of scalars -> initial state of the weights.
      b1: weight of the average, in [0, 1].
      sees_iterate: whether the parameters that the inner optimizer gets, for its decay, are z rather than y.
      state_dtype: dtype in which z is kept.
      described: the `Method` that `describe` prints.
    """
    checks.real("b1", b1, "[0, 1]")
    checks.floating_dtype(state_dtype=state_dtype)
    below, at_iterate = inside(inner), checks.absent(b1)

    def init(params: optax.Params) -> InterpolatedAveragingState:
        dtype, kept = scalar_dtype(params), copied(params, state_dtype)
        return InterpolatedAveragingState(
            jnp.zeros((), jnp.int32),
            jnp.array(b1, dtype, copy=True),
            first(dtype),
            None if at_iterate else kept,
            kept if at_iterate else None,
            below.init(params),
        )

    def update(updates: Any, state: InterpolatedAveragingState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        kept = state.x if at_iterate else state.z
        check_fit(method, params, kept)
        seen = params
        if sees_iterate and not at_iterate:
            seen = jax.tree.map(lambda y, z: cast(z, y.dtype), params, kept)
        steps, own = below.update(updates, state.inner, seen, **extra)
        c, shares = share(state.shares, state.count)
        now = jnp.array(b1).astype(state.average_weight.dtype)
        count = increment(state.count)

        def followed(x: jax.Array, y: jax.Array, u: jax.Array) -> jax.Array:
            return cast(include(cast(x, y.dtype), y + u, cast(c, y.dtype)), x.dtype)

        if at_iterate:
            x = jax.tree.map(followed, kept, params, steps)
            return steps, InterpolatedAveragingState(count, now, shares, None, x, own)

        z = jax.tree.map(lambda z, u: cast(cast(z, u.dtype) + u, z.dtype), kept, steps)

        def moved(y: jax.Array, z: jax.Array, new: jax.Array, u: jax.Array) -> jax.Array:
            b, s = scalar(b1, y), cast(c, y.dtype)
            z = cast(z, y.dtype)
            # Where z is kept in a narrow dtype, u is the rounded step that z has made.
            u = u if new.dtype == y.dtype else cast(new, y.dtype) - z
            return s * (z - y) + (1 - b * (1 - s)) * u

        y = jax.tree.map(moved, params, kept, z, steps)
        return y, InterpolatedAveragingState(count, now, shares, z, None, own)

    return transformation(
        method,
        init,
        update,
        needs_params=True,
        described=described,
        complete=described is not None,
        as_params=described is not None,
        complex_leaves=True,
    )


def interpolated_averaging(
    inner: optax.GradientTransformation, weight: Callable[[Any], Any], *, b1: Scalar = 0.9
) -> optax.GradientTransformationExtraArgs:
    """Any optimizer without momentum, with gradients between its iterate and the average of its iterates.

    Equations, with c_t = weight(t), t = 1, 2, ..., and x_1 = y_1 = z_1 the parameters at `init`:

        z_{t+1} = z_t + u_t                              u_t the optimizer's update for the gradient at y_t
        x_{t+1} = (1 - c_t) x_t + c_t z_{t+1}            the average: the evaluation parameters
        y_{t+1} = b1 x_{t+1} + (1 - b1) z_{t+1}          the parameters, where the next gradient is taken

    The state has z, and x = y + (1 / b1 - 1) (y - z). Since b1 x_t = y_t - (1 - b1) z_t, y is updated without a
    division:

        y_{t+1} = y_t + c_t (z_t - y_t) + (1 - b1 (1 - c_t)) u_t

    With b1 = 0 the parameters are z, and the state has x instead. It must be the outermost transformation: a clip or a
    decay after it would break the sequences. Read the average with `gk.eval_params(state, params)`; every loop does.

    Args:
      inner: any optimizer; its updates include the learning rate.
      weight: t = 1, 2, ... (as a floating point number) -> the weight c_t of the newest iterate, in [0, 1].
      b1: weight of the average in the point of the gradient, in [0, 1]. Default 0.9. With the number 0 gradients are
        taken at the iterate: `gk.running_average`. With 1 they are taken at the average: primal averaging.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter, in float32 or wider, two numbers, and the inner
      state. Elementwise: no collective.

    Raises:
      ValueError: an argument outside its range; `params` missing.

    Example:
      >>> from gradkit.transforms import eval_params
      >>> tx, y = interpolated_averaging(optax.sgd(1.0), lambda t: 1 / (t + 1), b1=0.5), jnp.array(0.0)
      >>> u, state = tx.update(jnp.array(1.0), tx.init(y), y)
      >>> (y + u).item(), eval_params(state, y + u).item()  # z is -1, evaluated at the mean of 0 and -1
      (-0.75, -0.5)

    Reference: Defazio et al. The Road Less Scheduled. 2024, arXiv 2405.15682.
    """
    checks.function("weight", weight)

    def share(_: Any, count: jax.Array) -> tuple[jax.Array, Any]:
        t = increment(count).astype(jnp.result_type(float))
        return jnp.asarray(checks.scalar("the value of weight", weight(t))), ()

    return interpolate("interpolated_averaging", inner, share, lambda dtype: (), b1)


register(
    interpolated_averaging,
    form="wrapper",
    paper=PAPER,
    words=1,
    example={"weight": lambda t: 1 / (t + 1)},
    notes="read with gk.eval_params",
)
