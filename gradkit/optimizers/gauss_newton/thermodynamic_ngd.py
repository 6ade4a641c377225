"""Natural gradient descent with a damped curvature matrix, and its approximation by a noisy physical system."""

import functools
import operator
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, optimizer, transformation, zeros
from gradkit.engine.keys import check_key, first_key, needed_key
from gradkit.engine.norms import global_norm
from gradkit.leaves import Method
from gradkit.linalg.egn import check_rows, check_solver, damped_inverse, gram, times_loss_hessian
from gradkit.optimizers.gauss_newton.predictions import LOSSES, Linearized, linearized
from gradkit.transforms import scale_by_learning_rate
from gradkit.types import Key, Scalar, ScalarOrSchedule

PAPER = Paper("Thermodynamic Natural Gradient Descent", "Donatella et al.", 2024, "2405.13817")
CURVATURES = ("ggn", "fisher", "empirical_fisher")
INITS = ("gradient", "previous", "zero")
INTEGRATORS = ("exact", "euler")
POWER_ITERATIONS = 5


def _curved(method: str, curvature: str, loss: str, params: Any, extra: Any) -> Linearized:
    """The linearized predictions, with the Q of the given curvature."""
    lin = linearized(method, loss, params, extra)
    if curvature == "empirical_fisher":
        r = lin.residual.reshape(lin.residual.shape[0], -1)
        return lin._replace(loss_hessian=r[:, :, None] * r[:, None, :])
    return lin


def ngd(
    learning_rate: ScalarOrSchedule,
    *,
    damping: Scalar,
    curvature: str = "ggn",
    loss: str = "mse",
    solver: str = "woodbury",
    cg_iterations: int = 100,
    cg_tolerance: Any = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """Natural gradient descent: the gradient divided by a damped curvature matrix.

    Equations, with J the derivative of the predictions of b examples, and g the incoming gradient:

        A = J^T Q J / b + damping I
        u = A^{-1} g
        x_t = x_{t-1} - learning_rate u

    Q is the second derivative of the loss by the predictions ("ggn", "fisher"), or Q_i = r_i r_i^T with the first
    derivative r_i of example i ("empirical_fisher"). Any gradient g is preconditioned; the curvature is that of the
    mean over the examples of half the squared error ("mse"), the cross-entropy of a softmax ("softmax_ce") or of
    sigmoids ("sigmoid_bce").

    Args:
      learning_rate: step size >= 0, or a schedule.
      damping: added to the curvature, in its units, > 0.
      curvature: "ggn", the Gauss-Newton matrix; "fisher", the same for these losses, which are log-likelihoods of
        exponential families; "empirical_fisher", the mean of outer products of example gradients. Default "ggn".
      loss: "mse", "softmax_ce" or "sigmoid_bce". Default "mse".
      solver: "woodbury" (at most 4096 examples times outputs), "cg" or "dense", as in
        `gk.linalg.damped_gauss_newton_solve`. Default "woodbury".
      cg_iterations: largest number of iterations of "cg", >= 1. Default 100.
      cg_tolerance: residual at which "cg" stops, relative to the gradient, in [0, 1). Default 1e-6.

    Returns:
      A transformation that needs `params` and the extra arguments `model_fn` and `targets`, or `residuals`, `jvp`,
      `vjp` and perhaps `loss_hessian`, as `gk.egn` does. No state except the counter of the learning rate. Collectives:
      an all-reduce of (b c)^2 numbers, and those of the model's products.

    Raises:
      ValueError: a hyperparameter outside its range; extra arguments that are missing or do not fit.

    Example:
      >>> tx, x = ngd(1.0, damping=1.0), jnp.zeros(2)
      >>> model_fn = lambda w: w * jnp.array([1.0, 3.0])  # J^T J / 2 = diag(1/2, 9/2)
      >>> u, _ = tx.update(jnp.array([3.0, 11.0]), tx.init(x), x, model_fn=model_fn, targets=jnp.ones(2))
      >>> print(u.round(3))
      [-2. -2.]

    Reference: Donatella et al. Thermodynamic Natural Gradient Descent. 2024, arXiv 2405.13817, whose baseline it is;
    Amari. Natural Gradient Works Efficiently in Learning. 1998. In float32 "woodbury" loses digits where the damping is
    less than 1e-4 of the curvature; `gk.egn`, which computes the gradient itself, does not.
    """
    checks.real("damping", damping, "(0, inf)")
    checks.choice("curvature", curvature, CURVATURES)
    checks.choice("loss", loss, LOSSES)
    check_solver(solver, cg_iterations, cg_tolerance)

    def update(g: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, optax.EmptyState]:
        lin = _curved("ngd", curvature, loss, params, extra)
        check_rows("ngd", lin.residual, solver)
        rest: Any = {"solver": solver, "cg_iterations": cg_iterations, "cg_tolerance": cg_tolerance}
        Q = lin.loss_hessian
        return damped_inverse(lin.jvp, lin.vjp, g, like=lin.residual, damping=damping, loss_hessian=Q, **rest), state

    link = transformation("ngd", lambda params: optax.EmptyState(), update, needs_params=True)
    return optimizer(Method("ngd", learning_rate), link, scale_by_learning_rate(learning_rate))


class ThermodynamicNgdState(NamedTuple):
    """The key of the next step, where it was given; the state v of the system, where it is not reset; with "euler" the
    ratio of the step to the largest stable one, as a metric."""

    key: Any
    v: Any
    metrics: dict[str, jax.Array]


def _normal(key: jax.Array, like: Any) -> Any:
    """Standard normal numbers of the shapes and dtypes of a tree."""
    leaves, structure = jax.tree.flatten(like)
    drawn = [jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype) for i, x in enumerate(leaves)]
    return structure.unflatten(drawn)


