"""D-Adaptation: a growing lower bound of the distance to the solution in place of a learning rate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, ema_of_square
from gradkit.engine.anchors import copied, root_of, scalar_dtype
from gradkit.engine.core import abs_sq, at_count, cast, divide, increment, optimizer, scalar, transformation, zeros
from gradkit.engine.core import bias_correction as correction
from gradkit.engine.mismatches import check_fit
from gradkit.engine.norms import global_sums
from gradkit.leaves import Method, resolve_mask
from gradkit.leaves.scopes import decay_here
from gradkit.types import Mask, Scalar, ScalarOrSchedule

PAPER = Paper("Learning-Rate-Free Learning by D-Adaptation", "Defazio, Mishchenko", 2023, "2301.07733")


class DAdaptationState(NamedTuple):
    """Number of updates, and of those that moved; m and v (None where a method has none); s; x_0 (SGD); r; the norm of
    the first gradient (SGD); d and the learning rate as metrics."""

    count: jax.Array
    moved: jax.Array
    mu: Any
    nu: Any
    total: Any
    start: Any
    numerator: jax.Array
    first_norm: jax.Array
    metrics: dict[str, jax.Array]

    exact_fields = ("start", "total")  # the parameters of SGD are computed from both


class _Step(NamedTuple):
    """The result of a rule for a gradient: the step, m, v, s, r, d^, |s| and the norm of the first gradient."""

    updates: Any
    mu: Any
    nu: Any
    total: Any
    numerator: jax.Array
    found: jax.Array
    size: jax.Array
    first_norm: jax.Array


def _metrics(d: Any, rate: Any) -> dict[str, jax.Array]:
    # Copies, because donation deletes every array of the state, which may be the caller's.
    return {"d": jnp.array(d, copy=True), "last_learning_rate": jnp.array(rate, jnp.float32, copy=True)}


def _adapted(method: Method, kept: tuple[str, ...], d0: Any, growth_rate: Any, rule: Any) -> Any:
    """An optimizer from a rule (gradient, state, parameters, decay per leaf, learning rate, d, t) -> `_Step`.

    Args:
      method: its description.
      kept: the parameter-sized fields of the state that it uses.
      d0: the first estimate.
      growth_rate: largest factor by which d may grow in a step; None: no limit.
      rule: the equations.
    """
    name, rated = method.name, method.learning_rate
    checks.real("learning_rate", rated, "[0, inf)", schedule=True)
    checks.real("weight_decay", method.weight_decay, "[0, inf)", schedule=True)
    checks.real("d0", d0, "(0, inf)")
    checks.real("growth_rate", growth_rate, "(1, inf)", optional=True)

    def init(params: Any) -> DAdaptationState:
        dtype = scalar_dtype(params)
        fields = {field: zeros(params) if field in kept else None for field in ("mu", "nu", "total")}
        rate = at_count(rated, jnp.zeros((), jnp.int32), f"{name}: learning_rate")
        counts = [jnp.zeros((), jnp.int32) for _ in range(2)]
        return DAdaptationState(
            *counts,
            **fields,
            start=copied(params) if "start" in kept else None,
            numerator=jnp.zeros((), dtype),
            first_norm=jnp.zeros((), dtype),
            metrics=_metrics(jnp.asarray(d0).astype(dtype), rate),
        )

    def update(g: Any, state: DAdaptationState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        check_fit(name, params, state.total)
        d = state.metrics["d"]
        rate = jnp.asarray(at_count(rated, state.count, f"{name}: learning_rate")).astype(d.dtype)
        decay = decay_here(at_count(method.weight_decay, state.count, f"{name}: weight_decay"))
        mask = resolve_mask(method.weight_decay_mask, params)
        decayed = jax.tree.map(lambda x, on: scalar(decay, x) * x if on else jnp.zeros_like(x), params, mask)
        moved = increment(state.moved)
        new = rule(g, state, params, decayed, rate, d, moved)
        moves = (rate != 0) & (new.size != 0)
        most = new.found if growth_rate is None else jnp.minimum(new.found, d * scalar(growth_rate, d))
        after = (new.mu, new.nu, new.total, new.numerator, new.first_norm, moved, jnp.maximum(d, most))
        before = (state.mu, state.nu, state.total, state.numerator, state.first_norm, state.moved, d)
        mu, nu, total, numerator, first, moved, d = jax.tree.map(lambda a, b: jnp.where(moves, a, b), after, before)
        u = jax.tree.map(lambda u: jnp.where(moves, u, jnp.zeros_like(u)), new.updates)
        return u, DAdaptationState(
            increment(state.count), moved, mu, nu, total, state.start, numerator, first, _metrics(d, rate)
        )

    return optimizer(method, transformation(name, init, update, needs_params=True))


def _root(b2: Any) -> Any:
    return b2**0.5 if type(b2) in (int, float) else jnp.sqrt(b2)


def _estimate(state: DAdaptationState, q: Any, inner: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
    """r and d^ of Adam and Lion, from p and |s|_1."""
    r = ema(state.numerator, inner, q)
    return r, divide(r, (1 - scalar(q, r)) * size)


def dadapt_adam(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    bias_correction: bool = False,
    d0: Scalar = 1e-6,
    growth_rate: Scalar | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam without a learning rate to tune, by D-Adaptation.

    Equations of step t = 1, 2, ..., with the estimate d of the step before, q = sqrt(b2), and <a, b> and norms over all
    leaves:

        eta = d learning_rate                                  times sqrt(1 - b2^t) / (1 - b1^t) with bias_correction
        r = q r + (1 - q) eta <g, s / (sqrt(v) + eps)>         with the old s and v
        s = q s + (1 - q) eta g
        m = b1 m + (1 - b1) eta g
        v = b2 v + (1 - b2) g^2
        x <- x - eta weight_decay x - m / (sqrt(v) + eps)
        d^ = r / ((1 - q) |s|_1)
        d <- max(d, min(d^, d growth_rate))                    used from the next step on

    Where the learning rate or s is 0, only the number of the step changes.

    Args:
      learning_rate: factor >= 0 of the step size, or a schedule, which may be 0 anywhere. Default 1 (paper).
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root, >= 0. Default 1e-8 (official code).
      weight_decay: decoupled, times the step size, >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      bias_correction: whether the step size is corrected for moments that start at 0. Default False (official code).
      d0: the first estimate, > 0. Default 1e-6 (official code).
      growth_rate: largest factor by which the estimate grows in a step, > 1. Default None: no limit. 1.02 is a warm-up
        (official code).

    Returns:
      A transformation that needs `params`. State: 3 words per parameter and numbers. Metrics: `d`,
      `last_learning_rate`. Collectives: two scalars in one all-reduce.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `params` missing.

    Example:
      >>> tx = dadapt_adam(b1=0.0, b2=0.75, eps=0.0, d0=0.1)
      >>> x = jnp.array([3.0, -4.0])
      >>> print(tx.update(100 * x, tx.init(x), x)[0].round(4))  # whatever the scale of the loss
      [-0.2  0.2]

    Reference: Defazio, Mishchenko. Learning-Rate-Free Learning by D-Adaptation. 2023, arXiv 2301.07733; official code
    dadaptation 3.2. `optax.contrib.dadapt_adamw` always corrects the bias, has no growth_rate, and is NaN in all steps
    after one with a learning rate of 0.
    """
    checks.real("b1", b1, "[0, 1)")
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    checks.switch(bias_correction=bias_correction)
    q = _root(b2)

    def rule(g: Any, state: Any, params: Any, decayed: Any, rate: Any, d: Any, t: Any) -> _Step:
        del params
        eta = d * rate
        if bias_correction:
            eta = eta * jnp.sqrt(correction(b2, t, eta)) / correction(b1, t, eta)

        def over(x: jax.Array, v: jax.Array) -> jax.Array:
            return divide(x, jnp.sqrt(v) + scalar(eps, v))

        stepped = jax.tree.map(lambda g: cast(eta, g.dtype) * g, g)
        s = jax.tree.map(lambda s, g: ema(s, g, q), state.total, stepped)
        products = jax.tree.map(lambda g, s, v: g * over(s, v), g, state.total, state.nu)
        inner, size = (x.astype(d.dtype) for x in global_sums(products, jax.tree.map(jnp.abs, s)))
        r, found = _estimate(state, q, eta * inner, size)
        m = jax.tree.map(lambda m, g: ema(m, g, b1), state.mu, stepped)
        v = jax.tree.map(lambda v, g: ema_of_square(v, g, b2), state.nu, g)
        u = jax.tree.map(lambda m, v, w: -over(m, v) - cast(eta, w.dtype) * w, m, v, decayed)
        return _Step(u, m, v, s, r, found, size, state.first_norm)

    method = Method("dadapt_adam", learning_rate, weight_decay, weight_decay_mask)
    return _adapted(method, ("mu", "nu", "total"), d0, growth_rate, rule)


