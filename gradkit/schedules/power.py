"""The power schedule: a learning rate that depends on the number of tokens, for any batch size and length of run."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.phases import Phase, Schedule, real_array, unending
from gradkit.types import Scalar

PAPER = Paper(
    "Power Scheduler: A Batch Size and Token Number Agnostic Learning Rate Scheduler", "Shen et al.", 2024, "2408.13359"
)
# The fraction of the way from 1 to the last factor, as a function of the fraction of the steps.
FALLS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "exponential": lambda p: -jnp.expm1(-p) / -math.expm1(-1.0),
    "linear": lambda p: p,
    "cosine": lambda p: jnp.square(jnp.sin(p * (math.pi / 2))),
}


def power_schedule(
    peak_value: Scalar = 0.02,
    *,
    amplitude: Scalar = 4.6,
    exponent: Scalar = -0.51,
    batch_size: Scalar = 1,
    tokens_per_step: Scalar = 1,
    warmup_steps: int = 0,
    decay_start: int | None = None,
    decay_steps: int = 0,
    decay_ratio: Scalar = 0.1,
    decay_shape: str = "exponential",
) -> Schedule:
    """A learning rate that falls as a power of the tokens seen, below a cap.

    Equations, with n = step * tokens_per_step tokens seen, W = warmup_steps, S = decay_start, N = decay_steps,
    r = decay_ratio and x = step - S:

        eta = min(peak, batch_size amplitude n^exponent)
        value = (eta at step W) step / W                    step < W
              = eta                                         step < S
              = eta f(x)                                    step < S + N
              = the value at step S + N                     afterwards

    with the factor of the decay, which falls from 1 to r:

        f(x) = A e^(-x / N) + B                             "exponential",  A = (1 - r) e / (e - 1),  B = 1 - A
             = 1 + (r - 1) x / N                            "linear"
             = r + (1 - r) (1 + cos(pi x / N)) / 2          "cosine"

    The warm-up ends at the capped power law at step W, which need not be the peak.

    Args:
      peak_value: the cap, >= 0. Default 0.02 (paper, from a second source). May be traced.
      amplitude: a of the power law, >= 0. Default 4.6 (paper, from a second source). May be traced.
      exponent: b of the power law, <= 0. Default -0.51 (paper, from a second source). May be traced.
      batch_size: sequences per step, > 0. Default 1: `amplitude` is then the product, as in the official code.
      tokens_per_step: tokens per step, > 0. Default 1.
      warmup_steps: W >= 0. Default 0, with which step 0, before any token, has the peak.
      decay_start: S >= W, the step at which the last decay begins. Default None: no decay.
      decay_steps: N >= 1 with `decay_start`, else 0, the default.
      decay_ratio: r, the factor that the decay ends with, in [0, 1]. Default 0.1.
      decay_shape: "exponential" (default), "linear" or "cosine".

    Returns:
      A schedule step -> value, without an end where there is no decay. No state, no collective.

    Raises:
      ValueError: a hyperparameter outside its range; `decay_start` without `decay_steps`, or the other way.

    Example:
      >>> schedule = power_schedule(1.0, amplitude=2.0, exponent=-0.5, warmup_steps=4)
      >>> [round(float(schedule(step)), 3) for step in (0, 2, 4, 16, 64)]
      [0.0, 0.5, 1.0, 0.5, 0.25]

    Reference: Shen et al. Power Scheduler: A Batch Size and Token Number Agnostic Learning Rate Scheduler. 2024, arXiv
    2408.13359. Departure from the official code: its exponential decay continues after N steps, to B, which is negative
    for r below 1 / e; here it stays at r.
    """
    for name, value, interval in (
        ("peak_value", peak_value, "[0, inf)"),
        ("amplitude", amplitude, "[0, inf)"),
        ("exponent", exponent, "(-inf, 0]"),
        ("batch_size", batch_size, "(0, inf)"),
        ("tokens_per_step", tokens_per_step, "(0, inf)"),
        ("decay_ratio", decay_ratio, "[0, 1]"),
    ):
        checks.real(name, value, interval)
    checks.choice("decay_shape", decay_shape, list(FALLS))
    warmup_steps = checks.integer("warmup_steps", warmup_steps)
    decay_steps = checks.integer("decay_steps", decay_steps)
    if decay_start is None and decay_steps:
        raise ValueError(f"power_schedule: decay_steps must be 0 without decay_start, got {decay_steps}; give both")

    def law(step: Any) -> jax.Array:
        peak, n = real_array(peak_value), real_array(jnp.maximum(step, 1)) * real_array(tokens_per_step)
        power = real_array(batch_size) * real_array(amplitude) * n ** real_array(exponent)
        return jnp.where(jnp.asarray(step) < 1, peak, jnp.minimum(peak, power))

    def risen(step: jax.Array) -> jax.Array:
        if warmup_steps == 0:
            return law(step)
        share = real_array(jnp.clip(step, 0, warmup_steps)) / warmup_steps
        return jnp.where(step < warmup_steps, law(warmup_steps) * share, law(step))

    if decay_start is None:
        return unending(risen)
    start = checks.integer("decay_start", decay_start, warmup_steps)
    decay_steps = checks.integer("decay_steps", decay_steps, 1)

    def at(since: jax.Array, before: Any = None) -> jax.Array:
        del before
        step = jnp.clip(since, 0, start + decay_steps)
        p = real_array(jnp.maximum(step - start, 0)) / decay_steps
        return risen(step) * (1 + (real_array(decay_ratio) - 1) * FALLS[decay_shape](p))

    end = start + decay_steps
    return Schedule((Phase(end, at, lambda _: at(jnp.asarray(end, int))),))


register(
    power_schedule,
    form="schedule",
    paper=PAPER,
    golden=("step_size/power_schedule",),
    example={"peak_value": 0.1, "amplitude": 0.2, "warmup_steps": 4, "decay_start": 12, "decay_steps": 6},
    opt_outs={"bad input": "-1 is an exponent; tests/papers has what is refused"},
)
