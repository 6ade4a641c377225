"""The bound of convex theory on the suboptimality of the last iterate of a learning rate schedule."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.types import Scalar

PAPER = Paper(
    "The Surprising Agreement Between Convex Optimization Theory and Learning-Rate Scheduling for Large Model Training",
    "Schaipp et al.",
    2025,
    "2501.18965",
)
# The rounding error of sums of more float32 numbers than this exceeds the last two of their seven digits.
MOST_FLOAT32 = 100_000


class Terms(NamedTuple):
    """The three terms of the bound: of the distance, of the noise of the average, and of the last iterate."""

    distance: Any
    average: Any
    last: Any


class BaseRate(NamedTuple):
    """The base learning rate at which the bound of a schedule is smallest, and the bound there."""

    base_rate: Any
    bound: Any


def _inputs(method: str, learning_rates: Any, grad_norms: Any, distance: Any) -> tuple[Any, Any, Any, Any]:
    """The arithmetic (NumPy in float64, or JAX where a value is traced), rates, their squares times G^2, and D."""
    given = (learning_rates, grad_norms, distance)
    traced = any(isinstance(x, jax.core.Tracer) for x in given)
    xp: Any = jnp if traced else np
    dtype = jnp.result_type(float) if traced else np.float64
    rates, norms, D = (xp.asarray(x, dtype) for x in given)
    if rates.ndim != 1 or not rates.size:
        raise ValueError(
            f"{method}: learning_rates must be one rate per step, an array of shape (T,), got shape {rates.shape}; of "
            "a schedule, write schedule(np.arange(T))"
        )
    if norms.shape not in ((), rates.shape) or D.shape != ():
        raise ValueError(
            f"{method}: grad_norms must be one number or one per step, {rates.shape}, and distance one number, got "
            f"shapes {norms.shape} and {D.shape}"
        )
    if not traced and not ((rates >= 0).all() and np.isfinite(rates).all() and rates.any()):
        raise ValueError(f"{method}: learning_rates must be finite, >= 0 and not all 0, got {rates}")
    for name, value in (("grad_norms", norms), ("distance", D)):
        if not traced and not ((value >= 0).all() and np.isfinite(value).all()):
            raise ValueError(f"{method}: {name} must be finite and >= 0, got {value}")
    if traced and dtype == jnp.float32 and rates.size > MOST_FLOAT32:
        warnings.warn(
            f"{method} sums {rates.size} float32 numbers: call it outside of jit, where it computes in float64, or "
            "enable jax_enable_x64",
            stacklevel=3,
        )
    return xp, rates, xp.square(rates * norms), D


def _divide(xp: Any, x: Any, y: Any) -> Any:
    """x / y; where y is 0, it is 0 where x is 0, and infinity elsewhere. The derivative is finite unless both are 0."""
    safe = xp.where(y == 0, 1, y)
    return xp.where(y == 0, xp.where(x == 0, 0, xp.inf), x / safe)


def _terms(xp: Any, rates: Any, squares: Any, D: Any, earlier: Any = None) -> Terms:
    """The three terms, from sums over the remaining steps: no subtraction, so no cancellation.

    `earlier` are the learning rates of the steps k < T; by default all but the last.
    """
    left, noise = (xp.cumsum(x[::-1])[::-1] for x in (rates, squares))
    earlier = rates if earlier is None else earlier
    steps = _divide(xp, earlier[:-1], left[1:]) * _divide(xp, noise[:-1], left[:-1])
    total = left[0]
    return Terms(_divide(xp, D * D, 2 * total), _divide(xp, noise[0], 2 * total), xp.sum(steps) / 2)


def convex_schedule_bound(
    learning_rates: Any, grad_norms: Any = 1.0, distance: Scalar = 1.0, *, terms: bool = False
) -> Any:
    """The bound on the suboptimality of the last iterate that convex theory gives for a learning rate schedule.

    Equations, for a convex loss, the subgradient method x_{t+1} = x_t - eta_t g_t, gradients of norms G_t, and a start
    at the distance D from a minimizer:

        E[f(x_T)] - f* <= Omega_T
        Omega_T = D^2 / (2 sum_{t<=T} eta_t)  +  sum_{t<=T} eta_t^2 G_t^2 / (2 sum_{t<=T} eta_t)
                  + 1/2 sum_{k<T} [eta_k / sum_{t=k+1}^T eta_t] [sum_{t=k}^T eta_t^2 G_t^2 / sum_{t=k}^T eta_t]

    Args:
      learning_rates: eta_1, ..., eta_T >= 0, shape (T,). Leave out the last 0 of a schedule that goes to 0: with
        eta_T = 0 the bound is infinite.
      grad_norms: G_t >= 0, one number or one per step. Default 1.
      distance: D >= 0, from the start to a minimizer. Default 1.
      terms: whether the three terms are returned instead of their sum. Default False.

    Returns:
      Omega_T, or `Terms` (distance, average, last) that add up to it. Computed by NumPy in float64; traced values by
      JAX in float32 (with a warning above 100000 steps) or float64, differentiable in all three.

    Raises:
      ValueError: shapes that do not fit; values that are negative, not finite, or rates that are all 0.

    Example:
      >>> T = np.arange(400)
      >>> for rates in (np.ones(400), 1 - T / 400):  # a constant rate, and a linear decay, each at its best base rate
      ...     best = optimal_base_rate(rates)
      ...     print(round(float(convex_schedule_bound(best.base_rate * rates)), 5))
      0.13754
      0.10063

    Reference: Schaipp et al. The Surprising Agreement Between Convex Optimization Theory and Learning-Rate Scheduling
    for Large Model Training. 2025, arXiv 2501.18965. The official code sums up to each step, subtracts, and clips
    rounding errors; here sums run over the remaining steps.
    """
    checks.arrays(grad_norms=grad_norms, distance=distance)
    checks.switch(terms=terms)
    xp, rates, squares, D = _inputs("convex_schedule_bound", learning_rates, grad_norms, distance)
    found = _terms(xp, rates, squares, D)
    return found if terms else found.distance + found.average + found.last


def bound_curve(learning_rates: Any, grad_norms: Any = 1.0, distance: Scalar = 1.0) -> Any:
    """The bound at every step of a schedule: the loss curve that convex theory predicts.

    Equations: Omega_T of `convex_schedule_bound`, for every number of steps t = 1, ..., T:

        result = (Omega_1, ..., Omega_T)

    It takes T^2 / 2 additions.

    Args:
      learning_rates: eta_1, ..., eta_T >= 0, shape (T,).
      grad_norms: G_t >= 0, one number or one per step. Default 1.
      distance: D >= 0, from the start to a minimizer. Default 1.

    Returns:
      Shape (T,): what `convex_schedule_bound` gives for the first t steps. Infinite where the learning rate of step t
      is 0.

    Raises:
      ValueError: as `convex_schedule_bound`.

    Example:
      >>> print(bound_curve([1.0, 1.0, 1.0]))  # 1/(2t) + (1 + H_{t-1}) / 2
      [1.         1.25       1.41666667]

    Reference: Schaipp et al. The Surprising Agreement Between Convex Optimization Theory and Learning-Rate Scheduling
    for Large Model Training. 2025, arXiv 2501.18965.
    """
    checks.arrays(learning_rates=learning_rates, grad_norms=grad_norms, distance=distance)
    xp, rates, squares, D = _inputs("bound_curve", learning_rates, grad_norms, distance)
    if xp is np:
        return np.array([sum(_terms(np, rates[: t + 1], squares[: t + 1], D)) for t in range(len(rates))])
    steps = jnp.arange(len(rates))

    def bound(t: jax.Array) -> jax.Array:
        rates_t, squares_t = (jnp.where(steps <= t, x, 0) for x in (rates, squares))
        found = _terms(jnp, rates_t, squares_t, D, jnp.where(steps < t, rates, 0))
        return found.distance + found.average + found.last

    return jax.lax.map(bound, steps)


def optimal_base_rate(learning_rates: Any, grad_norms: Any = 1.0, distance: Scalar = 1.0) -> BaseRate:
    """The number that a schedule must be multiplied by for the smallest bound, and the bound there.

    Equations, with the three terms a, b, c of Omega_T of `convex_schedule_bound`: a is proportional to 1 / gamma, where
    gamma multiplies the schedule, b and c to gamma:

        gamma* = sqrt(a / (b + c)),    Omega* = 2 sqrt(a (b + c))

    Args:
      learning_rates: eta_1, ..., eta_T >= 0, shape (T,): the schedule, at the base learning rate 1 or any other.
      grad_norms: G_t >= 0, one number or one per step. Default 1.
      distance: D >= 0, from the start to a minimizer. Default 1.

    Returns:
      `BaseRate` (base_rate, bound).

    Raises:
      ValueError: as `convex_schedule_bound`.

    Example:
      >>> found = optimal_base_rate(0.5 * (1 + np.cos(np.pi * np.arange(400) / 400)))
      >>> [round(float(x), 5) for x in found]
      [0.04824, 0.10339]

    Reference: Schaipp et al. The Surprising Agreement Between Convex Optimization Theory and Learning-Rate Scheduling
    for Large Model Training. 2025, arXiv 2501.18965.
    """
    checks.arrays(grad_norms=grad_norms, distance=distance)
    xp, rates, squares, D = _inputs("optimal_base_rate", learning_rates, grad_norms, distance)
    found = _terms(xp, rates, squares, D)
    growing = found.average + found.last
    return BaseRate(xp.sqrt(_divide(xp, found.distance, growing)), 2 * xp.sqrt(found.distance * growing))


for _function in (convex_schedule_bound, bound_curve, optimal_base_rate):
    register(
        _function,
        form="function",
        paper=PAPER,
        golden=("step_size/convex_schedule_bound",),
        example={"learning_rates": (1.0, 0.5, 0.25)},
    )
