"""Exact Gauss-Newton: the full curvature of a minibatch, through a linear system of the size of the minibatch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import (
    at_count,
    bias_corrections,
    divide,
    increment,
    optimizer,
    scalar,
    transformation,
    zeros,
)
from gradkit.engine.norms import global_sums
from gradkit.leaves import Method
from gradkit.linalg.egn import check_rows, check_solver, damped_gauss_newton_solve, times_loss_hessian
from gradkit.optimizers.gauss_newton.predictions import LOSSES, Linearized, linearized
from gradkit.types import Scalar, ScalarOrSchedule

# Metrics that have the names of hyperparameters.
NAMES = ("last_damping", "last_learning_rate")
RAISE = 2.0  # smallest factor of the damping after a step that was not finite
PAPER = Paper("Exact Gauss-Newton Optimization for Training Deep Neural Networks", "Korbit et al.", 2024, "2405.14402")
ARMIJO, SHRINK, GROW, TRIALS = 0.1, 0.8, 1.5, 15
SMALLEST, LARGEST = 1e-12, 1e6


class EgnState(NamedTuple):
    """Number of updates made; mean of the directions, or None; damping and step size of the last update, also as
    metrics."""

    count: jax.Array
    mean: Any
    lam: jax.Array
    step: jax.Array
    metrics: dict[str, jax.Array]


def _step_size(f: Any, f0: jax.Array, slope: jax.Array, start: jax.Array) -> jax.Array:
    """Backtracking from `start`: the first step size with a sufficient decrease, or the last one tried."""

    def going(carry: Any) -> jax.Array:
        i, alpha, value = carry
        return (i < TRIALS) & ~(value <= f0 + ARMIJO * alpha * slope)

    def step(carry: Any) -> Any:
        i, alpha, _ = carry
        alpha = SHRINK * alpha
        return i + 1, alpha, f(alpha)

    return jax.lax.while_loop(going, step, (jnp.zeros((), jnp.int32), start, f(start)))[1]


def egn(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    damping: Scalar = 1.0,
    momentum: Scalar | None = None,
    line_search: bool = False,
    adaptive_damping: bool = False,
    damping_increase: Scalar = 1.01,
    damping_decrease: Scalar = 0.99,
    loss: str = "mse",
    solver: str = "woodbury",
    cg_iterations: int = 100,
    cg_tolerance: Any = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """Exact Gauss-Newton: a damped Gauss-Newton step on the minibatch, solved exactly.

    Equations, with J the derivative of the predictions of b examples with c outputs, Q the second derivative of the
    loss by the predictions, and r minus its first derivative:

        p_t = (J^T Q J / b + lambda I)^{-1} J^T r / b                by a system of b c equations
        m_t = momentum m_{t-1} + (1 - momentum) p_t,    p_t <- m_t / (1 - momentum^t)
        x_t = x_{t-1} + alpha p_t,    alpha = learning_rate

    With `line_search` alpha is the first of min(1.5 alpha_{t-1}, learning_rate) 0.8^i, i = 0, ..., 15, with

        f(x + alpha p) <= f(x) + 0.1 alpha f'(x)^T p

    With `adaptive_damping` lambda <- damping_increase lambda where rho < 1/4, and damping_decrease lambda where
    rho > 3/4, with

        rho = (f(x + alpha p) - f(x)) / (alpha f'(x)^T p + alpha^2 p^T J^T Q J p / (2 b))

    The loss is the mean over the examples of half the squared error ("mse"), the cross-entropy of a softmax
    ("softmax_ce") or of sigmoids ("sigmoid_bce"), summed over outputs. The incoming gradients are not read: other terms
    of the loss, such as a penalty, have no effect.

    Args:
      learning_rate: step size >= 0, or a schedule; with `line_search` the largest one. Default 1 (official code).
      damping: lambda, in the units of the curvature, > 0. Default 1 (official code).
      momentum: decay of the mean of directions, in [0, 1). Default None, which means 0: no mean (official code).
      line_search: whether the step size is searched for, starting from min(1.5 times the last one, `learning_rate`) and
        multiplied by 0.8 at most 15 times. Default False.
      adaptive_damping: whether lambda follows the ratio of the true to the predicted decrease, within [1e-12, 1e6].
        Default False (first release).
      damping_increase: factor of lambda after a poor prediction, >= 1. Default 1.01 (first release; second
        release 1.5).
      damping_decrease: factor after a good one, in (0, 1]. Default 0.99 (first release; second release 0.5).
      loss: "mse", "softmax_ce" (targets integer (b,), or probabilities (b, c)) or "sigmoid_bce". Default "mse".
      solver: "woodbury" (at most 4096 examples times outputs), "cg" or "dense", as in
        `gk.linalg.damped_gauss_newton_solve`. Default "woodbury" (paper).
      cg_iterations: largest number of iterations of "cg", >= 1. Default 100.
      cg_tolerance: residual at which "cg" stops, relative to the gradient, in [0, 1). Default 1e-6.

    Returns:
      A transformation that needs `params` and the extra arguments `model_fn` (parameters -> predictions of this
      minibatch, (b,) or (b, c)) and `targets`; or `residuals` (r), `jvp` and `vjp` (products with J and its transpose),
      `loss_hessian` (Q, (b, c, c)) where it is not the identity, and `value_fn` for line search or adaptive damping.
      State: 1 word per parameter with momentum, otherwise scalars; lambda and the step size are published as the
      metrics `last_damping` and `last_learning_rate`, and the number of steps that were not finite as `failed_solves`:
      such a step is zero, the state does not change, and with adaptive damping lambda is at least doubled. Collectives:
      an all-reduce of (b c)^2 numbers, and those of the model's products.

    Raises:
      ValueError: a hyperparameter outside its range; extra arguments that are missing; targets of another shape than
        the predictions; more than 4096 rows with "woodbury".

    Example:
      >>> X, y = jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.array([1.0, 5.0])
      >>> tx, x = egn(damping=1e-6), jnp.zeros(2)
      >>> u, _ = tx.update(x, tx.init(x), x, model_fn=lambda w: X @ w, targets=y)
      >>> print(u.round(3))  # least squares in one step
      [1. 2.]

    Reference: Korbit et al. Exact Gauss-Newton Optimization for Training Deep Neural Networks. 2024, arXiv 2405.14402.
    The system is that of the authors' first release, exact also where Q is singular; their second release applies the
    factor of Q on the wrong side. Where no trial of the line search decreases the loss enough, the last one is used.
    """
    checks.switch(line_search=line_search, adaptive_damping=adaptive_damping)
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    checks.real("damping", damping, "(0, inf)")
    checks.real("momentum", momentum, "[0, 1)", optional=True)
    checks.real("damping_increase", damping_increase, "[1, inf)")
    checks.real("damping_decrease", damping_decrease, "(0, 1]")
    checks.choice("loss", loss, LOSSES)
    check_solver(solver, cg_iterations, cg_tolerance)
    averaged = not checks.absent(momentum)

    def state_of(count: jax.Array, mean: Any, lam: Any, alpha: Any, failed: Any) -> EgnState:
        # Every number is a copy in a buffer of its own, because donation deletes each buffer once.
        lam, alpha, *published = (jnp.array(value, jnp.float32, copy=True) for value in 2 * (lam, alpha))
        metrics = dict(zip(NAMES, published, strict=True)) | {"failed_solves": jnp.asarray(failed, jnp.float32)}
        return EgnState(count, mean, lam, alpha, metrics)

    def init(params: optax.Params) -> EgnState:
        count = jnp.zeros((), jnp.int32)
        rate = at_count(learning_rate, count, "egn: learning_rate")
        return state_of(count, zeros(params) if averaged else None, damping, rate, 0)

    def measured(lin: Linearized, p: Any, params: Any, state: EgnState) -> tuple[Any, Any]:
        """The step size alpha and the next damping lambda."""
        f = lin.loss
        rate = jnp.asarray(at_count(learning_rate, state.count, "egn: learning_rate")).astype(lin.residual.dtype)
        if not line_search and not adaptive_damping:
            return rate, state.lam
        if f is None:
            raise ValueError(
                "egn needs the extra argument value_fn for line search or adaptive damping; call update(grads, state, "
                "params, value_fn=..., ...)"
            )
        b, Jp = lin.residual.shape[0], lin.jvp(p)
        slope = -jnp.sum(lin.residual * Jp) / b
        at = lambda alpha: f(jax.tree.map(lambda x, d: x + alpha.astype(x.dtype) * d, params, p))  # noqa: E731
        f0 = f(params)
        start = jnp.minimum(GROW * state.step.astype(rate.dtype), rate)
        alpha = _step_size(at, f0, slope, start) if line_search else rate
        if not adaptive_damping:
            return alpha, state.lam
        curvature = jnp.sum(Jp.reshape(-1) * times_loss_hessian(lin.loss_hessian, Jp.reshape(-1))) / b
        predicted = alpha * slope + jnp.square(alpha) * curvature / 2
        rho = divide(at(alpha) - f0, predicted)
        lam = state.lam
        up, down = (scalar(jnp.asarray(value), lam) * lam for value in (damping_increase, damping_decrease))
        lam = jnp.where(rho > 0.75, down, jnp.where((rho < 0.25) & (predicted != 0), up, lam))
        return alpha, jnp.clip(lam, SMALLEST, LARGEST)

    def update(updates: Any, state: EgnState, params: Any = None, **extra: Any) -> tuple[Any, EgnState]:
        count = increment(state.count)
        lin = linearized("egn", loss, params, extra)
        check_rows("egn", lin.residual, solver)
        p = damped_gauss_newton_solve(
            lin.jvp,
            lin.vjp,
            lin.residual,
            damping=state.lam if adaptive_damping else damping,
            loss_hessian=lin.loss_hessian,
            solver=solver,
            cg_iterations=cg_iterations,
            cg_tolerance=cg_tolerance,
        )
        mean = None
        if averaged:
            # In the dtype of the updates, which may differ from the model's.
            mean = jax.tree.map(lambda m, p: ema(m, p.astype(m.dtype), momentum), state.mean, p)
            c = bias_corrections(momentum, count)
            p = jax.tree.map(lambda m: m / c(m), mean)
        alpha, lam = measured(lin, p, params, state)
        u = jax.tree.map(lambda p, g: alpha.astype(g.dtype) * p.astype(g.dtype), p, updates)
        (bad,) = global_sums(jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), 0, 1).astype(x.dtype), u))
        good = (bad == 0) & jnp.isfinite(lam)

        def kept(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda x, y: jnp.where(good, x, y.astype(x.dtype)), new, old)

        u = kept(u, jax.tree.map(jnp.zeros_like, u))
        raised = jnp.minimum(jnp.maximum(scalar(damping_increase, state.lam), RAISE) * state.lam, LARGEST)
        lam = kept(lam, raised if adaptive_damping else state.lam)
        failed = state.metrics["failed_solves"] + (~good).astype(jnp.float32)
        return u, state_of(count, kept(mean, state.mean), lam, kept(alpha, state.step), failed)

    return optimizer(Method("egn", learning_rate), transformation("egn", init, update, needs_params=True))


# Matrix products only, for any size, and damping that adapts as fast as in the authors' second release.
_MSE: dict[str, Any] = {
    "adaptive_damping": True,
    "damping_increase": 1.5,
    "damping_decrease": 0.5,
    "loss": "mse",
    "solver": "cg",
    "cg_iterations": 20,
}
register(
    egn,
    form="optimizer",
    paper=PAPER,
    needs=("model_fn", "targets"),
    collectives="gramian",
    notes="asks for the predictions of the minibatch, and does not read the gradients",
    # The rate is a share of the step to the minimum of the model.
    race=Race(3e-1, _MSE),
    variants={"egn_softmax": Race(3e-1, {**_MSE, "loss": "softmax_ce"})},
)