def dadapt_sgd(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    momentum: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    d0: Scalar = 1e-6,
    growth_rate: Scalar | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD without a learning rate to tune, by D-Adaptation.

    Equations, with the estimate d of the step before, and the decay weight_decay x added to the gradient g:

        lambda = d learning_rate / |g_1|
        r = r + lambda <g, s>                                  with the old s
        s = s + lambda g
        x <- momentum x + (1 - momentum) (x_0 - s)
        d^ = 2 r / |s|
        d <- max(d, min(d^, d growth_rate))                    used from the next step on

    Where the learning rate or s is 0, only the number of the step changes.

    Args:
      learning_rate: factor >= 0 of the step size, or a schedule, which may be 0 anywhere. Default 1 (paper).
      momentum: of the primal average, in [0, 1). Default 0 (official code).
      weight_decay: coupled: part of the gradient and of its norms, >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      d0: the first estimate, > 0. Default 1e-6 (official code).
      growth_rate: largest factor by which the estimate grows in a step, > 1. Default None: no limit. 1.02 is a warm-up
        (official code).

    Returns:
      A transformation that needs `params`; `init` must get the initial parameters, of which it keeps a copy. State: 2
      words per parameter and numbers. Metrics: `d`, `last_learning_rate`. Collectives: three scalars in one all-reduce.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `params` missing.

    Example:
      >>> tx = dadapt_sgd(d0=0.1)
      >>> x = jnp.array([3.0, -4.0])
      >>> print(tx.update(100 * x, tx.init(x), x)[0].round(4))  # the first step has the length d0
      [-0.06  0.08]

    Reference: Defazio, Mishchenko. Learning-Rate-Free Learning by D-Adaptation. 2023, arXiv 2301.07733; official code
    dadaptation 3.2, where the first gradient's norm is without the decay, which all other gradients contain: here it is
    with the decay. |g_1| is the norm of the first gradient that is not zero.
    """
    checks.real("momentum", momentum, "[0, 1)")

    def rule(g: Any, state: Any, params: Any, decayed: Any, rate: Any, d: Any, t: Any) -> _Step:
        del t
        g = jax.tree.map(jnp.add, g, decayed)
        # One all-reduce is enough: s is 0 before the first step, whose lambda needs |g|, and |s| = lambda |g| after it.
        known = divide(d * rate, state.first_norm)
        expected = jax.tree.map(lambda s, g: s + cast(known, g.dtype) * g, state.total, g)
        products = jax.tree.map(jnp.multiply, g, state.total)
        sums = global_sums(jax.tree.map(abs_sq, g), products, jax.tree.map(abs_sq, expected))
        square, inner, size = (x.astype(d.dtype) for x in sums)
        unknown, norm = state.first_norm == 0, root_of(square)
        first = jnp.where(unknown, norm, state.first_norm)
        by = divide(d * rate, first)
        s = jax.tree.map(lambda s, g: s + cast(by, g.dtype) * g, state.total, g)
        r, size = state.numerator + by * inner, jnp.where(unknown, by * norm, root_of(size))
        u = jax.tree.map(lambda x, x0, s: (1 - scalar(momentum, x)) * (x0 - s - x), params, state.start, s)
        return _Step(u, None, None, s, r, divide(2 * r, size), size, first)

    method = Method("dadapt_sgd", learning_rate, weight_decay, weight_decay_mask)
    return _adapted(method, ("total", "start"), d0, growth_rate, rule)


def dadapt_lion(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    d0: Scalar = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """Lion without a learning rate to tune, by D-Adaptation.

    Equations, with the estimate d of the step before, and q = sqrt(b2):

        eta = d learning_rate
        u = sign(b1 m + (1 - b1) g)
        r = q r + (1 - q) eta <u, s>                           with the old s
        s = q s + (1 - q) eta u
        m = b2 m + (1 - b2) eta g
        x <- (1 - eta weight_decay) x - eta u
        d <- max(d, r / ((1 - q) |s|_1))                       used from the next step on

    Where the learning rate or s is 0, only the number of the step changes.

    Args:
      learning_rate: factor >= 0 of the step size, or a schedule, which may be 0 anywhere. Default 1 (official code).
      b1: weight of the momentum in the direction, in [0, 1). Default 0.9 (official code).
      b2: decay of the momentum, in [0, 1). Default 0.999 (official code).
      weight_decay: decoupled, times the step size, >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      d0: the first estimate, > 0. Default 1e-6 (official code).

    Returns:
      A transformation that needs `params`. State: 2 words per parameter and numbers. Metrics: `d`,
      `last_learning_rate`. Collectives: two scalars in one all-reduce.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `params` missing.

    Example:
      >>> tx = dadapt_lion(d0=0.1)
      >>> x = jnp.array([3.0, -4.0])
      >>> print(tx.update(100 * x, tx.init(x), x)[0].round(4))
      [-0.1  0.1]

    Reference: Defazio, Mishchenko. Learning-Rate-Free Learning by D-Adaptation. 2023, arXiv 2301.07733; official code
    dadaptation 3.2. As in the code, the momentum is the mean of eta g, while the direction adds g without eta.
    """
    checks.real("b1", b1, "[0, 1)")
    checks.real("b2", b2, "[0, 1)")
    q = _root(b2)

    def rule(g: Any, state: Any, params: Any, decayed: Any, rate: Any, d: Any, t: Any) -> _Step:
        del params, t
        eta = d * rate
        sign = jax.tree.map(lambda m, g: jnp.sign(ema(m, g, b1)), state.mu, g)
        stepped = jax.tree.map(lambda u: cast(eta, u.dtype) * u, sign)
        s = jax.tree.map(lambda s, u: ema(s, u, q), state.total, stepped)
        products = jax.tree.map(jnp.multiply, sign, state.total)
        inner, size = (x.astype(d.dtype) for x in global_sums(products, jax.tree.map(jnp.abs, s)))
        r, found = _estimate(state, q, eta * inner, size)
        m = jax.tree.map(lambda m, g: ema(m, cast(eta, g.dtype) * g, b2), state.mu, g)
        u = jax.tree.map(lambda u, w: -u - cast(eta, w.dtype) * w, stepped, decayed)
        return _Step(u, m, None, s, r, found, size, state.first_norm)

    method = Method("dadapt_lion", learning_rate, weight_decay, weight_decay_mask)
    return _adapted(method, ("mu", "total"), d0, None, rule)


COMMON: dict[str, Any] = {
    "form": "optimizer",
    "paper": PAPER,
    "collectives": "norms",
    # With the default of 1e-6 the first steps would only find the scale.
    "example": {"d0": 1e-3},
    "race": Race(None, schedule=None),
}
register(dadapt_adam, **COMMON, words=3, golden=("modern/dadapt_adam",))
register(dadapt_sgd, **COMMON, words=2, golden=("modern/dadapt_sgd",))
register(dadapt_lion, **COMMON | {"example": {"d0": 1e-2}}, words=2, golden=("modern/dadapt_lion",))
