"""FairGrad: the combination from which all tasks gain fairly, in the sense of alpha-fairness.

Equations: in the docstring of `fairgrad`. The weights minimise a convex function, p = 1 / alpha:

    w^T G w / 2 - sum_i w_i^(1 - p) / (1 - p)         (- sum_i log w_i for p = 1)

by Newton steps on the Gramian of trace 1, as long as all weights stay positive and the function falls.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import weights_of_gramian
from gradkit.catalogue import Paper, register
from gradkit.types import Scalar

PAPER = Paper("Fair Resource Allocation in Multi-Task Learning", "Ban, Ji", 2024, "2402.15638")
HALVINGS = 24


class _Newton(NamedTuple):
    """The weights, the squared Newton decrement, and the number of steps."""

    w: jax.Array
    decrement: jax.Array
    steps: jax.Array


def fair_weights(G: jax.Array, alpha: Any, max_iters: int) -> jax.Array:
    """The positive w with G w = w^(-1 / alpha); 0 for a task whose gradient is zero."""
    m, dtype = len(G), G.dtype
    eps = float(jnp.finfo(dtype).eps)
    alpha = jnp.asarray(alpha, dtype)
    uniform = alpha == 0
    p = 1 / jnp.where(uniform, jnp.ones_like(alpha), alpha)
    trace = jnp.trace(G)
    there = jnp.diagonal(G) > 0
    safe = jnp.where(trace > 0, trace, jnp.ones_like(trace))
    # A task without a gradient gets an equation of its own. The ridge, relative to each gradient, keeps weights finite
    # where two gradients are opposite, and no combination is better for both.
    G = jnp.where(there[:, None] & there[None, :], G / safe, jnp.zeros_like(G))
    G = G + jnp.diag(jnp.where(there, m * jnp.asarray(eps, dtype) * jnp.diagonal(G), jnp.ones((), dtype)))

    def slope(w: jax.Array) -> jax.Array:
        return jnp.dot(G, w, precision="highest") - w**-p

    def change(w: jax.Array, d: jax.Array) -> jax.Array:
        """The function at w + d minus that at w, without the difference of two large numbers."""
        quadratic = jnp.dot(d, jnp.dot(G, w + d / 2, precision="highest"), precision="highest")
        ratio = d / w
        q = 1 - p
        near = jnp.abs(q) < 1e-4
        power = w**q * jnp.expm1(jnp.where(near, jnp.ones_like(q), q) * jnp.log1p(ratio)) / jnp.where(near, 1, q)
        return quadratic - jnp.sum(jnp.where(near, jnp.log1p(ratio), power))

    def step(s: _Newton) -> _Newton:
        w, g = s.w, slope(s.w)
        d = -jnp.linalg.solve(G + jnp.diag(p * w ** (-p - 1)), g)
        decrement = -jnp.dot(g, d, precision="highest")
        # Nine tenths of the way to where a weight is 0, then half of that, and so on: the first that is good enough.
        most = jnp.min(jnp.where(d < 0, -0.9 * w / jnp.where(d < 0, d, -jnp.ones_like(d)), jnp.inf))
        sizes = jnp.minimum(most, 1.0) * 0.5 ** jnp.arange(HALVINGS, dtype=dtype)
        changes = jax.vmap(lambda t: change(w, t * d))(sizes)
        good = changes <= -1e-4 * sizes * decrement
        t = sizes[jnp.argmax(good)]
        return _Newton(jnp.where(good.any(), w + t * d, w), jnp.where(good.any(), decrement, 0), s.steps + 1)

    def proceed(s: _Newton) -> jax.Array:
        value = jnp.dot(s.w, jnp.dot(G, s.w, precision="highest"), precision="highest")
        return (s.decrement > jnp.asarray(4 * eps, dtype) ** 2 * value) & (s.steps < max_iters)

    start = jnp.diagonal(G) ** (-1 / (1 + p))  # what solves it for orthogonal gradients
    solved = jax.lax.while_loop(proceed, step, _Newton(start, jnp.asarray(jnp.inf, dtype), jnp.zeros((), jnp.int32))).w
    scaled = jnp.where(there, solved, jnp.zeros_like(solved)) * safe ** (-1 / (1 + p))
    return jnp.where(uniform, jnp.full_like(solved, 1 / m), scaled)


def fairgrad(*, alpha: Scalar = 1.0, max_iters: int = 100) -> optax.GradientTransformationExtraArgs:
    """Fair gradients: the direction whose alpha-fair utility of all tasks is largest.

    With G the Gramian of the gradients:

        w > 0 with  G w = w^(-1 / alpha)  (entry by entry),    w_i = 1 / m for alpha = 0
        result = w_1 g_1 + ... + w_m g_m

    <result, g_i> = w_i^(-1 / alpha) > 0: no task gets worse. A task whose gradient is zero has no such weight; it is
    left out, with weight 0.

    Args:
      alpha: fairness, >= 0: 0 is the mean, 1 proportional fairness (`gk.aggregation.nash_mtl`), 2 the least potential
        delay, and the limit of large ones max-min fairness. Default 1 (torchjd); the paper takes 1 or 2, by the data.
      max_iters: bound on the Newton steps, >= 1. Default 100; it takes about ten.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; put it first in a
      chain. No state. Sharded gradients cost one all-reduce of m^2 numbers. Where all gradients are multiplied by c,
      the result is multiplied by c^((1 - alpha) / (1 + alpha)): at alpha = 1 its norm is sqrt(m) whatever that of the
      gradients, so the learning rate must fall.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, leading axes that differ or are
        missing, gradients that do not match the parameters.

    Example:
      >>> tx = fairgrad()
      >>> g = jnp.array([[2.0, 0.0], [0.0, 5.0]])
      >>> [round(float(x), 3) for x in tx.update(g, tx.init(g[0]))[0]]
      [1.0, 1.0]

    Reference: Ban, Ji. Fair Resource Allocation in Multi-Task Learning. 2024, arXiv 2402.15638. The authors' code and
    torchjd solve by nonlinear least squares; the minimum of the convex function is the same weights to rounding.
    """
    checks.real("alpha", alpha, "[0, inf)")
    max_iters = checks.integer("max_iters", max_iters, 1)

    def weigh(G: jax.Array, state: Any, **extra: Any) -> tuple[jax.Array, Any]:
        del extra
        return fair_weights(G, alpha, max_iters), state

    return weights_of_gramian("fairgrad", weigh)


register(fairgrad, form="aggregator", paper=PAPER, collectives="gramian", golden=("estimators/fairgrad",))
