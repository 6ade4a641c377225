"""FedBuff: a server that steps once per K arrivals, with smaller weights for stale ones."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import inside, scalar, transformation, zeros
from gradkit.types import PyTree, Scalar

PAPER = Paper("Papaya: Practical, Private, and Scalable Federated Learning", "Huba et al.", 2021, "2111.04877")
NORMALIZE = ("buffer", "weights")


def _versions(staleness: Any) -> jax.Array:
    """The staleness tau, checked to be nonnegative, in float32 or wider."""
    if (number := checks.readable(staleness)) is not None and not number >= 0:
        raise ValueError(f"staleness must be a number of versions >= 0, got {staleness!r}; write staleness=0")
    tau = jnp.asarray(staleness)
    return tau if jnp.issubdtype(tau.dtype, jnp.floating) else tau.astype(jnp.float32)


def polynomial_staleness(exponent: Scalar = 0.5) -> Callable[[Any], jax.Array]:
    """A weight of stale arrivals that falls as a power of the staleness tau.

    Equations:

        s(tau) = (1 + tau)^(-exponent)

    Args:
      exponent: a >= 0. Default 0.5 (FedBuff, Papaya); 0 gives all the same weight.

    Returns:
      staleness -> weight in (0, 1].

    Raises:
      ValueError: a negative exponent; a negative staleness.

    Example:
      >>> print(polynomial_staleness(0.5)(3))
      0.5

    Reference: Huba et al. Papaya: Practical, Private, and Scalable Federated Learning. 2021, arXiv 2111.04877. The
    public code allows exponents up to 1 only, and divides by s(mean staleness).
    """
    checks.real("exponent", exponent, "[0, inf)")

    def weight(staleness: Any) -> jax.Array:
        tau = _versions(staleness)
        return jnp.exp(-scalar(exponent, tau) * jnp.log1p(tau))

    return weight


def threshold_staleness(cutoff: Scalar, value: Any = 0.0) -> Callable[[Any], jax.Array]:
    """A weight of stale arrivals that is 1 up to a threshold of the staleness tau, and another one above.

    Equations:

        s(tau) = 1 for tau <= cutoff, else value

    Args:
      cutoff: the largest staleness with the weight 1, >= 0.
      value: weight of older arrivals, in [0, 1]. Default 0: they are dropped.

    Returns:
      staleness -> weight.

    Raises:
      ValueError: an argument outside its range; a negative staleness.

    Example:
      >>> [float(threshold_staleness(2, 0.25)(tau)) for tau in (2, 3)]
      [1.0, 0.25]

    Reference: Huba et al. Papaya: Practical, Private, and Scalable Federated Learning. 2021, arXiv 2111.04877.
    """
    checks.real("cutoff", cutoff, "[0, inf)")
    checks.real("value", value, "[0, 1]")

    def weight(staleness: Any) -> jax.Array:
        tau = _versions(staleness)
        return jnp.where(tau <= scalar(cutoff, tau), jnp.ones((), tau.dtype), scalar(value, tau))

    return weight


class FedbuffState(NamedTuple):
    """Number of arrivals in the buffer, their weighted sum and the sum of their weights; the state of the server's
    optimizer."""

    arrived: jax.Array
    total: Any
    weight: jax.Array
    server: Any


def fedbuff(
    inner: optax.GradientTransformation,
    *,
    buffer_size: int = 10,
    staleness: Any = None,
    normalize: str = "buffer",
) -> optax.GradientTransformationExtraArgs:
    """A buffer of pseudo-gradients before any server optimizer, with smaller weights for stale ones.

    Equations, for the arrival of delta with weight w, which was computed from parameters tau versions old:

        S <- S + w s(tau) delta,    s(tau) = (1 + tau)^(-a)
        after K = buffer_size arrivals:   theta <- theta + inner(S / K),   S <- 0

    With normalize="weights" the divisor is the sum of all w s(tau). `update` takes two extra arguments, which
    `simulate_events` passes: `staleness`, the number of versions published since the worker read (default 0), and
    `weight`, such as its number of examples (default 1). Between two steps of the server all updates are 0.

    Args:
      inner: optimizer of the mean pseudo-gradient: `optax.sgd(1.0)` is FedAvg, `gk.adam(...)` FedAdam.
      buffer_size: K >= 1. Default 10 (paper).
      staleness: number of versions -> weight: `polynomial_staleness(...)`, `threshold_staleness(...)`. Default None:
        `polynomial_staleness(0.5)` (paper).
      normalize: the divisor of the sum: "buffer" (default: FedBuff), K; "weights" (Papaya), the sum of all weights.

    Returns:
      A transformation. State: 1 word per parameter and that of `inner`. Elementwise: no collective. A version is
      published once per K arrivals, so run `table.published_every(K)`, whose staleness counts these. `flush_buffer`
      applies the rest of the buffer at the end of a run.

    Raises:
      ValueError: an argument outside its range; a negative staleness.

    Example:
      >>> tx = fedbuff(optax.sgd(1.0), buffer_size=2)
      >>> state = tx.init(jnp.array(0.0))
      >>> u, state = tx.update(jnp.array(4.0), state, staleness=3)  # counts half
      >>> print(u, tx.update(jnp.array(2.0), state)[0])
      0.0 -2.0

    Reference: Huba et al. Papaya: Practical, Private, and Scalable Federated Learning. 2021, arXiv 2111.04877; Nguyen
    et al. Federated Learning with Buffered Asynchronous Aggregation. 2021, arXiv 2106.06639. Clipping and noise for
    privacy are links before and after it. A buffer whose weights are all 0 makes no step with "weights".
    """
    K = checks.integer("buffer_size", buffer_size, 1)
    checks.choice("normalize", normalize, NORMALIZE)
    discount = polynomial_staleness() if staleness is None else staleness
    checks.function("staleness", discount)
    tx = inside(inner)

    def init(params: Any) -> FedbuffState:
        return FedbuffState(jnp.zeros((), jnp.int32), zeros(params), jnp.zeros((), jnp.float32), tx.init(params))

    def update(
        updates: Any,
        state: FedbuffState,
        params: Any = None,
        *,
        staleness: Any = None,
        weight: Any = None,
        **extra: Any,
    ) -> tuple[Any, Any]:
        w = discount(0 if staleness is None else staleness)
        w = w if weight is None else w * jnp.asarray(weight).astype(w.dtype)
        total = jax.tree.map(lambda S, d: S + scalar(w, S) * d, state.total, updates)
        new = FedbuffState(state.arrived + 1, total, state.weight + w.astype(jnp.float32), state.server)
        return _step_if(tx, new.arrived >= K, K if normalize == "buffer" else None, new, params, extra)

    return transformation("fedbuff", init, update, complex_leaves=True)


def _step_if(
    tx: Any, full: jax.Array, count: Any, state: FedbuffState, params: Any, extra: Any
) -> tuple[Any, FedbuffState]:
    """A step of the server and an empty buffer where the buffer is full; else no change. `count` is the divisor of the
    sum; None for the sum of the weights."""

    def mean(S: jax.Array) -> jax.Array:
        if count is not None:
            return S / jnp.asarray(count).astype(S.dtype)
        w = state.weight.astype(S.dtype)
        return jnp.where(w > 0, S / jnp.where(w > 0, w, jnp.ones_like(w)), jnp.zeros_like(S))

    if count is None:
        full = full & (state.weight > 0)
    u, server = tx.update(jax.tree.map(mean, state.total), state.server, params, **extra)

    def where(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(full, n, o.astype(n.dtype)), new, old)

    u = where(u, jax.tree.map(jnp.zeros_like, u))
    empty = (jnp.zeros_like(state.arrived), jax.tree.map(jnp.zeros_like, state.total), jnp.zeros_like(state.weight))
    held = (state.arrived, state.total, state.weight)
    arrived, total, weight = where(empty, held)
    return u, FedbuffState(arrived, total, weight, where(server, state.server))


def flush_buffer(inner: optax.GradientTransformation, params: PyTree, state: FedbuffState) -> tuple[Any, FedbuffState]:
    """The last step of a run: the server's step with the rest of the buffer, divided by its number of arrivals.

    Args:
      inner: the optimizer that `fedbuff` was made with.
      params: of the server.
      state: of `fedbuff`.

    Returns:
      (params, state) after a step of the server, or unchanged where the buffer is empty.

    Raises:
      ValueError: `inner` is not a transformation.

    Example:
      >>> tx, x = fedbuff(optax.sgd(1.0), buffer_size=5), jnp.array(1.0)
      >>> _, state = tx.update(jnp.array(0.25), tx.init(x), x)
      >>> print(flush_buffer(optax.sgd(1.0), x, state)[0])
      0.75
    """
    some = state.arrived > 0
    count = jnp.maximum(state.arrived, 1)
    u, state = _step_if(inside(inner), some, count, state, params, {})
    return jax.tree.map(lambda x, u: x + u.astype(x.dtype), params, u), state


register(
    fedbuff,
    form="wrapper",
    paper=PAPER,
    delay="any; late ones count less",
    words=1,
    golden=("parallel/fedbuff",),
    example={"buffer_size": 2},
    notes="of a server that workers reach one by one",
)
register(polynomial_staleness, form="function", paper=PAPER, example={"exponent": 0.5})
register(threshold_staleness, form="function", paper=PAPER, example={"cutoff": 4})
