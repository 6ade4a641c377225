"""Predict and correct: a measured state, such as a gradient or a memory, mixed with what its own drift predicts."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment, scalar, transformation, zeros
from gradkit.types import Scalar

PAPER = Paper("PRES: Toward Scalable Memory-Based Dynamic Graph Neural Networks", "Su, Zou, Wu", 2024, "2402.04284")


class PredictCorrectState(NamedTuple):
    """Number of measurements, the last corrected state, and the mean of its rates of change."""

    count: jax.Array
    previous: Any
    rate: Any

    exact_fields = ("previous", "rate")


@functools.partial(jax.jit, inline=True)
def _fused(previous: jax.Array, rate: jax.Array, measured: jax.Array, gamma: Any, elapsed: Any) -> jax.Array:
    predicted = previous + jnp.asarray(elapsed).astype(rate.dtype) * rate
    # As a difference: gamma = 1 gives the measurement itself, bit for bit.
    return measured + (1 - scalar(gamma, measured)) * (predicted - measured)


@functools.partial(jax.jit, inline=True)
def _rate(rate: jax.Array, fused: jax.Array, previous: jax.Array, elapsed: jax.Array, count: jax.Array) -> jax.Array:
    """The mean with one more rate; as it was where no time has passed."""
    time = elapsed.astype(rate.dtype)
    passed = time > 0
    new = (fused - previous) / jnp.where(passed, time, jnp.ones_like(time))
    return jnp.where(passed, rate + (new - rate) / count.astype(rate.dtype), rate)


def predict_correct(gamma: Scalar = 0.1) -> optax.GradientTransformationExtraArgs:
    """Mixes what is measured with what the mean rate of change predicts: a control variate from the past.

        p_t <- s_{t-1} + dt d_{t-1}                               the prediction
        s_t <- gamma z_t + (1 - gamma) p_t                        the correction by the measurement z_t
        d_t <- the mean over all steps so far of (s_i - s_{i-1}) / dt_i

    s_1 = z_1 and s_2 = z_2, as there is no rate before two measurements. The measurement is a gradient, in a chain in
    front of an optimizer; or the memory of a model that a large batch makes stale, with `tx.update(memory, state,
    elapsed=dt)` in the place of the memory, under `jax.vmap` where every node has a time of its own.
    `gk.losses.memory_coherence` is the penalty that the paper trains with it.

    Args:
      gamma: weight of the measurement, in [0, 1]; 1 leaves it as it is. It may be traced and trained: s_t is
        differentiable by it, the state is not. Default 0.1 (official code, which gives the prediction 0.9).

    Returns:
      A transformation; `update` takes `elapsed`, the time dt >= 0 since the last measurement, a scalar whose default is
      1; where it is 0, the rates stay as they are. State: 2 words per parameter and a counter. Elementwise: no
      collective.

    Raises:
      ValueError: `gamma` outside its range; complex leaves.

    Example:
      >>> tx = predict_correct(0.5)
      >>> state = tx.init(jnp.array(0.0))
      >>> for z in (1.0, 3.0, 3.0):  # the rate is 2: 5 is predicted
      ...     s, state = tx.update(jnp.array(z), state)
      >>> float(s)
      4.0

    Reference: Su, Zou, Wu. PRES: Toward Scalable Memory-Based Dynamic Graph Neural Networks. 2024, arXiv 2402.04284,
    for the memory of graph networks; the link for gradients is a transfer. The paper's prediction has a Gaussian
    mixture of the rates per node, whose means are used. Departures from the code: it never counts, so that its rates
    are sums, which it scales to [-1, 1] over all nodes; and it knows no time between measurements.
    """
    checks.real("gamma", gamma, "[0, 1]")

    def init(params: optax.Params) -> PredictCorrectState:
        return PredictCorrectState(jnp.zeros((), jnp.int32), zeros(params), zeros(params))

    def update(
        updates: Any, state: PredictCorrectState, params: Any = None, *, elapsed: Any = 1.0, **extra: Any
    ) -> tuple[Any, PredictCorrectState]:
        del params, extra
        time = jnp.asarray(elapsed, jnp.result_type(float))
        checks.scalar("elapsed", time)
        previous, rate = jax.lax.stop_gradient((state.previous, state.rate))
        known = state.count >= 2

        def corrected(s: jax.Array, d: jax.Array, z: jax.Array) -> jax.Array:
            return jnp.where(known, _fused(s, d, z, gamma, time), z)

        fused = jax.tree.map(corrected, previous, rate, updates)
        kept = jax.lax.stop_gradient(fused)
        # The first measurement has no predecessor; the rate of the second is the first one.
        number = jnp.maximum(state.count, 1)
        moved = jax.tree.map(lambda d, s, p: _rate(d, s, p, time, number), rate, kept, previous)
        rate = jax.tree.map(lambda new, d: jnp.where(state.count >= 1, new, d), moved, rate)
        # Without time between two measurements there is no rate to count.
        count = jnp.where((time > 0) | (state.count == 0), increment(state.count), state.count)
        return fused, PredictCorrectState(count, kept, rate)

    return transformation("predict_correct", init, update)


register(
    predict_correct,
    form="primitive",
    paper=PAPER,
    words=2,
    example={"gamma": 0.5},
    notes="a control variate made of the past: the smaller gamma is, the later a change is seen",
)
