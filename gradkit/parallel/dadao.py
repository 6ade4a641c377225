"""DADAO: accelerated decentralised training in which every worker and every edge acts at times of its own."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype
from gradkit.engine.keys import as_key, check_key
from gradkit.types import Key, Scalar

PAPER = Paper(
    "DADAO: Decoupled Accelerated Decentralized Asynchronous Optimization", "Nabli, Oyallon", 2022, "2208.00779"
)


class DadaoState(NamedTuple):
    """Every field of every worker, along a leading axis: parameters x and their five companions, and the time of the
    last event of each worker."""

    x: Any
    x_tilde: Any
    y: Any
    y_tilde: Any
    z: Any
    z_tilde: Any
    time: jax.Array

    exact_fields = ("x", "x_tilde", "time")

    def eval_params(self, params: Any) -> Any:
        """The parameters of every worker, in the dtypes of `params`."""
        return jax.tree.map(lambda x, p: x.astype(p.dtype), self.x, params)


class Dadao(NamedTuple):
    """Three pure functions, all jittable.

    Attributes:
      init: parameters of all workers, with a leading axis -> `DadaoState`.
      gradient_event: (state, i, time, grad_fn) -> state; grad_fn: (parameters of worker i, i) -> its gradient.
      gossip_event: (state, i, j, time) -> state.
    """

    init: Callable[[Any], DadaoState]
    gradient_event: Callable[..., DadaoState]
    gossip_event: Callable[..., DadaoState]


def dadao(mu: float, L: float, chi_1: float) -> Dadao:
    """DADAO as a simulation of its events, which are data: every run can be repeated to the last bit.

    Equations: worker i has x, x~, y, y~, z, z~, and the time of its last event. Constants, for functions that are
    mu-strongly convex and L-smooth:

        nu = mu / 2                alpha = 1/4 sqrt(nu/L),  alpha~ = eta = eta~ = 1/8 sqrt(nu/L)
        theta = 1/2 sqrt(L/nu)     beta = 1/2,  beta~ = 2 chi_1 sqrt(L/nu)
        delta = 1/4 sqrt(nu/L),  delta~ = 1,  gamma = 1 / (4 L),  gamma~ = 1 / (4 sqrt(nu L))

    The flow since the last event of a worker, in closed form, before each of its events:

        x' = eta (x~ - x)      x~' = eta~ (x - x~)
        y' = alpha (y~ - y)    y~' = - theta (nu x~ + y + z)
        z' = alpha (z~ - z)    z~' = alpha~ (z - z~)

    A gradient event at i:

        u = grad f_i(x) - nu x - y~
        x -= gamma u,   x~ -= gamma~ u,   y~ += (delta + delta~) u

    A gossip event of i and j:

        p = (y_i + z_i) - (y_j + z_j)
        z_i -= beta p,   z_j += beta p,   z~_i -= beta~ p,   z~_j += beta~ p

    A run over the table of `poisson_events`:

        rules = gk.parallel.dadao(mu=1.0, L=4.0, chi_1=1.2)
        state = rules.init(params_of_all_workers)
        for kind, time, i, j in events:
            state = rules.gradient_event(state, i, time, grad_fn) if kind else rules.gossip_event(state, i, j, time)

    Args:
      mu: strong convexity of every worker's function, > 0.
      L: smoothness, >= mu.
      chi_1: > 0, 1 / the smallest positive eigenvalue of the Laplacian of the edges with their actual rates as weights.

    Returns:
      A `Dadao`. State: 6 words per parameter and worker. A gossip event sends y + z of two workers, a gradient event
      nothing.

    Raises:
      ValueError: an argument outside its range, traced ones too; leaves without an axis of workers.

    Example:
      >>> rules = dadao(1.0, 1.0, 1.0)
      >>> state = rules.init(jnp.array([[2.0], [0.0]]))
      >>> state = rules.gradient_event(state, 0, 0.0, lambda x, i: x)
      >>> print(state.x[:, 0])  # 2 - (2 - 2 / 2) / 4
      [1.75 0.  ]

    Reference: Nabli, Oyallon. DADAO: Decoupled Accelerated Decentralized Asynchronous Optimization. 2022, arXiv
    2208.00779; ICML 2023. Where times decrease the elapsed time is 0: the flow does not run backwards.
    """
    checks.real("mu", mu, "(0, inf)")
    checks.real("L", L, "(0, inf)")
    checks.real("chi_1", chi_1, "(0, inf)")
    m, smooth, chi = (checks.readable(v) for v in (mu, L, chi_1))
    if m is None or smooth is None or chi is None:
        raise ValueError("mu, L and chi_1 must be numbers that are known when the program is built, got a traced value")
    if smooth < m:
        raise ValueError(f"L must be >= mu, got L={L!r} and mu={mu!r}; a function is no less smooth than it is convex")
    nu = m / 2
    small, root = math.sqrt(nu / smooth), math.sqrt(smooth / nu)
    alpha, slow, theta = small / 4, small / 8, root / 2
    beta, beta_tilde = 0.5, 2 * chi * root
    gamma, gamma_tilde = 1 / (4 * smooth), 1 / (4 * math.sqrt(nu * smooth))
    flow = np.array(
        [
            [-slow, slow, 0, 0, 0, 0],
            [slow, -slow, 0, 0, 0, 0],
            [0, 0, -alpha, alpha, 0, 0],
            [0, -theta * nu, -theta, 0, -theta, 0],
            [0, 0, 0, 0, -alpha, alpha],
            [0, 0, 0, 0, slow, -slow],
        ]
    )

    def init(params: Any) -> DadaoState:
        leaves = [jnp.asarray(x) for x in jax.tree.leaves(params)]
        if not leaves or any(x.ndim == 0 or x.shape[0] != leaves[0].shape[0] for x in leaves):
            raise ValueError(
                "dadao: params must have a leading axis of workers on every leaf, got leaves of shapes "
                f"{[x.shape for x in leaves]}; write gk.parallel.replicate(params, workers)"
            )
        x = jax.tree.map(lambda x: jnp.array(x, wide_dtype(jnp.asarray(x).dtype), copy=True), params)
        rest = [jax.tree.map(jnp.zeros_like, x) for _ in range(5)]
        return DadaoState._make([x, *rest, jnp.zeros((len(leaves[0]),), wide_dtype(leaves[0].dtype))])

    def flowed(state: DadaoState, i: Any, time: Any) -> tuple[list[Any], DadaoState]:
        """The six fields of worker i at this time, and the state with its time."""
        now = jnp.maximum(jnp.asarray(time, state.time.dtype), state.time[i])
        A = jax.scipy.linalg.expm(jnp.asarray(flow, state.time.dtype) * (now - state.time[i]))
        rows = [jax.tree.map(lambda x: x[i], field) for field in state[:6]]

        def mixed(k: int) -> Any:
            def leaf(*fields: jax.Array) -> jax.Array:
                return sum((A[k, n].astype(f.dtype) * f for n, f in enumerate(fields)), jnp.zeros_like(fields[0]))

            return jax.tree.map(leaf, *rows)

        return [mixed(k) for k in range(6)], state._replace(time=state.time.at[i].set(now))

    def stored(state: DadaoState, i: Any, rows: list[Any]) -> DadaoState:
        fields = [jax.tree.map(lambda x, r: x.at[i].set(r), f, row) for f, row in zip(state[:6], rows, strict=True)]
        return DadaoState._make([*fields, state.time])

    def gradient_event(state: DadaoState, i: Any, time: Any, grad_fn: Callable[..., Any]) -> DadaoState:
        (x, x_tilde, y, y_tilde, z, z_tilde), state = flowed(state, i, time)
        u = jax.tree.map(lambda g, x, y: g.astype(x.dtype) - nu * x - y, grad_fn(x, i), x, y_tilde)
        x = jax.tree.map(lambda x, u: x - gamma * u, x, u)
        x_tilde = jax.tree.map(lambda x, u: x - gamma_tilde * u, x_tilde, u)
        y_tilde = jax.tree.map(lambda y, u: y + (small / 4 + 1) * u, y_tilde, u)
        return stored(state, i, [x, x_tilde, y, y_tilde, z, z_tilde])

    def gossip_event(state: DadaoState, i: Any, j: Any, time: Any) -> DadaoState:
        a, state = flowed(state, i, time)
        b, state = flowed(state, j, time)
        p = jax.tree.map(lambda y, z, v, w: (y + z) - (v + w), a[2], a[4], b[2], b[4])
        for rows, sign in ((a, -1.0), (b, 1.0)):
            rows[4] = jax.tree.map(lambda z, p, s=sign: z + s * beta * p, rows[4], p)
            rows[5] = jax.tree.map(lambda z, p, s=sign: z + s * beta_tilde * p, rows[5], p)
        return stored(stored(state, i, a), j, b)

    return Dadao(init, gradient_event, gossip_event)


def poisson_events(key: Key, rate_grad: Scalar, edge_rates: Any, horizon: float) -> np.ndarray:
    """A table of events: every worker computes a gradient, and every edge gossips, at the times of a Poisson process.

    Args:
      key: a random key (typed key or integer); the numbers are drawn by NumPy from it.
      rate_grad: gradient events per unit of time: one number for all workers, or one per worker; >= 0.
      edge_rates: symmetric matrix (workers, workers) of numbers >= 0: the events of every edge per unit of time; its
        diagonal is not read. The edges must connect all workers. The theory requires a sum of at least
        sqrt(2 chi_1 chi_2).
      horizon: time until which events are drawn, > 0.

    Returns:
      A NumPy array (events, 4), in the order of time: 1 for a gradient or 0 for gossip; the time; worker i; worker j,
      -1 for a gradient.

    Raises:
      ValueError: an argument outside its range, a matrix that is not symmetric, edges that do not connect all workers.

    Example:
      >>> events = poisson_events(0, 1.0, [[0.0, 2.0], [2.0, 0.0]], 3.0)
      >>> events.shape[1], sorted(set(events[:, 0].tolist())), bool((np.diff(events[:, 1]) >= 0).all())
      (4, [0.0, 1.0], True)

    Reference: Nabli, Oyallon. DADAO. 2022, arXiv 2208.00779.
    """
    check_key(key)
    checks.real("horizon", horizon, "(0, inf)")
    rates = np.asarray(edge_rates, np.float64)
    n = len(rates) if rates.ndim == 2 else 0
    if not n or rates.shape != (n, n) or not np.isfinite(rates).all() or (rates < 0).any() or (rates != rates.T).any():
        raise ValueError(
            f"edge_rates must be a symmetric matrix of numbers >= 0, got an array of shape {rates.shape}; write "
            "(rates + rates.T) / 2"
        )
    reached = np.linalg.matrix_power(np.eye(n) + (rates > 0), n)[0]
    if (reached == 0).any():
        raise ValueError(f"edge_rates must connect all workers, got none between 0 and {np.flatnonzero(reached == 0)}")
    own = np.broadcast_to(np.asarray(rate_grad, np.float64), (n,))
    if not np.isfinite(own).all() or (own < 0).any():
        raise ValueError(f"rate_grad must be numbers >= 0, got {rate_grad!r}; write one per worker, or one for all")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(as_key(key))))
    clocks = [(1, i, -1, own[i]) for i in range(n)]
    clocks += [(0, i, j, rates[i, j]) for i in range(n) for j in range(i + 1, n)]
    rows = []
    for kind, i, j, rate in clocks:
        times = np.sort(rng.uniform(0, horizon, rng.poisson(rate * horizon)))
        rows += [(kind, t, i, j) for t in times]
    table = np.array(rows, np.float64).reshape(-1, 4)
    return table[np.argsort(table[:, 1], kind="stable")]


register(
    dadao,
    form="program",
    paper=PAPER,
    words=6,
    golden=("parallel/dadao",),
    notes="a simulation over a table of events: which worker computes, which two gossip, and when",
)
register(
    poisson_events,
    form="function",
    paper=PAPER,
    example={"key": 0, "rate_grad": 1.0, "edge_rates": [[0.0, 2.0], [2.0, 0.0]], "horizon": 3.0},
)
