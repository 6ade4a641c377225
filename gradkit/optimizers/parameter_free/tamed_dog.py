"""Tamed DoG: DoG with a larger denominator, for which stability is proven whatever the noise."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.anchors import (
    DistanceFromStart,
    check_init_step,
    distance_from_start,
    first_distance,
    offsets,
    over_root_of,
    root_of,
    scalar_dtype,
    squared_sums,
)
from gradkit.engine.core import divide, increment, need, optimizer
from gradkit.engine.mismatches import check_fit
from gradkit.leaves import Method
from gradkit.transforms import scale_by_learning_rate
from gradkit.transforms.measured import Measure, scaled_by
from gradkit.types import Scalar, ScalarOrSchedule

NAME = "tamed_dog"


class TamedDogState(NamedTuple):
    """Number of updates; x_0 and the largest distance r; the sum of squares before this step; the largest bound and the
    first one."""

    count: jax.Array
    distance: DistanceFromStart
    total: jax.Array
    largest: jax.Array
    first_bound: jax.Array


def _tame(t: jax.Array, largest: jax.Array, first: jax.Array, total: jax.Array, delta: Any) -> jax.Array:
    """The denominator's square G'_t of `tamed_dog`."""
    theta = jnp.log(60 * jnp.log(6 * t) / delta)
    slow = 1 + jnp.log(1 + t * jnp.square(divide(largest, first)))
    return 8.0**4 * jnp.square(theta * slow) * (total + 16 * jnp.square(largest))


def tamed_dog(
    learning_rate: ScalarOrSchedule = 1.0, *, init_step: tuple[str, Any] = ("heuristic", 1e-6), delta: Scalar = 0.1
) -> optax.GradientTransformationExtraArgs:
    """SGD with the step size of DoG made small enough to be proven stable (T-DoG).

    Equations of step t = 1, 2, ..., with a known bound l_t of the norm of gradients at x_t, L_t = max_{i <= t} l_i, and
    log_+ z = 1 + log z:

        theta_t = log(60 log(6 t) / delta)
        G'_t = 8^4 theta_t^2 log_+^2(1 + t L_t^2 / l_1^2) (|g_1|^2 + ... + |g_{t-1}|^2 + 16 L_t^2)
        eta_t = r_t / sqrt(G'_t),    r_t = max(r_{t-1}, |x_t - x_0|),  r_1 = r_eps
        x_{t+1} = x_t - learning_rate eta_t g_t

    Its steps are hundreds of times shorter than those of `gk.dog`: train with `gk.dog`.

    Args:
      learning_rate: factor >= 0 of the step size, or a schedule. Default 1 (paper).
      init_step: (kind, value > 0): "heuristic", r_eps = value (1 + |x_0|); "distance", r_eps = value. Default
        ("heuristic", 1e-6).
      delta: probability with which the guarantee may fail, in (0, 1). Default 0.1.

    Returns:
      A transformation that needs `params` and `grad_bound`; `init` must get the initial parameters, of which it keeps a
      copy. State: 1 word per parameter and numbers. Collectives: three scalars in one all-reduce.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `grad_bound` or `params` missing.

    Example:
      >>> tx = tamed_dog(init_step=("distance", 1.0))
      >>> x = jnp.array([0.6, 0.8])
      >>> u, _ = tx.update(x, tx.init(x), x, grad_bound=1.0)
      >>> print((u / x * 8**2 * 4 * jnp.log(600 * jnp.log(6.0)) * (1 + jnp.log(2.0))).round(4))
      [-1. -1.]

    Reference: Ivgi, Hinder, Carmon. DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule. 2023, arXiv
    2302.12022. The index of the logarithms is the number of the step.
    """
    init_step = check_init_step(NAME, init_step, ("heuristic", "distance"))
    checks.real("delta", delta, "(0, 1)")

    def init(params: Any) -> TamedDogState:
        numbers = [jnp.zeros((), scalar_dtype(params)) for _ in range(3)]
        return TamedDogState(jnp.zeros((), jnp.int32), distance_from_start(NAME, params), *numbers)

    def measure(state: TamedDogState, g: Any, params: Any, **extra: Any) -> tuple[jax.Array, TamedDogState]:
        check_fit(NAME, params, state.distance.start)
        dtype, count = state.total.dtype, increment(state.count)
        bound = jnp.asarray(checks.scalar(f"{NAME}: grad_bound", need(NAME, extra, "grad_bound"))).astype(dtype)
        sums = squared_sums(g, offsets(state.distance, params), g, params)
        moved, square, size = (x.astype(dtype) for x in sums)
        at_first = state.count == 0
        r = jnp.where(at_first, first_distance(init_step, size), jnp.maximum(state.distance.farthest, root_of(moved)))
        largest = jnp.maximum(state.largest, bound)
        least = jnp.where(at_first, bound, state.first_bound)
        chance = jnp.asarray(delta).astype(dtype)
        eta = over_root_of(r, _tame(count.astype(dtype), largest, least, state.total, chance), 0.0)
        distance = DistanceFromStart(state.distance.start, r)
        return eta, TamedDogState(count, distance, state.total + square, largest, least)

    return optimizer(
        Method(NAME, learning_rate),
        scaled_by(NAME, Measure(init, measure), needs_params=True),
        scale_by_learning_rate(learning_rate),
    )


register(
    tamed_dog,
    form="optimizer",
    paper=Paper(
        "DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule",
        "Ivgi, Hinder, Carmon",
        2023,
        "2302.12022",
    ),
    needs=("grad_bound",),
    words=1,
    collectives="norms",
    example={"init_step": ("distance", 1.0)},
    opt_outs={
        "race": "no loop knows a bound of the gradients",
        "descends": "its steps are hundreds of times too short for sixty of them",
    },
)
