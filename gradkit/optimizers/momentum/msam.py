"""Momentum-SAM: sharpness-aware gradients along the momentum, at the price of one gradient per step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, ema_of_square, over_root
from gradkit.engine.anchors import scalar_dtype
from gradkit.engine.core import at_count, bias_corrections, cast, increment, optimizer, scalar, transformation, zeros
from gradkit.engine.mismatches import check_fit
from gradkit.engine.norms import global_norm
from gradkit.leaves import Method, resolve_mask
from gradkit.leaves.scopes import decay_here
from gradkit.types import Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "Momentum-SAM: Sharpness Aware Minimization without Computational Overhead",
    "Becker, Altrock, Risse",
    2024,
    "2401.12033",
)
TINY = 1e-12


class MsamState(NamedTuple):
    """Number of updates; the momentum; the second moment, or None; the factor c of the look-ahead along the momentum;
    and the learning rate as a metric."""

    count: jax.Array
    mu: Any
    nu: Any
    ahead: jax.Array
    metrics: dict[str, jax.Array]

    def eval_params(self, params: Any) -> Any:
        """The true parameters x."""

        def true(y: jax.Array, v: jax.Array) -> jax.Array:
            return (y.astype(v.dtype) + self.ahead.astype(v.dtype) * v).astype(y.dtype)

        return jax.tree.map(true, params, self.mu)


def _metrics(rate: Any) -> dict[str, jax.Array]:
    return {"last_learning_rate": jnp.array(rate, jnp.float32, copy=True)}


def _ahead(method: Method, rho: Any, step: Any, *, second: bool) -> optax.GradientTransformationExtraArgs:
    """An optimizer of a step: (g, v, s, y, x, rate, decay, count) -> (x_{t+1} - x_t, v, s); decay per leaf, or 0."""
    name, rated = method.name, method.learning_rate
    checks.real("learning_rate", rated, "[0, inf)", schedule=True)
    checks.real("weight_decay", method.weight_decay, "[0, inf)", schedule=True)
    checks.real("rho", rho, "[0, inf)")

    def init(params: Any) -> MsamState:
        count = jnp.zeros((), jnp.int32)
        rate = at_count(rated, count, f"{name}: learning_rate")
        nu = zeros(params) if second else None
        return MsamState(count, zeros(params), nu, jnp.zeros((), scalar_dtype(params)), _metrics(rate))

    def update(g: Any, state: MsamState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        check_fit(name, params, state.mu)
        c = state.ahead
        rate = jnp.asarray(at_count(rated, state.count, f"{name}: learning_rate")).astype(c.dtype)
        decay = decay_here(at_count(method.weight_decay, state.count, f"{name}: weight_decay"))
        decay = jnp.asarray(decay).astype(c.dtype)
        on = resolve_mask(method.weight_decay_mask, params)
        decays = jax.tree.map(lambda x, on: cast(decay, x.dtype) if on else jnp.zeros((), x.dtype), params, on)
        count = increment(state.count)
        back = jax.tree.map(lambda v: cast(c, v.dtype) * v, state.mu)
        x = jax.tree.map(jnp.add, params, back)
        moved, v, s = step(g, state.mu, state.nu, params, x, rate, decays, count)
        new = jnp.asarray(rho).astype(c.dtype) / (global_norm(v).astype(c.dtype) + TINY)
        u = jax.tree.map(lambda b, d, v: b + d - cast(new, v.dtype) * v, back, moved, v)
        return u, MsamState(count, v, s, new, _metrics(rate))

    return optimizer(method, transformation(name, init, update, needs_params=True))


def msam_sgd(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: Scalar = 0.9,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    rho: Scalar = 0.3,
) -> optax.GradientTransformationExtraArgs:
    """SGD with momentum whose gradients are taken at a distance rho ahead along the momentum (MSAM).

    Equations, with y the user's parameters, where g is taken, x the true ones, c and v of the step before, both 0 at
    the start, and |v| the norm over all leaves:

        x = y + c v,   v = momentum v + g + weight_decay y,   x = x - learning_rate v
        c = rho / (|v| + 1e-12),   y = x - c v

    With c = learning_rate momentum it would be Nesterov's method. Evaluate x, `gk.eval_params(state, params)`: every
    loop does.

    Args:
      learning_rate: step size >= 0, or a schedule.
      momentum: decay of the momentum, in [0, 1). Default 0.9 (official code).
      weight_decay: coupled weight decay, of y, >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      rho: distance of the point of the gradient from the true parameters, >= 0. Default 0.3 (official code).

    Returns:
      A transformation that needs `params`. State: 1 word per parameter and numbers. Metric: `last_learning_rate`.
      Collectives: one norm over all leaves.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `params` missing.

    Example:
      >>> tx, y = msam_sgd(0.1, rho=0.5), jnp.array([3.0, 4.0])
      >>> u, state = tx.update(y, tx.init(y), y)
      >>> print(u.round(4), state[0].eval_params(y + u).round(4))  # 0.1 + 0.5 / 5 of the gradient
      [-0.6 -0.8] [2.7 3.6]

    Reference: Becker, Altrock, Risse. Momentum-SAM: Sharpness Aware Minimization without Computational Overhead. 2024,
    arXiv 2401.12033; official code, commit 780fa4f. A negative rho, with which gradients are taken behind the
    parameters, is refused.
    """
    checks.real("momentum", momentum, "[0, 1)")

    def step(g: Any, v: Any, s: Any, y: Any, x: Any, rate: Any, decays: Any, count: Any) -> tuple[Any, Any, Any]:
        del x, count
        v = jax.tree.map(lambda v, g, y, wd: scalar(momentum, v) * v + (g + wd * y), v, g, y, decays)
        return jax.tree.map(lambda v: -cast(rate, v.dtype) * v, v), v, s

    return _ahead(Method("msam_sgd", learning_rate, weight_decay, weight_decay_mask), rho, step, second=False)


def msam_adamw(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    rho: Scalar = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """AdamW whose gradients are taken at a distance rho ahead along the first moment (MSAM).

    Equations, with y the user's parameters, where g is taken, x the true ones, c and v of the step before, both 0 at
    the start, |v| the norm over all leaves, v^ = v / (1 - b1^t) and s^ = s / (1 - b2^t):

        x = y + c v,   v = b1 v + (1 - b1) g,   s = b2 s + (1 - b2) |g|^2
        x = (x - learning_rate v^ / (sqrt(s^) + eps)) (1 - learning_rate weight_decay)
        c = rho / (|v| + 1e-12),   y = x - c v

    Evaluate x, `gk.eval_params(state, params)`: every loop does.

    Args:
      learning_rate: step size >= 0, or a schedule.
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root, >= 0. Default 1e-8 (official code).
      weight_decay: decoupled weight decay after the step, times the learning rate, >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      rho: distance of the point of the gradient from the true parameters, >= 0. Default 1 (official code).

    Returns:
      A transformation that needs `params`. State: 2 words per parameter and numbers. Metric: `last_learning_rate`.
      Collectives: one norm over all leaves.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `params` missing.

    Example:
      >>> tx, y = msam_adamw(0.1, eps=0.0, rho=0.5), jnp.array([3.0, 4.0])
      >>> u, state = tx.update(y, tx.init(y), y)
      >>> print(u.round(4), state[0].eval_params(y + u).round(4))  # Adam's step, and 0.5 along the gradient
      [-0.4 -0.5] [2.9 3.9]

    Reference: Becker, Altrock, Risse. Momentum-SAM: Sharpness Aware Minimization without Computational Overhead. 2024,
    arXiv 2401.12033; official code, commit 780fa4f, in which the decay multiplies the step as well, as here.
    """
    checks.real("b1", b1, "[0, 1)")
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")

    def step(g: Any, v: Any, s: Any, y: Any, x: Any, rate: Any, decays: Any, count: Any) -> tuple[Any, Any, Any]:
        del y
        v = jax.tree.map(lambda v, g: ema(v, g, b1), v, g)
        s = jax.tree.map(lambda s, g: ema_of_square(s, g, b2), s, g)
        of_v, of_s = bias_corrections(b1, count), bias_corrections(b2, count)

        def moved(v: jax.Array, s: jax.Array, x: jax.Array, wd: jax.Array) -> jax.Array:
            by = cast(rate, v.dtype)
            u = -by * over_root(v, s, eps, 0.0, x_by=of_v(v), v_by=of_s(s))
            return u - by * wd * (x + u)

        return jax.tree.map(moved, v, s, x, decays), v, s

    return _ahead(Method("msam_adamw", learning_rate, weight_decay, weight_decay_mask), rho, step, second=True)


COMMON: dict[str, Any] = {
    "form": "optimizer",
    "paper": PAPER,
    "collectives": "norms",
    "notes": "read with gk.eval_params",
}
register(msam_sgd, **COMMON, words=1, golden=("modern/msam_sgd",), race=Race(0.1))
register(msam_adamw, **COMMON, words=2, golden=("modern/msam_adamw",), race=Race(2e-3))