def _plus(*trees: Any) -> Any:
    return jax.tree.map(lambda *xs: functools.reduce(operator.add, xs), *trees)


def _times(scale: Any, tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(scale).astype(x.dtype) * x, tree)


def _exact(lin: Linearized, damping: Any, noise: Any) -> Callable[[Any, Any, Any, Any], Any]:
    """The exact solution: a function (v_0, g, time, normal numbers or None) -> v(time)."""
    r, Q, b = lin.residual, lin.loss_hessian, lin.residual.shape[0]
    lam, S = jnp.asarray(damping).astype(r.dtype), None
    if Q is not None:  # S S^T = Q
        q, V = jnp.linalg.eigh(Q)
        S = V * jnp.sqrt(jnp.maximum(q, 0))[:, None, :]
    St = None if S is None else jnp.swapaxes(S, 1, 2)
    K = times_loss_hessian(St, times_loss_hessian(St, gram(lin.jvp, lin.vjp, r) / b).T)
    sigma, U = jnp.linalg.eigh((K + K.T) / 2)
    # An eigenvalue below the rounding of the others is 0: a quotient by it would be rounding as well.
    there = sigma > sigma.size * jnp.finfo(r.dtype).eps * jnp.max(sigma, initial=0)
    sigma = jnp.where(there, sigma, jnp.ones_like(sigma))

    def applied(terms: list[tuple[Any, Any]]) -> Any:
        """The sum of f(A) v over pairs (f, v)."""
        rows, plain = jnp.zeros(r.size, r.dtype), []
        for f, v in terms:
            phi = jnp.where(there, (f(lam + sigma) - f(lam)) / sigma, jnp.zeros_like(sigma))
            w = times_loss_hessian(St, lin.jvp(v).reshape(-1))
            rows = rows + phi * jnp.matmul(U.T, w[:, None], precision="highest")[:, 0]
            plain.append(_times(f(lam), v))
        w = times_loss_hessian(S, jnp.matmul(U, rows[:, None], precision="highest")[:, 0])
        return _plus(*plain, _times(1 / b, lin.vjp(w.reshape(r.shape))))

    def run(v: Any, g: Any, time: Any, xi: Any) -> Any:
        t, n = jnp.asarray(time).astype(r.dtype), jnp.asarray(noise).astype(r.dtype)
        terms = [(lambda x: -jnp.expm1(-x * t) / x, g), (lambda x: jnp.exp(-x * t), v)]
        if xi is not None:
            terms.append((lambda x: jnp.sqrt(n * -jnp.expm1(-2 * x * t) / x), xi))
        return applied(terms)

    return run


def _product(lin: Linearized, damping: Any) -> Callable[[Any], Any]:
    """The function v -> A v."""

    def times(v: Any) -> Any:
        row = times_loss_hessian(lin.loss_hessian, lin.jvp(v).reshape(-1)).reshape(lin.residual.shape)
        return _plus(_times(1 / row.shape[0], lin.vjp(row)), _times(damping, v))

    return times


