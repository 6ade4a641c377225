"""How fast deep linear networks learn the singular modes of their task: an exact solution."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.types import Scalar

PAPER = Paper(
    "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
    "Saxe, McClelland, Ganguli",
    2013,
    "1312.6120",
)
STEPS = 2048  # of Runge and Kutta, for other depths than 1 and 2


def linear_mode_strength(t: Any, s: Any, a0: Scalar, tau: Scalar = 1.0, depth: Scalar = 2.0) -> jax.Array:
    """The strength of one singular mode of a linear network under gradient flow, at time t.

        da/dt = N a^{2 - 2/N} (s - a) / tau,    a(0) = a0
        a(t)  = s e^{2 s t / tau} / (e^{2 s t / tau} - 1 + s / a0)                      N = 2
        a(t)  = s + (a0 - s) e^{-t / tau}                                               N = 1
        the time from a0 to a_f is  tau / (2 s) ln(a_f (s - a0) / (a0 (s - a_f)))       N = 2

    of the map of N layers that start balanced and aligned with the task, with whitened inputs and the loss
    |W - A|^2 / 2, where A has the singular value s. Large s are learned first: the time of half a rise goes as 1 / s.

    Args:
      t: time, the learning rate times the number of steps; >= 0.
      s: singular value of the task, > 0.
      a0: strength at the start, > 0 (a mode that starts at 0 never moves).
      tau: unit of time, > 0. Default 1.
      depth: N >= 1, the number of layers. Default 2, in closed form, as is 1; others are integrated by 2048 steps of
        Runge and Kutta.

    Returns:
      The strength, of the shape that t, s, a0 and tau have together, in float32 or wider. No collective.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> [round(float(linear_mode_strength(t, 2.0, 0.01)), 3) for t in (0.0, 1.0, 100.0)]  # e^400 is not finite
      [0.01, 0.431, 2.0]

    Reference: Saxe, McClelland, Ganguli. Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks. 2013, arXiv 1312.6120. Gradient descent of `gk.overparameterized` follows it.
    """
    checks.arrays(t=t, s=s, a0=a0, tau=tau)
    for name, value in (("s", s), ("a0", a0), ("tau", tau)):
        _positive(name, value)
    _positive("t", t, "[0, inf)")
    checks.real("depth", depth, "[1, inf)")
    float_ = jnp.result_type(float)
    t, s, a0, tau = jnp.broadcast_arrays(*(jnp.asarray(x, float_) for x in (t, s, a0, tau)))
    if depth == 1:
        return s + (a0 - s) * jnp.exp(-t / tau)
    if depth == 2:
        # Divided by the exponential, which does not stay finite.
        fall = jnp.exp(-2 * s * t / tau)
        return s / (1 - fall + s / a0 * fall)
    return _integrated(t, s, a0, tau, jnp.asarray(depth, float_))


@jax.jit
def _integrated(t: jax.Array, s: jax.Array, a0: jax.Array, tau: jax.Array, N: jax.Array) -> jax.Array:
    # Of log a, whose slope stays moderate over orders of magnitude of a.
    def slope(y: jax.Array) -> jax.Array:
        a = jnp.exp(y)
        return N * a ** (1 - 2 / N) * (s - a) / tau

    h = t / STEPS

    def step(_: Any, y: jax.Array) -> jax.Array:
        k1 = slope(y)
        k2 = slope(y + h / 2 * k1)
        k3 = slope(y + h / 2 * k2)
        k4 = slope(y + h * k3)
        return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    return jnp.exp(jax.lax.fori_loop(0, STEPS, step, jnp.log(a0)))


def _positive(name: str, value: Any, interval: str = "(0, inf)") -> None:
    """Of a number, or of all entries of an array."""
    if jnp.ndim(value) and not isinstance(value, jax.core.Tracer):
        value = jnp.min(jnp.asarray(value)).item() if jnp.size(value) else 1.0
    if not jnp.ndim(value):
        checks.real(name, value, interval)


register(
    linear_mode_strength,
    form="function",
    paper=PAPER,
    example={"t": 1.0, "s": 2.0, "a0": 0.01},
)
