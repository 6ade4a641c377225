"""Accelerated gradients for a smooth loss and a penalty that makes coefficients exactly zero."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment, scalar, transformation, zeros
from gradkit.engine.norms import global_norm
from gradkit.leaves import check_mask, check_mask_form, resolve_mask
from gradkit.linalg import mcp_concave_grad, prox_l1, scad_concave_grad
from gradkit.types import Mask, Scalar

PAPER = Paper(
    "Accelerated Gradient Methods for Sparse Statistical Learning with Nonconvex Penalties",
    "Yang, Asgharian, Bhatnagar",
    2020,
    "2009.10629",
)


class NonconvexAcceleratedGradientState(NamedTuple):
    """Number of steps since the last restart, the current alpha, the last two distances that y moved (the older first),
    and the distances of x and z from the user's parameters."""

    since: jax.Array
    alpha: jax.Array
    speeds: tuple[jax.Array, jax.Array]
    x: Any
    z: Any

    def eval_params(self, params: Any) -> Any:
        """z, with its exact zeros."""
        return jax.tree.map(lambda y, d: (y.astype(d.dtype) + d).astype(y.dtype), params, self.z)


def _next(alpha: jax.Array) -> jax.Array:
    return 2 / (1 + jnp.sqrt(1 + 4 / jnp.square(alpha)))