def thermodynamic_ngd(
    learning_rate: ScalarOrSchedule,
    *,
    damping: Scalar,
    time: Any = None,
    noise: Scalar = 0.0,
    init: str = "gradient",
    integrator: str = "exact",
    step_size: Any = None,
    num_steps: int | None = None,
    delay: Any = 0.0,
    curvature: str = "ggn",
    loss: str = "mse",
    key: Key | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Natural gradient descent by a simulated physical system that relaxes towards the natural gradient for some time.

    Equations, with A as in `ngd`, J the derivative of the predictions, Q the curvature of the loss, g the gradient:

        A = J^T Q J / b + damping I
        dv = -(A v - g) dt + sqrt(2 noise) dW                   from v_0 for `time`
        x_t = x_{t-1} - learning_rate v

    The integrators:

        v(t) = A^{-1} g + e^{-At} (v_0 - A^{-1} g) + a Gaussian of covariance noise A^{-1} (I - e^{-2At})      "exact"
        v <- v - h (A v - g) + sqrt(2 h noise) xi,   stable for h < 2 / (largest eigenvalue of A)              "euler"

    With noise = 0 and v_0 = g, time = 0 is gradient descent and time = infinity is `ngd`. With A = R^T R + damping I, a
    function of A is computed from the b c x b c Gram matrix R R^T = U diag(sigma) U^T:

        f(A) v = f(damping) v + R^T U diag((f(damping + sigma) - f(damping)) / sigma) U^T R v

    Args:
      learning_rate: step size >= 0, or a schedule.
      damping: added to the curvature, in its units, > 0.
      time: how long the system runs, in units of 1 / curvature, >= 0, may be infinite. With "euler" it may be left out:
        `step_size` times `num_steps`. Default None.
      noise: strength of the noise, its temperature, >= 0. Default 0.
      init: v_0: "gradient" (from gradient descent to ngd as `time` grows), "previous" (v at the end of the last step,
        at first 0) or "zero". Default "gradient".
      integrator: "exact", or "euler", a step-by-step simulation, which needs no Gram matrix. Default "exact".
      step_size: h of "euler", > 0. Default None: `time` / `num_steps`.
      num_steps: steps of "euler", >= 1. Default None: `time` / `step_size`, rounded.
      delay: how long the system continues with the same A and g after v was read, while the next ones are computed, in
        units of `time`, >= 0. It has an effect only with init="previous". Default 0.
      curvature: "ggn", "fisher" or "empirical_fisher", as in `ngd`. Default "ggn".
      loss: "mse", "softmax_ce" or "sigmoid_bce". Default "mse".
      key: a typed key or integer, from which the noise of all steps is drawn. Default None: with noise `update` needs
        `key=`.

    Returns:
      A transformation that needs `params` and the extra arguments of `ngd`, and `key` with noise where none is given
      here. State: 1 word per parameter with init="previous", none otherwise. With "euler" it publishes the metric
      `euler_step`, h over the largest stable step as estimated by five power iterations; above 1 the system diverges,
      and outside `jit` there is a warning. Collectives: those of `ngd`; with "euler" a few per step.

    Raises:
      ValueError: a hyperparameter outside its range; `time`, `step_size` and `num_steps` that contradict each other or
        are too few; a delay without init="previous"; noise without a key; extra arguments that are missing or do not
        fit.

    Example:
      >>> tx, x = thermodynamic_ngd(1.0, damping=1.0, time=float("inf")), jnp.zeros(2)
      >>> model_fn = lambda w: w * jnp.array([1.0, 3.0])  # J^T J / 2 = diag(1/2, 9/2)
      >>> u, _ = tx.update(jnp.array([3.0, 11.0]), tx.init(x), x, model_fn=model_fn, targets=jnp.ones(2))
      >>> print(u.round(3))
      [-2. -2.]

    Reference: Donatella et al. Thermodynamic Natural Gradient Descent. 2024, arXiv 2405.13817. No official code was
    available: the scale of the noise (covariance noise A^{-1} at rest) and the effect of a delay follow our reading of
    the paper.
    """
    checks.real("damping", damping, "(0, inf)")
    checks.real("time", time, "[0, inf]", optional=True)
    checks.real("noise", noise, "[0, inf)")
    checks.choice("init", init, INITS)
    checks.choice("integrator", integrator, INTEGRATORS)
    checks.real("step_size", step_size, "(0, inf)", optional=True)
    num_steps = checks.integer("num_steps", num_steps, 1, optional=True)
    checks.real("delay", delay, "[0, inf)")
    checks.choice("curvature", curvature, CURVATURES)
    checks.choice("loss", loss, LOSSES)
    noisy = not (isinstance(noise, int | float) and noise == 0)
    runs_on = not (isinstance(delay, int | float) and delay == 0)
    check_key(key)
    if isinstance(delay, int | float) and delay > 0 and init != "previous":
        raise ValueError(
            f"thermodynamic_ngd: delay must be 0 with init={init!r}, which discards the state of the system, got "
            f"{delay!r}; write init='previous', or leave delay out"
        )
    h, n = _euler_steps(integrator, time, step_size, num_steps)
    if integrator == "euler" and isinstance(delay, Tracer):
        raise ValueError(
            "thermodynamic_ngd: delay must be a number with integrator='euler', which converts it to a number of "
            "steps, got a traced value; give a float, or integrator='exact'"
        )
    after = 0 if integrator == "exact" or not runs_on else round(float(delay) / h)

    def fresh(params: optax.Params) -> ThermodynamicNgdState:
        metrics = {"euler_step": jnp.zeros((), jnp.float32)} if integrator == "euler" else {}
        kept = first_key(key) if noisy else None
        return ThermodynamicNgdState(kept, zeros(params) if init == "previous" else None, metrics)

    def euler(A: Callable[[Any], Any], v: Any, g: Any, steps: int, now: Any) -> Any:
        def step(i: Any, v: Any) -> Any:
            terms = [v, _times(-h, A(v)), _times(h, g)]
            if now is not None:
                scale = jnp.sqrt(2 * h * jnp.asarray(noise).astype(float))
                terms.append(_times(scale, _normal(jax.random.fold_in(now, i), v)))
            return _plus(*terms)

        return jax.lax.fori_loop(0, steps, step, v)

    def update(g: Any, state: ThermodynamicNgdState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        lin = _curved("thermodynamic_ngd", curvature, loss, params, extra)
        then, now = needed_key("thermodynamic_ngd", state.key, extra.get("key")) if noisy else (None, None)
        later = None if now is None else jax.random.fold_in(now, 2**31 - 1)
        v = {"gradient": g, "previous": state.v, "zero": jax.tree.map(jnp.zeros_like, g)}[init]
        metrics, held = {}, None
        if integrator == "exact":
            check_rows("thermodynamic_ngd", lin.residual, "woodbury")
            run = _exact(lin, damping, noise)
            v = run(v, g, time, None if now is None else _normal(now, g))
            if init == "previous":
                held = run(v, g, delay, None if later is None else _normal(later, g)) if runs_on else v
        else:
            A = _product(lin, damping)
            share = h * _largest(A, g) / 2
            if not isinstance(share, Tracer) and float(share) > 1:
                warnings.warn(
                    f"thermodynamic_ngd: step_size is {float(share):.2g} of the largest stable one", stacklevel=2
                )
            metrics = {"euler_step": share.astype(jnp.float32)}
            v = euler(A, v, g, n, now)
            held = euler(A, v, g, after, later) if init == "previous" else None
        return v, ThermodynamicNgdState(then, held, metrics)

    link = transformation("thermodynamic_ngd", fresh, update, needs_params=True)
    return optimizer(Method("thermodynamic_ngd", learning_rate), link, scale_by_learning_rate(learning_rate))


def _euler_steps(integrator: str, time: Any, step_size: Any, num_steps: int | None) -> tuple[float, int]:
    """The step size h and the number of steps; 0 and 0 for the exact solution."""
    if integrator == "exact":
        if time is None or step_size is not None or num_steps is not None:
            raise ValueError(
                "thermodynamic_ngd: time must be given with integrator='exact', and neither step_size nor num_steps, "
                f"got time={time}, step_size={step_size}, num_steps={num_steps}"
            )
        return 0.0, 0
    if sum(value is not None for value in (time, step_size, num_steps)) < 2:
        raise ValueError(
            "thermodynamic_ngd: two of time, step_size and num_steps must be given with integrator='euler', got "
            f"time={time}, step_size={step_size}, num_steps={num_steps}"
        )
    steps = max(1, round(float(time) / float(step_size))) if num_steps is None else num_steps
    h = float(time) / steps if step_size is None else float(step_size)
    if time is not None and abs(h * steps - float(time)) > h / 2 + 1e-9 * float(time):
        raise ValueError(f"time must be step_size * num_steps, got {time} and {h} * {steps}")
    return h, steps


def _largest(A: Callable[[Any], Any], start: Any) -> jax.Array:
    """A lower bound of the largest eigenvalue of A, by power iterations."""
    v, norm = start, global_norm(start)
    for _ in range(POWER_ITERATIONS):
        v = A(_times(divide(jnp.ones_like(norm), norm), v))
        norm = global_norm(v)
    return norm


NEEDS = ("model_fn", "targets")
NOTES = "needs the predictions of the minibatch"
register(ngd, form="optimizer", paper=PAPER, needs=NEEDS, collectives="gramian", example={"damping": 1.0}, notes=NOTES)
register(
    thermodynamic_ngd,
    form="optimizer",
    paper=PAPER,
    needs=(*NEEDS, "key"),
    collectives="gramian",
    example={"damping": 0.1, "time": 1.0},
    notes=f"{NOTES}, and for a key where there is noise",
)
