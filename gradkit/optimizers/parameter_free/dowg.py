"""DoWG: the step size is the squared distance from x_0 over the root of the weighted sum of squared gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.anchors import (
    DistanceFromStart,
    distance_from_start,
    offsets,
    root_of,
    scalar_dtype,
    squared_sums,
)
from gradkit.engine.core import divide, optimizer, scalar
from gradkit.engine.mismatches import check_fit
from gradkit.leaves import Method
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate
from gradkit.transforms.measured import Measure, scaled_by
from gradkit.types import Mask, Scalar, ScalarOrSchedule

NAME = "scale_by_dowg"
PAPER = Paper(
    "DoWG Unleashed: An Efficient Universal Parameter-Free Gradient Descent Method",
    "Khaled, Mishchenko, Jin",
    2023,
    "2305.16284",
)


class DowgState(NamedTuple):
    """x_0 and the largest squared distance from it; the weighted sum of squares; the step size as a metric."""

    distance: DistanceFromStart
    total: jax.Array
    metrics: dict[str, jax.Array]


def scale_by_dowg(*, eps: Scalar = 1e-4) -> optax.GradientTransformationExtraArgs:
    """Multiplies the gradient by the squared distance from x_0 over the root of a weighted sum of squares.

    Equations: R_t / (sqrt(v_t) + eps) g_t of `dowg`. A link before it, such as a clip or a coupled decay, changes what
    it measures.

    Args:
      eps: the first squared distance, and the number added to the root, > 0. Default 1e-4 (official code).

    Returns:
      A transformation that needs `params`; `init` must get the initial parameters, of which it keeps a copy. State: 1
      word per parameter and numbers. Metric: `dowg_step_size`. Collectives: two scalars in one all-reduce.

    Raises:
      ValueError: eps outside its range; at `update`, `params` missing.

    Example:
      >>> tx = scale_by_dowg(eps=0.01)
      >>> g = jnp.array([3.0, 4.0])
      >>> print(tx.update(g, tx.init(g), g)[0].round(4))  # 0.01 g / (0.1 |g| + 0.01)
      [0.0588 0.0784]

    Reference: Khaled, Mishchenko, Jin. DoWG Unleashed: An Efficient Universal Parameter-Free Gradient Descent Method.
    2023, arXiv 2305.16284; official code, which has the same eps in both places, where the paper has none in the root.
    """
    checks.real("eps", eps, "(0, inf)")

    def init(params: Any) -> DowgState:
        dtype = scalar_dtype(params)
        anchor = distance_from_start(NAME, params)
        anchor = anchor._replace(farthest=jnp.array(eps, dtype, copy=True))
        return DowgState(anchor, jnp.zeros((), dtype), {"dowg_step_size": jnp.zeros((), dtype)})

    def update(state: DowgState, g: Any, params: Any, **extra: Any) -> tuple[Any, DowgState]:
        del extra
        check_fit(NAME, params, state.distance.start)
        moved, square = (x.astype(state.total.dtype) for x in squared_sums(g, offsets(state.distance, params), g))
        farthest = jnp.maximum(state.distance.farthest, moved)
        total = state.total + farthest * square
        size = divide(farthest, root_of(total) + scalar(eps, total))
        # A copy, because a donated state must not contain an array twice.
        metrics = {"dowg_step_size": jnp.array(size, copy=True)}
        return size, DowgState(DistanceFromStart(state.distance.start, farthest), total, metrics)

    return scaled_by(NAME, Measure(init, update), needs_params=True)


def dowg(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    eps: Scalar = 1e-4,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD with the step size of distance over weighted gradients (DoWG): no learning rate is tuned.

    Equations, with norms over all leaves:

        R_t = max(R_{t-1}, |x_t - x_0|^2),   R_0 = eps           the largest squared distance so far
        v_t = v_{t-1} + R_t |g_t|^2,         v_0 = 0
        x_{t+1} = x_t - learning_rate R_t / (sqrt(v_t) + eps) g_t

    v_t is at most R_t times the sum of squares, so a step is no shorter than one of DoG.

    Args:
      learning_rate: factor >= 0 of the step size, or a schedule. Default 1 (paper).
      eps: the first squared distance, and the number added to the root, > 0. Default 1e-4 (official code).
      weight_decay: coupled: part of the gradient and of its norm, >= 0. Default 0.
      weight_decay_mask: which leaves decay. Default all.

    Returns:
      A transformation that needs `params`; `init` must get the initial parameters, of which it keeps a copy. State: 1
      word per parameter and numbers. Metric: `dowg_step_size`. Collectives: two scalars.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `params` missing.

    Example:
      >>> tx = dowg(eps=0.01)
      >>> x = jnp.array([3.0, 4.0])
      >>> print(tx.update(1000 * x, tx.init(x), x)[0].round(4))  # of length sqrt(eps), nearly
      [-0.06 -0.08]

    Reference: Khaled, Mishchenko, Jin. DoWG Unleashed: An Efficient Universal Parameter-Free Gradient Descent Method.
    2023, arXiv 2305.16284. `optax.contrib.dowg` keeps the caller's array as x_0, and its sums in the lowest dtype of
    the parameters.
    """
    return optimizer(
        Method("dowg", learning_rate, weight_decay, weight_decay_mask),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_dowg(eps=eps),
        scale_by_learning_rate(learning_rate),
    )


COMMON: dict[str, Any] = {"paper": PAPER, "words": 1, "collectives": "norms", "golden": ("modern/dowg",)}
register(scale_by_dowg, form="primitive", **COMMON)
register(dowg, form="optimizer", **COMMON, race=Race(None, schedule=None))
