"""Central flows: what an optimizer at the edge of stability does on average over its oscillations.

An update is w <- w - P(nu)^(-1) grad L(w), and one unit of time is one step.

    rule              P                              nu' = f(nu, g)
    gd                1 / lr                         none
    scalar_rmsprop    (sqrt(nu) + eps) / lr          c (|g|^2 - nu),   one number        c = (1 - b2) / b2
    rmsprop           (sqrt(nu) + eps) / lr          c (g^2 - nu),     per parameter

Stable flow:   dw/dt = -P^(-1) grad L,    dnu/dt = f(nu, grad L)

Central flow:  with the eigenvectors U of P^(-1) H whose eigenvalues are critical (U^T P U = I, U^T H U = diag(lambda)),
and Sigma = U X U^T the covariance of the oscillation,

    dw/dt  = -P^(-1) [grad L + 1/2 grad_w <Sigma, H(w)>]
    dnu/dt = f(nu, grad L) + c |H Sigma H|      the trace for one number, the diagonal per parameter

X >= 0 solves <X, A + dt B[X]> = 0, A + dt B[X] >= 0 (as matrices): 2 P - H stays nonnegative along U, and only what is
at the edge oscillates. A = diag(2 - lambda) + dt (drift of U^T (2 P - H) U of the stable flow), B[X] the drift by X.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.diagnostics.gradient_subspace_fraction import top_eigenpairs
from gradkit.diagnostics.spectral_density import checked_steps
from gradkit.engine.core import widen
from gradkit.engine.krylov import combination, inner
from gradkit.engine.lazy_gradients import inner_products
from gradkit.engine.matching import check_match
from gradkit.engine.norms import global_square
from gradkit.types import Key, PyTree, Scalar

PAPER = Paper("Understanding Optimization in Deep Learning with Central Flows", "Cohen et al.", 2024, "2410.24206")
RULES = ("gd", "scalar_rmsprop", "rmsprop")


class FlowStep(NamedTuple):
    """What a step of a flow gives.

    Attributes:
      params: w after the step.
      state: nu after the step.
      eigenvalues: (k,), the largest eigenvalues of P^(-1) H before the step, in descending order; 2 is critical.
      X: (k, k), the covariance of the oscillation along the eigenvectors; 0 where it is stable.
      loss: L before the step.
      time_averaged_loss: L + 1/2 <H, Sigma>, the predicted mean of the loss of the optimizer over its oscillation.
    """

    params: Any
    state: Any
    eigenvalues: jax.Array
    X: jax.Array
    loss: jax.Array
    time_averaged_loss: jax.Array


def _add(x: Any, y: Any, factor: Any = 1.0) -> Any:
    return jax.tree.map(lambda a, b: a + jnp.asarray(factor, a.dtype) * b, x, y)


def _check(method: str, rule: Any, params: Any, state: Any, numbers: dict[str, Any]) -> None:
    checks.choice("rule", rule, RULES)
    checks.real("learning_rate", numbers["learning_rate"], "(0, inf)")
    checks.real("b2", numbers["b2"], "(0, 1)")
    checks.real("eps", numbers["eps"], "[0, inf)")
    checks.real("dt", numbers["dt"], "(0, inf)")
    checked_steps(method, params, None, 1)
    if rule == "rmsprop":
        check_match(method, state, params)
    elif rule == "scalar_rmsprop" and (state is None or jax.tree.structure(state).num_leaves != 1 or jnp.shape(state)):
        raise ValueError(
            f"{method}: state must be one number for scalar_rmsprop, got {state!r}; write the square of the norm "
            "of the first gradient"
        )
    elif rule == "gd" and state is not None:
        raise ValueError(f"{method}: state must be None for gd, which has none, got {state!r}; write state=None")


def _denominator(rule: str, params: Any, state: Any, rate: Any, eps: Any) -> Any:
    """P as a tree of arrays that broadcast against the parameters."""
    if rule == "gd":
        return jax.tree.map(lambda x: jnp.ones((1,) * x.ndim, x.dtype) / jnp.asarray(rate, x.dtype), params)
    if rule == "scalar_rmsprop":
        root = jnp.sqrt(state)
        return jax.tree.map(
            lambda x: ((root.astype(x.dtype) + eps) / jnp.asarray(rate, x.dtype)).reshape((1,) * x.ndim), params
        )
    return jax.tree.map(lambda v, x: (jnp.sqrt(v.astype(x.dtype)) + eps) / jnp.asarray(rate, x.dtype), state, params)


def _state_drift(rule: str, state: Any, g: Any, c: Any) -> Any:
    """f(nu, g)."""
    if rule == "gd":
        return None
    if rule == "scalar_rmsprop":
        return (c * (global_square(g) - state)).astype(state.dtype)
    return jax.tree.map(lambda v, x: (c * (jnp.square(x) - v)).astype(v.dtype), state, g)


def _moved(rule: str, params: Any, state: Any, move: Any, drift: Any, dt: Any) -> tuple[Any, Any]:
    new = _add(params, move, dt)
    if rule == "gd":
        return new, None
    return new, jax.tree.map(lambda v, d: v + jnp.asarray(dt, v.dtype) * d, state, drift)


def stable_flow_step(
    rule: str,
    loss_fn: Callable[..., Any],
    params: PyTree,
    state: Any,
    *args: Any,
    learning_rate: Scalar,
    b2: Scalar = 0.99,
    eps: Scalar = 0.0,
    dt: Scalar = 0.25,
) -> tuple[Any, Any]:
    """A step of the flow that an optimizer would follow if it did not oscillate: gradient flow with its preconditioner.

        dw/dt = -P^(-1) grad L,   dnu/dt = (1 - b2) / b2 (g^2 - nu),   P = (sqrt(nu) + eps) / learning_rate

    Args:
      rule: "gd", "scalar_rmsprop" or "rmsprop".
      loss_fn: (params, *args) -> a scalar, differentiable.
      params: w.
      state: nu: None for gd, a number > 0 for scalar_rmsprop, a tree like `params` for rmsprop, such as the square of
        the first gradient.
      *args: further arguments of the loss, such as the data set: the flow is of the full batch.
      learning_rate: > 0; it decides how much time passes.
      b2: decay of nu, in (0, 1). Default 0.99 (paper).
      eps: >= 0, added to the root. Default 0 (paper's code).
      dt: length of the step in steps of the optimizer, > 0. Default 1/4 (paper's code, for gd). An Euler step is stable
        while dt times the largest eigenvalue of P^(-1) H is below 2: above the edge of stability take dt = 1 / max(4, 2
        lambda) (paper's code).

    Returns:
      (params, state) after a time dt.

    Raises:
      ValueError: an argument outside its range, a state that does not fit the rule.

    Example:
      >>> loss = lambda x: 0.5 * x**2
      >>> x, state = jnp.array(1.0), None
      >>> for _ in range(2):
      ...     x, state = stable_flow_step("gd", loss, x, state, learning_rate=0.1, dt=0.5)
      >>> round(float(x), 4)  # (1 - 0.05)^2; gradient descent has 0.9, the flow e^(-0.1)
      0.9025

    Reference: Cohen et al. Understanding Optimization in Deep Learning with Central Flows. 2024, arXiv 2410.24206.
    eps is outside of the root, as in the code; its docstring has it inside.
    """
    checks.arrays(params=params)
    checks.function("loss_fn", loss_fn)
    numbers = {"learning_rate": learning_rate, "b2": b2, "eps": eps, "dt": dt}
    _check("stable_flow_step", rule, params, state, numbers)
    params = jax.tree.map(jnp.asarray, params)
    state = jax.tree.map(lambda v: jnp.asarray(v, jnp.result_type(float)), state)
    g = jax.grad(lambda x: loss_fn(x, *args))(params)
    P = _denominator(rule, params, state, learning_rate, eps)
    move = jax.tree.map(lambda x, p: -x / p, g, P)
    return _moved(rule, params, state, move, _state_drift(rule, state, g, (1 - b2) / b2), dt)


def central_flow_step(
    rule: str,
    loss_fn: Callable[..., Any],
    params: PyTree,
    state: Any,
    *args: Any,
    learning_rate: Scalar,
    b2: Scalar = 0.99,
    eps: Scalar = 0.0,
    dt: Scalar = 0.25,
    max_critical: int = 1,
    threshold: Scalar = 1.95,
    lanczos_steps: int | None = None,
    iterations: int = 300,
    key: Key = 0,
) -> FlowStep:
    """A step of the central flow: the path of an optimizer at the edge of stability, its oscillations averaged out.

        dw/dt  = -P^(-1) [grad L + 1/2 grad_w <Sigma, H(w)>],   Sigma = U X U^T the covariance of the oscillation
        dnu/dt = (1 - b2) / b2 (g^2 + diag(H Sigma H) - nu)
        X >= 0,   A + dt B[X] >= 0,   <X, A + dt B[X]> = 0      so that lambda_max(P^(-1) H) stays at 2

    For gradient descent with one critical eigenvalue S = 2 / lr: dw/dt = -lr (I - n n^T) grad L, n = grad S / |grad S|,
    with the variance sigma^2 = 2 <-grad L, grad S> / |grad S|^2 along its eigenvector.

    Args:
      rule: "gd", "scalar_rmsprop" or "rmsprop".
      loss_fn: (params, *args) -> a scalar, three times differentiable.
      params: w.
      state: nu: None for gd, a number > 0 for scalar_rmsprop, a tree like `params` for rmsprop.
      *args: further arguments of the loss, such as the data set: the flow is of the full batch.
      learning_rate: > 0.
      b2: decay of nu, in (0, 1). Default 0.99 (paper).
      eps: >= 0, added to the root. Default 0 (paper's code).
      dt: length of the step in steps of the optimizer, > 0. Default 1/4 (paper's code).
      max_critical: k, how many eigenvalues may be critical, from 1 to the number of parameters. With 1 (default) X is
        in closed form; with more, by projected gradient steps. k (k + 1) / 2 gradients are in memory.
      threshold: eigenvalues above it are critical, in (0, 2]; 2 is the edge. Default 1.95 (paper's code).
      lanczos_steps: products with the Hessian for the eigenvectors. Default None: 2 k + 10, or all.
      iterations: projected gradient steps for X where max_critical > 1, >= 1. Default 300.
      key: a typed key or an integer, for the first Lanczos vector. Default 0.

    Returns:
      A `FlowStep`. Costs about `lanczos_steps` products with the Hessian and k (k + 1) / 2 third derivatives: for small
      networks, in float64.

    Raises:
      ValueError: an argument outside its range, a state that does not fit the rule.

    Example:
      >>> loss = lambda w: w[0] ** 2 * (1 + w[1]) / 2 - 4 * w[1] + 0.1 * w[1] ** 2
      >>> step = jax.jit(lambda w: central_flow_step("gd", loss, w, None, learning_rate=0.1))
      >>> found = step(jnp.array([0.0, 19.0]))
      >>> abs(found.params).round(3).tolist(), round(found.X.item() * 0.1, 3)  # it stays, with a variance of 0.4
      ([0.0, 19.0], 0.4)

    Reference: Cohen et al. Understanding Optimization in Deep Learning with Central Flows. 2024, arXiv 2410.24206. The
    convex problem for X is solved by accelerated projected gradient steps, with B symmetrised and its negative
    eigenvalues clipped, where the paper's code calls a solver; eps is outside of the root, as in the code.
    """
    checks.arrays(params=params)
    checks.function("loss_fn", loss_fn)
    numbers = {"learning_rate": learning_rate, "b2": b2, "eps": eps, "dt": dt}
    _check("central_flow_step", rule, params, state, numbers)
    checks.real("threshold", threshold, "(0, 2]")
    iterations = checks.integer("iterations", iterations, 1)
    lanczos_steps = checks.integer("lanczos_steps", lanczos_steps, 1, optional=True)
    k = checks.integer("max_critical", max_critical, 1)
    params = jax.tree.map(jnp.asarray, widen(params))
    state = jax.tree.map(lambda v: jnp.asarray(v, jnp.result_type(float)), state)

    def loss(x: Any) -> jax.Array:
        return loss_fn(x, *args)

    c = (1 - b2) / b2
    value, g = jax.value_and_grad(loss)(params)
    P = _denominator(rule, params, state, learning_rate, eps)
    root = jax.tree.map(jnp.sqrt, P)
    _, hessian = jax.linearize(jax.grad(loss), params)

    def whitened(v: Any) -> Any:
        """The product with P^(-1/2) H P^(-1/2), which has the eigenvalues of P^(-1) H."""
        out = hessian(jax.tree.map(lambda x, r: x / r, v, root))
        return jax.tree.map(lambda x, r: x / r, out, root)

    pairs = top_eigenpairs(whitened, key, params, k, steps=lanczos_steps)
    lam = pairs.values
    U = jax.tree.map(lambda x, r: x / r[None], pairs.vectors, root)
    critical = (lam > jnp.asarray(threshold, lam.dtype)).astype(lam.dtype)
    mask = critical[:, None] * critical[None]

    # The gradients of u_i^T H(w) u_j, for all pairs i <= j.
    first, second = np.triu_indices(k)
    ends = [jax.tree.map(lambda x, i=i: x[i], U) for i in (first, second)]

    def third(a: Any, b: Any) -> Any:
        def bent(x: Any) -> jax.Array:
            return jax.jvp(lambda y: jax.jvp(loss, (y,), (a,))[1], (x,), (b,))[1]

        return jax.grad(bent)(params)

    G = jax.vmap(third)(*ends)
    divided = jax.tree.map(lambda x, p: x / p[None], G, P)
    twice = jnp.asarray(np.where(first == second, 1.0, 2.0), lam.dtype)
    # Of the pair (i, j), i <= j, its place; and back from pairs to a symmetric matrix.
    place = np.zeros((k, k), int)
    place[first, second] = place[second, first] = np.arange(len(first))

    move = jax.tree.map(lambda x, p: -x / p, g, P)
    drift = _state_drift(rule, state, g, c)
    stable = -jax.vmap(lambda row: inner(row, move))(G)
    B = 0.5 * inner_products(G, divided)
    grown: Any = None
    # Where P changes with time, so does the edge: by what f says, and by the oscillation's part in nu.
    if rule != "gd":
        products = jax.tree.map(
            lambda u, p: u * p[None] * lam.astype(u.dtype).reshape(-1, *[1] * (u.ndim - 1)), U, P
        )  # H u_i = lambda_i P u_i
        heights = [jax.tree.map(lambda x, i=i: x[i], products) for i in (first, second)]
        if rule == "rmsprop":
            grown = jax.tree.map(lambda a, b: c * a * b, *heights)
            slope = jax.tree.map(lambda v: _slope(v, learning_rate), state)
            weighted = jax.tree.map(lambda a, b, s: a * b * s[None], *ends, slope)
            stable = stable + 2 * jax.vmap(lambda row: inner(row, drift))(weighted)
            B = B + 2 * inner_products(weighted, grown)
        else:
            grown = c * jnp.asarray(inner_products(products, products))[first, second]
            weighted = _slope(state, learning_rate) * inner_products(U, U)[first, second]
            stable = stable + 2 * drift * weighted
            B = B + 2 * weighted[:, None] * grown[None]
    dt_ = jnp.asarray(dt, lam.dtype)
    A = (jnp.diag(2 - lam) + dt_ * stable[place]) * mask
    X = _oscillation(A, dt_ * B, twice, place, mask, iterations)

    shares = twice * X[first, second]
    pushed = combination(shares, divided)
    move = _add(move, pushed, -0.5)
    if rule == "rmsprop":
        drift = _add(drift, combination(shares, grown))
    elif rule == "scalar_rmsprop":
        drift = drift + jnp.sum(shares * grown).astype(drift.dtype)
    new, state = _moved(rule, params, state, move, drift, dt)
    return FlowStep(new, state, lam, X, value, value + 0.5 * jnp.sum(lam * jnp.diagonal(X)).astype(value.dtype))


def _slope(nu: jax.Array, rate: Any) -> jax.Array:
    """dP/dnu."""
    return 1 / (2 * jnp.sqrt(nu) * jnp.asarray(rate, nu.dtype))


def _oscillation(
    A: jax.Array, B: jax.Array, twice: jax.Array, place: np.ndarray, mask: jax.Array, iterations: int
) -> jax.Array:
    """X >= 0 that minimises <A, X> + 1/2 <X, B[X]>.

    Args:
      A: (k, k).
      B: (pairs, pairs); B[X] of a pair is the sum over pairs of its entries times `twice` times X.
      twice: (pairs,), how often a pair is in a symmetric matrix.
      place: (k, k), the pair of each entry.
      mask: (k, k), 1 where both ends are critical.
      iterations: accelerated projected gradient steps.
    """
    k = len(A)
    tiny = jnp.finfo(A.dtype).tiny
    if k == 1:
        # <X, A + B X> = 0 in closed form; without curvature of the problem nothing would stop X, and it stays 0.
        positive = tiny < B
        return jnp.where(positive, jnp.maximum(-A, 0) / jnp.where(positive, B, 1), 0) * mask
    first, second = np.triu_indices(k)
    # With pairs weighed by sqrt(twice) the inner product of matrices is that of vectors.
    r = jnp.sqrt(twice)
    M = r[:, None] * B * r[None]
    keep = mask[first, second]
    M = (M + M.T) / 2 * keep[:, None] * keep[None]
    values, vectors = jnp.linalg.eigh(M)
    M = (vectors * jnp.maximum(values, 0)[None]) @ vectors.T
    step = 1 / jnp.maximum(values[-1], tiny)
    a = r * A[first, second]

    def projected(x: jax.Array) -> jax.Array:
        """The nearest vector of a positive semidefinite matrix."""
        values, vectors = jnp.linalg.eigh((x / r)[place])
        matrix = (vectors * jnp.maximum(values, 0)[None]) @ vectors.T
        return r * matrix[first, second] * keep

    def one(carry: Any, _: None) -> tuple[Any, None]:
        x, y, t = carry
        new = projected(y - step * (a + M @ y))
        # Restarted where it overshoots.
        back = jnp.sum((y - new) * (new - x)) > 0
        later = jnp.where(back, 1.0, (1 + jnp.sqrt(1 + 4 * t * t)) / 2).astype(t.dtype)
        y = jnp.where(back, new, new + (t - 1) / later * (new - x))
        return (new, y, later), None

    zero = jnp.zeros_like(a)
    (x, _, _), _ = jax.lax.scan(one, (zero, zero, jnp.ones((), a.dtype)), None, iterations)
    X = (x / r)[place]
    return jnp.where(values[-1] > tiny, X, 0)


SHARED: dict[str, Any] = {"form": "function", "paper": PAPER}
EXAMPLE: dict[str, Any] = {
    "rule": "gd",
    "loss_fn": lambda w: jnp.sum(w**4),
    "params": np.ones(2, np.float32),
    "state": None,
    "learning_rate": 0.1,
}
register(stable_flow_step, **SHARED, example=EXAMPLE)
register(central_flow_step, **SHARED, example=EXAMPLE)
