"""Stochastic dual descent: the weights of a Gaussian process or of kernel ridge regression, from rows of the kernel."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import at_count, increment, optimizer, scalar, transformation, wide_dtype, zeros
from gradkit.leaves import Method
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper("Stochastic Gradient Descent for Gaussian Processes Done Right", "Lin et al.", 2023, "2310.20581")


class StochasticDualDescentState(NamedTuple):
    """Number of updates made; the velocity; the average of the weights; the last learning rate as a metric."""

    count: jax.Array
    velocity: Any
    average: Any
    metrics: dict[str, jax.Array]

    exact_fields = ("average",)  # parameters, which gk.precision(state=...) must not round

    def eval_params(self, params: Any) -> Any:
        """The average, in the parameters' dtypes."""
        return jax.tree.map(lambda m, p: m.astype(p.dtype), self.average, params)


def dual_gradient(
    kernel_rows: jax.Array, alpha: jax.Array, targets: jax.Array, noise_variance: Scalar, idx: jax.Array
) -> jax.Array:
    """An unbiased gradient of the dual objective from a few rows of the kernel.

    Equation, with e_i the i-th unit vector, k_i row i of the kernel matrix, B the length of `idx` and N that of alpha:

        g = (N / B) sum over i in idx of e_i (k_i^T alpha + noise_variance alpha_i - y_i)

    Args:
      kernel_rows: (B, N), the rows k_i of the kernel matrix with the indices `idx`.
      alpha: (N,), the weights.
      targets: (N,), y: measurements; for a posterior sample, a prior sample with noise. For several right-hand sides
        use `jax.vmap` over alpha and targets.
      noise_variance: s^2 >= 0.
      idx: (B,) integers, drawn uniformly from the N: with replacement in the paper, without in the official notebook.
        A number that is drawn twice counts twice.

    Returns:
      An array (N,), zero outside of `idx`. On a mesh with sharded rows: one all-reduce of alpha's size.

    Raises:
      ValueError: shapes that do not fit, or a noise variance outside its range.

    Example:
      >>> K, y = jnp.array([[1.0, 0.5], [0.5, 1.0]]), jnp.array([1.0, 2.0])
      >>> idx = jnp.array([1])
      >>> print(dual_gradient(K[idx], jnp.zeros(2), y, 0.1, idx))
      [ 0. -4.]

    Reference: Lin et al. Stochastic Gradient Descent for Gaussian Processes Done Right. 2023, arXiv 2310.20581.
    """
    checks.arrays(alpha=alpha, targets=targets, idx=idx)
    checks.real("noise_variance", noise_variance, "[0, inf)")
    B, N = jnp.shape(idx)[0] if jnp.ndim(idx) == 1 else -1, jnp.shape(alpha)[0] if jnp.ndim(alpha) == 1 else -1
    if jnp.shape(kernel_rows) != (B, N) or jnp.shape(targets) != (N,) or not B:
        raise ValueError(
            f"dual_gradient: kernel_rows must be (B, N), alpha and targets (N,) and idx (B,) with B >= 1, got "
            f"{jnp.shape(kernel_rows)}, {jnp.shape(alpha)}, {jnp.shape(targets)} and {jnp.shape(idx)}; write "
            "dual_gradient(K[idx], alpha, targets, noise_variance, idx)"
        )
    wide = wide_dtype(alpha.dtype)
    a, y, rows = alpha.astype(wide), targets.astype(wide), kernel_rows.astype(wide)
    residual = jnp.matmul(rows, a, precision="highest") + scalar(noise_variance, a) * a[idx] - y[idx]
    return jnp.zeros_like(a).at[idx].add(residual * (N / B)).astype(alpha.dtype)