def nonconvex_accelerated_gradient(
    lipschitz: Scalar,
    *,
    l1: Scalar = 0.0,
    penalty: str | None = "scad",
    a: Scalar = 3.7,
    gamma: Scalar = 2.0,
    step_fraction: Scalar = 0.99,
    restart: bool = True,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Minimises a smooth loss plus SCAD, MCP or the lasso, by accelerated proximal gradients.

    Equations, for the penalty lam |z| + h(z) with a smooth concave h (`gk.linalg.scad_concave_grad`,
    `mcp_concave_grad`), the larger L of `lipschitz` and the curvature of h, omega = step_fraction / L, alpha_0 = 1:

        alpha_k  = 2 / (1 + sqrt(1 + 4 / alpha_{k-1}^2)),   or 1 on a restart
        y_k      = (1 - alpha_k) z_{k-1} + alpha_k x_{k-1}              the user's parameters: gradients are taken here
        G        = gradient of the loss at y_k + h'(y_k)
        x_k      = soft(x_{k-1} - omega / alpha_k G, lam omega / alpha_k)
        z_k      = soft(y_k - omega G, lam omega)                       the solution: `gk.eval_params(state, params)`

    soft(x, t) = sign(x) max(|x| - t, 0). A restart happens where y moved less in this step than in the previous one, at
    least 3 steps after the last restart. The updates are complete: no learning rate follows.

    Args:
      lipschitz: Lipschitz constant of the gradient of the loss, > 0; of |y - X b|^2 / (2 n) the largest eigenvalue
        of X^T X / n.
      l1: weight lam of the penalty, >= 0. Default 0: none.
      penalty: "scad", "mcp", or None for only lam |z|. Default "scad".
      a: of SCAD, > 2. Default 3.7 (Fan, Li 2001).
      gamma: of MCP, > 1. Default 2.
      step_fraction: omega L, in (0, 1). Default 0.99 (official code).
      restart: whether the momentum is reset where the speed falls. Default True (official code).
      mask: which leaves are penalised; give intercepts False. Default all.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter and four scalars. Collectives: one scalar
      with `restart`, none without.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> from gradkit.transforms import eval_params
      >>> tx = nonconvex_accelerated_gradient(1.0, l1=0.5, penalty="mcp")
      >>> y = jnp.zeros(3)
      >>> state, ols = tx.init(y), jnp.array([0.3, 0.75, 4.0])  # minimise |y - ols|^2 / 2 + penalty
      >>> for _ in range(40):
      ...     u, state = tx.update(y - ols, state, y)
      ...     y = y + u
      >>> print(eval_params(state, y).round(3))
      [0.  0.5 4. ]

    Reference: Yang, Asgharian, Bhatnagar. Accelerated Gradient Methods for Sparse Statistical Learning with Nonconvex
    Penalties. 2020, arXiv 2009.10629. This is the authors' original module; a later solver of theirs is another method
    (an accelerated proximal gradient with adaptive restart) and adds h' with the wrong sign.
    """
    checks.switch(restart=restart)
    checks.real("lipschitz", lipschitz, "(0, inf)")
    checks.real("l1", l1, "[0, inf)")
    checks.choice("penalty", penalty, ("scad", "mcp", None))
    checks.real("a", a, "(2, inf)")
    checks.real("gamma", gamma, "(1, inf)")
    checks.real("step_fraction", step_fraction, "(0, 1)")
    concave: dict[str | None, tuple[Callable[[jax.Array], jax.Array], Callable[[], Any]]] = {
        "scad": (lambda y: scad_concave_grad(y, l1, a), lambda: 1 / (a - 1)),
        "mcp": (lambda y: mcp_concave_grad(y, l1, gamma), lambda: 1 / gamma),
        None: (jnp.zeros_like, lambda: 0.0),
    }
    slope, curvature = concave[penalty]
    check_mask_form(mask=mask)

    def init(params: optax.Params) -> NonconvexAcceleratedGradientState:
        check_mask(mask, params, method="nonconvex_accelerated_gradient", argument="mask", instead="mask=False")
        zero = jnp.zeros((), jnp.result_type(float))
        alpha = _next(jnp.ones_like(zero))
        return NonconvexAcceleratedGradientState(
            jnp.zeros((), jnp.int32), alpha, (zero, jnp.zeros_like(zero)), zeros(params), zeros(params)
        )

    def update(updates: Any, state: NonconvexAcceleratedGradientState, params: Any = None, **extra: Any) -> Any:
        del extra
        on = resolve_mask(mask, updates)
        real = state.alpha.dtype
        L = jnp.maximum(jnp.asarray(lipschitz).astype(real), jnp.asarray(curvature()).astype(real))
        omega = jnp.asarray(step_fraction).astype(real) / L

        def step(base: jax.Array, G: jax.Array, length: jax.Array, on: bool) -> jax.Array:
            length = scalar(length, G)
            return prox_l1(base - length * G, length * scalar(l1, G)) if on else base - length * G

        G = jax.tree.map(lambda g, y, on: g + slope(y) if on else g, updates, params, on)
        x = jax.tree.map(lambda y, d, G, on: step(y + d, G, omega / state.alpha, on), params, state.x, G, on)
        z = jax.tree.map(lambda y, G, on: step(y, G, omega, on), params, G, on)

        since = increment(state.since)
        falls = (state.speeds[0] > state.speeds[1]) & (since >= 3) if restart else jnp.zeros((), bool)
        alpha = jnp.where(falls, jnp.ones_like(state.alpha), _next(state.alpha))
        new = jax.tree.map(lambda z, x: (1 - scalar(alpha, z)) * z + scalar(alpha, x) * x, z, x)
        moved = jax.tree.map(jnp.subtract, new, params)
        speed = global_norm(moved).astype(real) if restart else jnp.zeros((), real)
        since = jnp.where(falls, 0, since)
        from_new = [jax.tree.map(jnp.subtract, end, new) for end in (x, z)]
        return moved, NonconvexAcceleratedGradientState(since, alpha, (state.speeds[1], speed), *from_new)

    return transformation("nonconvex_accelerated_gradient", init, update, needs_params=True)


register(
    nonconvex_accelerated_gradient,
    form="primitive",
    paper=PAPER,
    words=2,
    collectives="norms",
    golden=("adaptive/nonconvex_accelerated_gradient",),
    example={"lipschitz": 2.0, "l1": 0.1},
    opt_outs={"descends": "a complete method: the negative learning rate that the contract chains behind it undoes it"},
    notes="a complete method: no learning rate follows; the solution is gk.eval_params(state, params)",
)
