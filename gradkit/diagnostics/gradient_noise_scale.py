"""The gradient noise scale: the batch size at which noise and signal of the gradient are equal."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import bias_correction, widen
from gradkit.engine.norms import global_square
from gradkit.types import Scalar

PAPER = Paper("An Empirical Model of Large-Batch Training", "McCandlish et al.", 2018, "1812.06162")


class NoiseScaleState(NamedTuple):
    """Moving averages of G2 and S, without bias correction; the number of measurements."""

    grad_sq: jax.Array
    noise: jax.Array
    count: jax.Array


class NoiseScaleEstimate(NamedTuple):
    """The estimates so far.

    Attributes:
      noise_scale: noise / grad_sq, in examples; NaN until grad_sq is positive.
      grad_sq: estimate of |G|^2; may be negative while measurements are few.
      noise: estimate of tr(Sigma), the variance of the gradient of one example.
    """

    noise_scale: jax.Array
    grad_sq: jax.Array
    noise: jax.Array


class NoiseScale(NamedTuple):
    """A pair of pure functions.

    Attributes:
      init: () -> state.
      update: (state, *, sq_small, sq_big) -> (estimate, state).
    """

    init: Callable[[], NoiseScaleState]
    update: Callable[..., tuple[NoiseScaleEstimate, NoiseScaleState]]


def gradient_noise_scale(batch_small: int, batch_big: int, decay: Scalar = 0.95) -> NoiseScale:
    """Measures the gradient noise scale while training.

    Equations, with the mean squared norm |G_b|^2 of gradients over batches of b examples, and the squared norm |G_B|^2
    of one over B > b:

        G2 = (B |G_B|^2 - b |G_b|^2) / (B - b)          unbiased for |G|^2
        S = (|G_b|^2 - |G_B|^2) / (1/b - 1/B)           unbiased for tr(Sigma), the variance of one example's gradient
        noise scale = EMA(S) / EMA(G2)                  a ratio of averages, not an average of ratios

    For the best learning rate at a batch size see `optimal_rate`, for the batch size `critical_batch_size`, which is
    about the noise scale.

    Args:
      batch_small: b >= 1, examples per microbatch or replica.
      batch_big: B > b, examples in the global batch.
      decay: of both moving averages, in [0, 1). Default 0.95. May be traced.

    Returns:
      A pair (init, update). `update(state, sq_small=, sq_big=)` takes the mean over at least two microbatches or
      replicas of the squared norm of their gradients, BEFORE these are averaged, and the squared norm of the
      average; `from_moments` gives both. Squares taken after an all-reduce are all equal, and make the noise 0.
      State: three scalars. For one estimate per layer, `jax.vmap` both functions. No collective of its own.

    Raises:
      ValueError: B <= b, or a hyperparameter outside its range; `sq_small` or `sq_big` missing.

    Example:
      >>> meter = gradient_noise_scale(batch_small=1, batch_big=4)
      >>> estimate, state = meter.update(meter.init(), sq_small=10.0, sq_big=4.0)
      >>> [round(float(x), 4) for x in estimate]
      [4.0, 2.0, 8.0]

    Reference: McCandlish et al. An Empirical Model of Large-Batch Training. 2018, arXiv 1812.06162, appendix A.
    """
    checks.integer("batch_small", batch_small, 1)
    checks.integer("batch_big", batch_big, 1)
    checks.real("decay", decay, "[0, 1)")
    if batch_big <= batch_small:
        raise ValueError(f"batch_big must be above batch_small={batch_small}, got {batch_big}")
    b, B = batch_small, batch_big

    def init() -> NoiseScaleState:
        # Two different arrays, so that the state can be donated.
        return NoiseScaleState(jnp.zeros((), float), jnp.zeros((), float), jnp.zeros((), jnp.int32))

    def update(
        state: NoiseScaleState, *, sq_small: Any = None, sq_big: Any = None
    ) -> tuple[NoiseScaleEstimate, NoiseScaleState]:
        for name, value in (("sq_small", sq_small), ("sq_big", sq_big)):
            if value is None:
                raise ValueError(f"gradient_noise_scale needs {name}: call update(state, sq_small=..., sq_big=...)")
        small, big = (jnp.asarray(value).astype(state.noise.dtype) for value in (sq_small, sq_big))
        grad_sq = ema(state.grad_sq, (B * big - b * small) / (B - b), decay)
        noise = ema(state.noise, (small - big) / (1 / b - 1 / B), decay)
        state = NoiseScaleState(grad_sq, noise, jnp.asarray(optax.safe_increment(state.count)))

        gathered = bias_correction(decay, state.count, noise)
        known = grad_sq > 0
        ratio = jnp.where(known, noise / jnp.where(known, grad_sq, 1), jnp.nan)
        return NoiseScaleEstimate(ratio, grad_sq / gathered, noise / gathered), state

    return NoiseScale(init, update)


def from_moments(moments: Any) -> dict[str, jax.Array]:
    """The two squared norms for `gradient_noise_scale`, from the moments of a gradient.

    Args:
      moments: what `gk.gradients.gradient_moments` returns over at least two parts; b is the size of a part.

    Returns:
      {"sq_small": mean squared norm of the parts' gradients, "sq_big": squared norm of their mean}.

    Example:
      >>> import gradkit as gk
      >>> fn = gk.gradients.gradient_moments(lambda x, batch: jnp.mean(x * batch), 2)
      >>> _, moments = fn(jnp.array(2.0), jnp.array([1.0, 3.0]))
      >>> {name: float(value) for name, value in from_moments(moments).items()}
      {'sq_small': 5.0, 'sq_big': 4.0}

    Reference: McCandlish et al. An Empirical Model of Large-Batch Training. 2018, arXiv 1812.06162.
    """
    checks.arrays(moments=moments)
    sq_big = global_square(widen(moments.mean)).astype(moments.mean_sq_norm.dtype)
    return {"sq_small": moments.mean_sq_norm, "sq_big": sq_big}


def critical_batch_size(min_steps: Scalar, min_examples: Scalar) -> Any:
    """The batch size that reaches a target in twice the fewest steps and with twice the fewest examples.

    Equations:

        B_crit = E_min / S_min

    Args:
      min_steps: S_min > 0, steps to the target with an unlimited batch.
      min_examples: E_min > 0, examples to the target with the smallest batch.

    Returns:
      B_crit = E_min / S_min, in examples.

    Raises:
      ValueError: an argument that is not positive.

    Example:
      >>> critical_batch_size(1000, 64000)
      64.0

    Reference: McCandlish et al. An Empirical Model of Large-Batch Training. 2018, arXiv 1812.06162.
    """
    checks.real("min_steps", min_steps, "(0, inf)")
    checks.real("min_examples", min_examples, "(0, inf)")
    return min_examples / min_steps


def optimal_rate(max_learning_rate: Scalar, *, batch_size: Scalar, noise_scale: Scalar) -> Any:
    """The best learning rate of SGD for a batch size, from the best one without noise.

    Equations:

        rate = max_learning_rate / (1 + B_noise / B)

    Args:
      max_learning_rate: best learning rate for an unlimited batch, >= 0.
      batch_size: B > 0, in examples.
      noise_scale: B_noise >= 0, in examples.

    Returns:
      The learning rate; the decrease of the loss by a step has the same factor.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> optimal_rate(0.4, batch_size=100, noise_scale=300)
      0.1

    Reference: McCandlish et al. An Empirical Model of Large-Batch Training. 2018, arXiv 1812.06162.
    """
    checks.real("max_learning_rate", max_learning_rate, "[0, inf)")
    checks.real("batch_size", batch_size, "(0, inf)")
    checks.real("noise_scale", noise_scale, "[0, inf)")
    return max_learning_rate / (1 + noise_scale / batch_size)


class StepsExamples(NamedTuple):
    """A fitted hyperbola: the fewest steps and the fewest examples with which the target can be reached."""

    min_steps: float
    min_examples: float


def fit_steps_examples(steps: Scalar, examples: Any) -> StepsExamples:
    """Fits the hyperbola of steps and examples to runs of several batch sizes that reached one target.

    Equations, for S steps and E examples to the target; the second form is linear in S_min and E_min:

        (S / S_min - 1) (E / E_min - 1) = 1
        S_min / S + E_min / E = 1

    Solved by least squares, in float64.

    Args:
      steps: S > 0 of each run. Runs that missed the target are nan or inf, and left out.
      examples: E > 0 of each run.

    Returns:
      (min_steps, min_examples), for `critical_batch_size`.

    Raises:
      ValueError: lengths that differ, a number <= 0, fewer than two batch sizes, or runs that no such hyperbola fits.

    Example:
      >>> fit = fit_steps_examples([200, 150, 110], [2000, 3000, 11000])
      >>> [round(x, 6) for x in fit]
      [100.0, 1000.0]

    Reference: McCandlish et al. An Empirical Model of Large-Batch Training. 2018, arXiv 1812.06162. The paper fits
    the logarithms; for points on the hyperbola both are exact.
    """
    checks.arrays(steps=steps, examples=examples)
    S, E = (np.asarray(x, np.float64) for x in (steps, examples))
    if S.ndim != 1 or S.shape != E.shape:
        raise ValueError(f"steps and examples must be vectors of one length, got shapes {S.shape} and {E.shape}")
    reached = np.isfinite(S) & np.isfinite(E)
    S, E = S[reached], E[reached]
    if (S <= 0).any() or (E <= 0).any():
        raise ValueError("steps and examples must be positive")
    scale = np.array([S.min(), E.min()]) if S.size else np.ones(2)
    shares, _, rank, _ = np.linalg.lstsq(np.stack([scale[0] / S, scale[1] / E], 1), np.ones(S.size), rcond=None)
    if rank < 2 or (shares <= 0).any():
        raise ValueError("steps and examples determine no hyperbola: runs of two or more batch sizes are needed")
    return StepsExamples(*(float(x) for x in shares * scale))


register(
    gradient_noise_scale,
    form="diagnostic",
    paper=PAPER,
    example={"batch_small": 8, "batch_big": 64},
    notes="reads two squared norms, which `gk.gradients.gradient_moments` measures",
)
register(
    critical_batch_size,
    form="function",
    paper=PAPER,
    example={"min_steps": 1000, "min_examples": 64000},
)
register(
    optimal_rate,
    form="function",
    paper=PAPER,
    example={"max_learning_rate": 0.4, "batch_size": 100, "noise_scale": 300},
)
register(
    fit_steps_examples,
    form="function",
    paper=PAPER,
    example={"steps": (200, 150, 110), "examples": (2000, 3000, 11000)},
)