def stochastic_dual_descent(
    learning_rate: ScalarOrSchedule, *, momentum: Scalar = 0.9, nesterov: bool = True, average_decay: Scalar
) -> optax.GradientTransformationExtraArgs:
    """Stochastic dual descent (SDD): Gaussian processes by gradient steps, without a matrix in memory.

    Equations, for the solution a* = (K + s^2 I)^{-1} y, the minimum of |a|^2_{K + s^2 I} / 2 - y^T a:

        g = the gradient at p, such as `gk.dual_gradient`
        v = momentum v - learning_rate g
        a = a + v
        m = (1 - average_decay) a + average_decay m             the solution

    The parameters, where the gradient is taken, are p = a + momentum v with `nesterov`, else p = a.

    Args:
      learning_rate: step size >= 0, or a schedule. The paper has about 50 / N to 100 / N for N examples.
      momentum: decay of the velocity, in [0, 1). Default 0.9 (paper).
      nesterov: whether gradients are taken at a + momentum v. Default True (paper); the official notebook takes them
        at a.
      average_decay: decay of the geometric average that is the solution, in [0, 1): the paper's r is 1 - average_decay,
        about 100 / T for T steps.

    Returns:
      A transformation that needs `params`, which start at 0 in the paper. The solution is
      `gk.eval_params(state, params)`, the average; it starts at 0, and forgets that after some 1 / (1 - average_decay)
      steps. The updates are complete: no learning rate follows. State: 2 words per parameter, a counter and the metric
      `last_learning_rate`. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> K, y = jnp.array([[1.0, 0.5], [0.5, 1.0]]), jnp.array([1.0, 2.0])
      >>> tx, alpha = stochastic_dual_descent(0.1, average_decay=0.5), jnp.zeros(2)
      >>> state = tx.init(alpha)
      >>> for t in range(300):
      ...     idx = jnp.array([t % 2])
      ...     u, state = tx.update(dual_gradient(K[idx], alpha, y, 0.5, idx), state, alpha)
      ...     alpha = alpha + u
      >>> print(alpha.round(3), jnp.linalg.solve(K + 0.5 * jnp.eye(2), y).round(3))
      [0.25 1.25] [0.25 1.25]

    Reference: Lin et al. Stochastic Gradient Descent for Gaussian Processes Done Right. 2023, arXiv 2310.20581.
    """
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    checks.real("momentum", momentum, "[0, 1)")
    checks.switch(nesterov=nesterov)
    checks.real("average_decay", average_decay, "[0, 1)")
    name = "stochastic_dual_descent"

    def published(rate: Any) -> dict[str, jax.Array]:
        # A copy, so that donating the state does not delete a learning rate that is the caller's array.
        return {"last_learning_rate": jnp.array(rate, jnp.float32, copy=True)}

    def init(params: optax.Params) -> StochasticDualDescentState:
        count = jnp.zeros((), jnp.int32)
        rate = at_count(learning_rate, count, f"{name}: learning_rate")
        return StochasticDualDescentState(count, zeros(params), zeros(params), published(rate))

    def update(g: Any, state: StochasticDualDescentState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        rate = at_count(learning_rate, state.count, f"{name}: learning_rate")

        def leaf(g: jax.Array, v: jax.Array, m: jax.Array, p: jax.Array) -> tuple[jax.Array, ...]:
            mu, r = scalar(momentum, g), scalar(average_decay, g)
            new = mu * v - scalar(rate, g) * g
            a = (p - mu * v if nesterov else p) + new
            step = new + mu * (new - v) if nesterov else new
            return step, new, (1 - r) * a + r * m

        structure = jax.tree.structure(g)
        rows = [
            leaf(*row) for row in zip(*map(jax.tree.leaves, (g, state.velocity, state.average, params)), strict=True)
        ]
        step, velocity, average = (structure.unflatten([row[i] for row in rows]) for i in range(3))
        return step, StochasticDualDescentState(increment(state.count), velocity, average, published(rate))

    link = transformation(name, init, update, needs_params=True, complex_leaves=True)
    return optimizer(Method(name, learning_rate), link)


register(
    stochastic_dual_descent,
    form="optimizer",
    paper=PAPER,
    words=2,
    golden=("step_size/stochastic_dual_descent",),
    example={"average_decay": 0.9},
    notes="for the dual of a Gaussian process; the solution is gk.eval_params(state, params)",
    race=Race(1e-2, {"average_decay": 0.9}),
)
register(
    dual_gradient,
    form="function",
    paper=PAPER,
    example={
        "kernel_rows": np.eye(2, dtype=np.float32)[:1],
        "alpha": np.ones(2, np.float32),
        "targets": np.ones(2, np.float32),
        "noise_variance": 0.1,
        "idx": np.zeros(1, np.int32),
    },
)
