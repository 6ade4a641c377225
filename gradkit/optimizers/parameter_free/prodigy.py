"""Prodigy: Adam whose step size is a growing estimate of the distance to the solution."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, ema_of_square
from gradkit.engine.anchors import copied, scalar_dtype
from gradkit.engine.core import (
    at_count,
    cast,
    check_decay_mask,
    divide,
    increment,
    optimizer,
    scalar,
    transformation,
    zeros,
)
from gradkit.engine.core import bias_correction as correction
from gradkit.engine.mismatches import check_fit
from gradkit.engine.norms import global_sums
from gradkit.leaves import Method, resolve_mask
from gradkit.leaves.scopes import decay_here
from gradkit.types import Mask, Scalar, ScalarOrSchedule

PAPER = Paper("Prodigy: An Expeditiously Adaptive Parameter-Free Learner", "Mishchenko, Defazio", 2023, "2306.06101")


class ScaleByProdigyState(NamedTuple):
    """Number of updates, and of those that moved; m and v; s and x_0 of the selected entries; r; the largest d^; and d
    and the learning rate as metrics."""

    count: jax.Array
    moved: jax.Array
    mu: Any
    nu: Any
    total: Any
    start: Any
    numerator: jax.Array
    largest: jax.Array
    metrics: dict[str, jax.Array]

    exact_fields = ("start",)  # parameters, which gk.precision(state=...) must not round


def selected(x: Any, slice_p: int) -> Any:
    """Every slice_p-th entry of the flattened leaf, along the first of as many axes as it has."""
    if slice_p == 1 or x.ndim == 0:
        return x
    return x.reshape(-1)[::slice_p].reshape(-1, *[1] * (x.ndim - 1))


def _selection(params: Any, slice_p: int) -> Any:
    """Copies of the selected entries of the parameters."""

    def of(x: Any) -> Any:
        if isinstance(x, jax.ShapeDtypeStruct):
            return x if slice_p == 1 else jax.eval_shape(lambda y: selected(y, slice_p), x)
        return selected(x, slice_p)

    return copied(jax.tree.map(of, params))


def _published(d: Any, rate: Any) -> dict[str, jax.Array]:
    # Copies, because donation deletes every array of the state, which may be the caller's.
    return {"d": jnp.array(d, copy=True), "last_learning_rate": jnp.array(rate, jnp.float32, copy=True)}


def scale_by_prodigy(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: Scalar | None = None,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: Scalar = 1e-6,
    d_coef: Scalar = 1.0,
    growth_rate: Scalar | None = None,
    slice_p: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """The step x_t - x_{t+1} of Prodigy as a link, without the sign.

    Equations: those of `prodigy`. The estimate depends on the learning rate, and the decay is multiplied by the step
    size, so neither can be a later link.

    Args:
      learning_rate: factor >= 0 of the step size, or a schedule, which may be 0 anywhere. Default 1 (paper).
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      b3: decay of the sums of the estimate, in [0, 1]. Default: the root of b2 (official code).
      eps: added to the root, times d, >= 0. Default 1e-8 (official code).
      weight_decay: decoupled, times the step size, >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      bias_correction: whether the step size is corrected for moments that start at 0. Default False (official code).
      safeguard_warmup: whether s sums (d / d0) d g, so that steps with a small learning rate have the same weight.
        Default False (official code); for a long warm-up.
      d0: the first estimate, > 0. Default 1e-6 (official code).
      d_coef: factor > 0 of the estimate. Default 1 (official code); try 0.5 and 2 first.
      growth_rate: largest factor by which the estimate grows in a step after it has left d0, > 1. Default None: no
        limit.
      slice_p: the estimate uses every slice_p-th entry, >= 1. Default 1 (official code); 11 saves most of its memory.

    Returns:
      A transformation that needs `params`; `init` must get the initial parameters, of which it keeps a copy. State:
      2 + 2 / slice_p words per parameter and numbers. Metrics: `d`, `last_learning_rate`. Collectives: two scalars in
      one all-reduce.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `params` missing.

    Example:
      >>> tx = scale_by_prodigy(b1=0.0, b2=0.75, eps=0.0, d0=0.1)
      >>> g = jnp.array([3.0, -4.0])
      >>> print(tx.update(g, tx.init(g), g)[0].round(4))  # d0 / sqrt(1 - b2), of the sign
      [ 0.2 -0.2]

    Reference: Mishchenko, Defazio. Prodigy: An Expeditiously Adaptive Parameter-Free Learner. 2023, arXiv 2306.06101;
    official code prodigyopt 1.1.2. See `gk.prodigy`.
    """
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    checks.real("b1", b1, "[0, 1)")
    checks.real("b2", b2, "[0, 1)")
    checks.real("b3", b3, "[0, 1]", optional=True)
    checks.real("eps", eps, "[0, inf)")
    checks.real("weight_decay", weight_decay, "[0, inf)", schedule=True)
    checks.switch(bias_correction=bias_correction, safeguard_warmup=safeguard_warmup)
    checks.real("d0", d0, "(0, inf)")
    checks.real("d_coef", d_coef, "(0, inf)")
    checks.real("growth_rate", growth_rate, "(1, inf)", optional=True)
    slice_p = checks.integer("slice_p", slice_p, 1)
    method = "scale_by_prodigy"
    RATE = f"{method}: learning_rate"

    def init(params: Any) -> ScaleByProdigyState:
        check_decay_mask(method, weight_decay_mask, params)
        dtype, start = scalar_dtype(params), _selection(params, slice_p)
        first, largest = (jnp.array(d0, dtype, copy=True) for _ in range(2))
        rate = at_count(learning_rate, jnp.zeros((), jnp.int32), RATE)
        count, moved = (jnp.zeros((), jnp.int32) for _ in range(2))
        m, v, s, r = zeros(params), zeros(params), zeros(start), jnp.zeros((), dtype)
        return ScaleByProdigyState(count, moved, m, v, s, start, r, largest, _published(first, rate))

    def update(g: Any, state: ScaleByProdigyState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        check_fit(method, params, state.mu)
        d, dtype = state.metrics["d"], state.largest.dtype
        rate = jnp.asarray(at_count(learning_rate, state.count, RATE)).astype(dtype)
        decay = decay_here(at_count(weight_decay, state.count, f"{method}: weight_decay"))
        moved = increment(state.moved)
        eta = d * rate
        if bias_correction:
            eta = eta * jnp.sqrt(correction(b2, moved, eta)) / correction(b1, moved, eta)
        least, coefficient = (jnp.asarray(x).astype(dtype) for x in (d0, d_coef))
        keep = b3 if b3 is not None else b2**0.5 if type(b2) in (int, float) else jnp.sqrt(b2)
        weight = d / least * (d if safeguard_warmup else eta)

        part = jax.tree.map(lambda g: selected(g, slice_p), g)
        s = jax.tree.map(lambda s, g: scalar(keep, s) * s + cast(weight, g.dtype) * g, state.total, part)
        product = jax.tree.map(lambda g, start, x: g * (start - selected(x, slice_p)), part, state.start, params)
        inner, size = (x.astype(dtype) for x in global_sums(product, jax.tree.map(jnp.abs, s)))
        r = scalar(keep, d) * state.numerator + d / least * eta * inner
        found = coefficient * divide(r, size)
        moves = (rate != 0) & (size != 0)
        new = jnp.where(d == least, jnp.maximum(d, found), d)
        largest = jnp.maximum(state.largest, found)
        new = largest if growth_rate is None else jnp.minimum(largest, new * scalar(growth_rate, new))

        def chosen(a: Any, b: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(moves, a, b), a, b)

        new, largest, r, moved, s = chosen(
            (new, largest, r, moved, s), (d, state.largest, state.numerator, state.moved, state.total)
        )
        m = chosen(jax.tree.map(lambda m, g: ema(m, cast(d, g.dtype) * g, b1), state.mu, g), state.mu)
        v = chosen(jax.tree.map(lambda v, g: ema_of_square(v, cast(d, g.dtype) * g, b2), state.nu, g), state.nu)
        step = jnp.where(moves, eta, jnp.zeros_like(eta))

        def direction(m: jax.Array, v: jax.Array, x: jax.Array, on: bool) -> jax.Array:
            u = divide(m, jnp.sqrt(v) + cast(new, v.dtype) * scalar(eps, v))
            return cast(step, u.dtype) * (u + scalar(decay, x) * x if on else u)

        u = jax.tree.map(direction, m, v, params, resolve_mask(weight_decay_mask, params))
        metrics = _published(new, rate)
        return u, ScaleByProdigyState(increment(state.count), moved, m, v, s, state.start, r, largest, metrics)

    described = Method(method, learning_rate, weight_decay, weight_decay_mask)
    return transformation(method, init, update, needs_params=True, described=described)


def prodigy(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: Scalar | None = None,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: Scalar = 1e-6,
    d_coef: Scalar = 1.0,
    growth_rate: Scalar | None = None,
    slice_p: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Adam without a learning rate to tune: its step size is an estimate of the distance to the solution (Prodigy).

    Equations of step t = 1, 2, ..., with the estimate d of the step before, the initial parameters x_0, and P every
    slice_p-th entry of a leaf:

        eta = d learning_rate                               times sqrt(1 - b2^t) / (1 - b1^t) with bias_correction
        m = b1 m + (1 - b1) d g,   v = b2 v + (1 - b2) d^2 g^2
        r = b3 r + (d / d0) eta <g, x_0 - x>_P              b3 = sqrt(b2) where it is not given
        s = b3 s + (d / d0) eta g                           with safeguard_warmup: d in place of eta
        d^ = d_coef r / |s|_1
        if d = d0:  d <- max(d, d^)                         from d0 it goes to d^ in one step
        D = max(D, d^),   d <- min(D, d growth_rate)
        x <- x - eta (m / (sqrt(v) + d eps) + weight_decay x)         eta of the old d, eps times the new d

    Where the learning rate or s is 0, only the number of the step changes. The learning rate may be a schedule (cosine
    decay from 1 to 0, official advice), and may be 0 anywhere.

    Args:
      learning_rate: factor >= 0 of the step size, or a schedule. Default 1 (paper).
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      b3: decay of the sums of the estimate, in [0, 1]. Default: the root of b2 (official code).
      eps: added to the root, times d, >= 0. Default 1e-8 (official code).
      weight_decay: decoupled, times the step size, >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      bias_correction: whether the step size is corrected for moments that start at 0. Default False (official code).
      safeguard_warmup: whether s sums (d / d0) d g, so that steps with a small learning rate have the same weight.
        Default False (official code); for a long warm-up.
      d0: the first estimate, > 0. Default 1e-6 (official code).
      d_coef: factor > 0 of the estimate. Default 1 (official code).
      growth_rate: largest factor by which the estimate grows in a step after it has left d0, > 1. Default None: no
        limit.
      slice_p: the estimate uses every slice_p-th entry of every leaf, >= 1. Default 1 (official code).

    Returns:
      A transformation that needs `params`; `init` must get the initial parameters, of which it keeps a copy. State:
      2 + 2 / slice_p words per parameter and numbers. Metrics: `d`, `last_learning_rate`. Collectives: two scalars in
      one all-reduce.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `params` missing.

    Example:
      >>> tx = prodigy(b1=0.0, b2=0.75, eps=0.0, d0=0.1)
      >>> x = jnp.array([3.0, -4.0])
      >>> print(tx.update(100 * x, tx.init(x), x)[0].round(4))  # whatever the scale of the loss
      [-0.2  0.2]

    Reference: Mishchenko, Defazio. Prodigy: An Expeditiously Adaptive Parameter-Free Learner. 2023, arXiv 2306.06101;
    official code prodigyopt 1.1.2. As in the code eps is multiplied by the new d, where the paper has the old one. With
    b1 = 0 the code has the new d in the numerator as well, but with any b1 > 0 the old one; here it always has the old
    one. The code counts steps with a learning rate of 0 as steps of its moments; `optax.contrib.prodigy` is NaN after
    such a step, and after a gradient of zeros, always corrects the bias, and has neither growth_rate nor slice_p.
    """
    link = scale_by_prodigy(
        learning_rate,
        b1=b1,
        b2=b2,
        b3=b3,
        eps=eps,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        bias_correction=bias_correction,
        safeguard_warmup=safeguard_warmup,
        d0=d0,
        d_coef=d_coef,
        growth_rate=growth_rate,
        slice_p=slice_p,
    )
    return optimizer(Method("prodigy", learning_rate, weight_decay, weight_decay_mask), link, optax.scale(-1.0))


COMMON: dict[str, Any] = {
    "paper": PAPER,
    "words": 4,
    "collectives": "norms",
    "golden": ("modern/prodigy", "modern/prodigy_options"),
    # With the default of 1e-6 the first steps would only find the scale.
    "example": {"d0": 1e-3},
}
register(scale_by_prodigy, form="primitive", **COMMON)
register(prodigy, form="optimizer", **COMMON, race=Race(None, schedule=None))
