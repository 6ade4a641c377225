"""sl-BAMM: bilevel steps in one loop, on a lower function that the upper one regularizes less and less."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import at_count, increment
from gradkit.gradients.bilevel_directions import Bilevel, BilevelState, bilevel_directions, inner, stepped
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper(
    "Averaged Method of Multipliers for Bi-Level Optimization without Lower-Level Strong Convexity",
    "Liu et al.",
    2023,
    "2302.03407",
)


def sl_bamm(
    upper: Callable[[Any, Any, Any], Any],
    lower: Callable[[Any, Any, Any], Any],
    *,
    learning_rate: ScalarOrSchedule | None = None,
    lower_learning_rate: ScalarOrSchedule = 0.1,
    linear_learning_rate: ScalarOrSchedule | None = None,
    mu0: Scalar = 0.9,
    p0: Scalar = 10.0,
    tau: Scalar = 1 / 40,
) -> Bilevel:
    """The single-loop averaged method of multipliers, for lower functions that are convex, not strongly so.

        mu_k  = mu0 (k + 1)^(-1 / p0),    psi_k = (1 - mu_k) g + mu_k F                      k = 0, 1, ...
        y <- y - lower_learning_rate grad_y psi_k
        v <- v - eta_k r,    r = (hess_yy psi_k) v - grad_y F,    eta_k = |r|^2 / (r^T (hess_yy psi_k) r + 1e-12)
        x <- x - alpha_k (grad_x F - grad_x <grad_y psi_k, v>)
        alpha_k = lower_learning_rate mu_k^3 (k + 1)^(-3 tau / 2)

    All at the OLD (x, y, v). With mu0 = 0 it is the single-loop method with a linear system.

    Args:
      upper: F, (x, y, batch) -> scalar.
      lower: g, (x, y, batch) -> scalar.
      learning_rate: alpha, of x, >= 0, or a schedule. Default None: alpha_k as above (theory); with mu0 = 0 it must be
        given. The official code has 0.005 as a constant.
      lower_learning_rate: of y, >= 0, or a schedule. Default 0.1 (official code).
      linear_learning_rate: eta, of v, >= 0, or a schedule. Default None: the exact line search above (official code).
      mu0: share of F in psi at the start, in [0, 1). Default 0.9 (official code).
      p0: > 0; how slowly the share falls. Default 10 (official code).
      tau: >= 0. Default 1/40 (official code).

    Returns:
      `Bilevel`. init(x, y) -> state. step(state, upper_batch=None, lower_batch=None) -> (state, F). State: x, y and v;
      v begins at 0.

    Raises:
      ValueError: an argument outside its range; no rate where mu0 is 0; trees that do not match.

    Example:
      >>> upper, lower = (lambda x, y, _: (y - 1.0) ** 2 / 2), (lambda x, y, _: (y - x) ** 2 / 2)
      >>> method = sl_bamm(upper, lower, learning_rate=0.2, lower_learning_rate=0.5, mu0=0.0)
      >>> state, step = method.init(jnp.array(3.0), jnp.array(0.0)), jax.jit(method.step)
      >>> for _ in range(60):
      ...     state, value = step(state)
      >>> round(float(state.x), 3), round(float(state.y), 3)
      (1.0, 1.0)

    Reference: Liu et al. Averaged Method of Multipliers for Bi-Level Optimization without Lower-Level Strong Convexity.
    2023, arXiv 2302.03407. In the released code mu is a default argument of psi, which is evaluated once: it never
    falls from 0.1.
    """
    checks.function("upper", upper)
    checks.function("lower", lower)
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True, optional=True)
    checks.real("lower_learning_rate", lower_learning_rate, "[0, inf)", schedule=True)
    checks.real("linear_learning_rate", linear_learning_rate, "[0, inf)", schedule=True, optional=True)
    checks.real("mu0", mu0, "[0, 1)")
    checks.real("p0", p0, "(0, inf)")
    checks.real("tau", tau, "[0, inf)")
    if learning_rate is None and checks.readable(mu0) == 0:
        raise ValueError("learning_rate must be given where mu0 is 0, got None: mu0^3 is a factor of it; write 0.005")

    def init(x: Any, y: Any) -> BilevelState:
        x, y = (jax.tree.map(lambda a: jnp.array(a, copy=True), tree) for tree in (x, y))
        return BilevelState(jnp.zeros((), jnp.int32), x, y, jax.tree.map(jnp.zeros_like, y), None)

    def step(state: BilevelState, upper_batch: Any = None, lower_batch: Any = None) -> tuple[BilevelState, jax.Array]:
        count, x, y, v, _ = state
        k = count.astype(float) + 1
        power, share, slow = (jnp.asarray(value).astype(k.dtype) for value in (p0, mu0, tau))
        mu = share * k ** (-1 / power)
        y_rate = at_count(lower_learning_rate, count, "lower_learning_rate")

        def psi(x: Any, y: Any, batches: Any) -> jax.Array:
            g, F = lower(x, y, batches[1]), upper(x, y, batches[0])
            m = mu.astype(g.dtype)
            return (1 - m) * g + m * F.astype(g.dtype)

        both = (upper_batch, lower_batch)
        value, d = bilevel_directions(upper, psi)({"x": x, "y": y, "v": v}, upper_batch, both)
        if linear_learning_rate is None:
            product = jax.jvp(lambda y: jax.grad(psi, 1)(x, y, both), (y,), (d["v"],))[1]
            eta = inner(d["v"], d["v"]) / (inner(d["v"], product) + 1e-12)
        else:
            eta = at_count(linear_learning_rate, count, "linear_learning_rate")
        if learning_rate is None:
            alpha = jnp.asarray(y_rate).astype(k.dtype) * mu**3 * k ** (-1.5 * slow)
        else:
            alpha = at_count(learning_rate, count, "learning_rate")
        new_x, new_y, new_v = stepped(x, alpha, d["x"]), stepped(y, y_rate, d["y"]), stepped(v, eta, d["v"])
        return BilevelState(increment(count), new_x, new_y, new_v, None), value

    return Bilevel(init, step)


register(sl_bamm, form="program", paper=PAPER, words=1)
