"""Mechanic: the scale of any optimizer's updates, found by betting on whether they have helped."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.anchors import copied, root_of, scalar_dtype
from gradkit.engine.core import abs_sq, cast, inside, scalar, transformation, zeros
from gradkit.engine.mismatches import check_fit
from gradkit.engine.norms import global_sums
from gradkit.types import Scalar

NAME = "mechanic"
BETAS = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)
PAPER = Paper("Mechanic: A Learning Rate Tuner", "Cutkosky, Defazio, Mehta", 2023, "2306.00144")


class MechanicState(NamedTuple):
    """x_0; Delta, or None where it is not stored; s, v, r and m, one number per beta; the state of the optimizer; and
    the sum of s as a metric."""

    start: Any
    delta: Any
    scales: jax.Array
    variance: jax.Array
    reward: jax.Array
    largest: jax.Array
    inner: Any
    metrics: dict[str, jax.Array]

    exact_fields = ("start", "delta")  # the parameters are computed from both


def _checked(betas: Any) -> tuple[float, ...]:
    if not isinstance(betas, tuple | list) or not betas:
        raise ValueError(
            f"{NAME}: betas must be numbers in [0, 1], at least one, got {betas!r}; write betas=(0.9, 0.99)"
        )
    for i, beta in enumerate(betas):
        checks.real(f"betas[{i}]", beta, "[0, 1]")
    return tuple(float(beta) for beta in betas)


def mechanic(
    inner: optax.GradientTransformation,
    *,
    s_decay: Scalar = 0.01,
    betas: tuple[float, ...] = BETAS,
    s_init: Scalar = 1e-8,
    eps: Scalar = 1e-8,
    store_delta: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Tunes the scale of the steps of any optimizer while it trains: its learning rate may be wrong by any factor.

    Equations, with the optimizer's update u at x, learning rate and sign included, the sum Delta of its updates, the
    initial parameters x_0, and for each of n betas numbers m, v, r and s, whose sum before the step is S:

        x~ = x + u
        h = <Delta, g + s_decay S (|g| / (|x~| + eps)) x~>         Delta without u
        Delta = Delta + u
        m = max(beta m, |h|),   m_0 = 1e-6
        v = beta^2 v + h^2,   r = max(0, beta r - s h)             from 0
        s = (m s_init / n + r) / (sqrt(v) + eps)
        x <- x_0 + Delta max(sum of s, 0)

    Keep the schedule of the optimizer, whose shape is not tuned. It must be the outermost transformation: a change of
    its updates breaks x = x_0 + Delta sum s.

    Args:
      inner: any optimizer; its updates include a learning rate, of which only the schedule matters.
      s_decay: decay of the parameters in h, which keeps scales bounded, >= 0. Default 0.01 (paper).
      betas: decays of the running quantities, one set per beta, in [0, 1]. Default 0.9 to 0.999999 (paper).
      s_init: the first scale, >= 0. Default 1e-8 (paper). With 0 the parameters never move.
      eps: added to the roots, > 0. Default 1e-8 (official code).
      store_delta: whether Delta is stored, rather than computed as (x - x_0) / (S + eps), which is dominated by
        rounding in the parameters' dtype while S is small. Default True.

    Returns:
      A transformation that needs `params`; `init` must get the initial parameters, of which it keeps a copy. State: 2
      words per parameter (1 without `store_delta`), numbers, and the inner state. Metric: `mechanic_scale`.
      Collectives: four scalars in one all-reduce.

    Raises:
      ValueError: an argument outside its range; at `update`, `params` missing.

    Example:
      >>> tx, x = mechanic(optax.sgd(1.0), betas=(1.0,), s_init=1.0, s_decay=0.0, eps=1e-6), jnp.array([3.0])
      >>> u, state = tx.update(x, tx.init(x), x)  # s = 1e-6 / eps: the step of SGD
      >>> print(u.round(4))
      [-3.]

    Reference: Cutkosky, Defazio, Mehta. Mechanic: A Learning Rate Tuner. 2023, arXiv 2306.00144; official code, commit
    4a037bc, which decays at the point x~ that the optimizer alone would reach, where the paper has x. Delta is stored
    by default, as the code recommends for exactness. `optax.contrib.mechanize` starts every s at s_init, clips h by m,
    and adds eps inside the maximum, which gives another trajectory.
    """
    checks.real("s_decay", s_decay, "[0, inf)")
    checks.real("s_init", s_init, "[0, inf)")
    checks.real("eps", eps, "(0, inf)")
    checks.switch(store_delta=store_delta)
    betas, below = _checked(betas), inside(inner)

    def init(params: Any) -> MechanicState:
        dtype = scalar_dtype(params)
        s, v, r = (jnp.zeros((len(betas),), dtype) for _ in range(3))
        m = jnp.full((len(betas),), 1e-6, dtype)
        delta = zeros(params) if store_delta else None
        metrics = {"mechanic_scale": jnp.zeros((), dtype)}
        return MechanicState(copied(params), delta, s, v, r, m, below.init(params), metrics)

    def update(g: Any, state: MechanicState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        check_fit(NAME, params, state.start)
        u, own = below.update(g, state.inner, params, **extra)
        s, dtype = state.scales, state.scales.dtype
        S, tiny = jnp.sum(s), scalar(eps, s)
        delta = state.delta
        if not store_delta:
            delta = jax.tree.map(lambda x, x0: (x - x0) / cast(S + tiny, x.dtype), params, state.start)
        ahead = jax.tree.map(jnp.add, params, u)
        sums = global_sums(
            jax.tree.map(jnp.multiply, delta, g),
            jax.tree.map(jnp.multiply, delta, ahead),
            jax.tree.map(abs_sq, g),
            jax.tree.map(abs_sq, ahead),
        )
        gained, along, square, size = (x.astype(dtype) for x in sums)
        h = gained + scalar(s_decay, s) * S * root_of(square) / (root_of(size) + tiny) * along
        delta = jax.tree.map(jnp.add, delta, u)
        beta = jnp.asarray(betas, dtype)
        m = jnp.maximum(beta * state.largest, jnp.abs(h))
        v = jnp.square(beta) * state.variance + jnp.square(h)
        r = jnp.maximum(beta * state.reward - s * h, 0)
        s = (m * (scalar(s_init, s) / len(betas)) + r) / (jnp.sqrt(v) + tiny)
        S = jnp.sum(s)
        by = jnp.maximum(S, 0)
        moved = jax.tree.map(lambda x0, d, x: x0 + d * cast(by, d.dtype) - x, state.start, delta, params)
        kept = delta if store_delta else None
        return moved, MechanicState(state.start, kept, s, v, r, m, own, {"mechanic_scale": S})

    return transformation(NAME, init, update, needs_params=True)


register(
    mechanic,
    form="wrapper",
    paper=PAPER,
    words=2,
    collectives="norms",
    golden=("modern/mechanic",),
    # From the default it takes a hundred steps to find the scale.
    example={"s_init": 0.1},
    race=Race(1e-3, schedule=None, around="adamw"),
)
