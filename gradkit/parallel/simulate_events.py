"""Asynchronous training as one program: a `lax.scan` over an arrival table, which is data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import as_arrays, rows_of
from gradkit.engine.matching import check_leaves
from gradkit.parallel.arrivals import Aggregations, Arrivals
from gradkit.types import PyTree, Scalar

PAPER = Paper("Asynchronous Local-SGD Training for Language Modeling", "Liu et al.", 2024, "2401.09135")
# (what the worker read, its own state, data of the event, its number of local steps) -> (pseudo-gradient, own state)
Phase = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


class Simulation(NamedTuple):
    """A run between two events: all that the next event depends on.

    Attributes:
      params: the parameters of the server.
      server: the state of the server's transformation.
      snapshots: the parameters that each worker read last, with a leading axis of workers.
      workers: the state of each worker, with a leading axis of workers.
      events: the number of events (or aggregations) so far.
    """

    params: Any
    server: Any
    snapshots: Any
    workers: Any
    events: jax.Array

    exact_fields = ("snapshots",)


def start_simulation(
    params: PyTree, server: optax.GradientTransformation, workers: int, *, worker_state: Any = None
) -> Simulation:
    """The start of a run: all workers have read the parameters.

    Args:
      params: a tree of floating point leaves.
      server: the transformation of the server.
      workers: the number of workers, >= 1.
      worker_state: the state of one worker between its rounds, such as `inner.init(params)`; the same for all at the
        start. Default None: no state.

    Returns:
      `Simulation`. Memory: the parameters once per worker and once for the server.

    Raises:
      ValueError: workers < 1; leaves that are not floating point.

    Example:
      >>> start_simulation(jnp.zeros(3), optax.sgd(1.0), 4).snapshots.shape
      (4, 3)
    """
    checks.transformation(server=server)
    workers = checks.integer("workers", workers, 1)
    check_leaves("start_simulation", params, complex_leaves=True)
    params = jax.tree.map(jnp.array, as_arrays(params))
    snapshots, own = jax.tree.map(lambda x: rows_of(jnp.asarray(x), workers), (params, worker_state))
    return Simulation(params, server.init(params), snapshots, own, jnp.zeros((), jnp.int32))


def simulate_events(
    arrivals: Arrivals | Aggregations,
    phase: Phase,
    server: optax.GradientTransformation,
    run: Simulation,
    *,
    data: Any = None,
    weight: Scalar | None = None,
    record: Callable[[Any], Any] | None = None,
) -> tuple[Simulation, Any]:
    """Runs the events of an arrival table: workers compute from the parameters they read, the server applies what
    arrives.

    Equations, with theta the server's parameters, and s_w those that worker w read last:

        delta  = s_w - (s_w after its local phase)                      event of worker w: the pseudo-gradient, against
                                                                        the parameters that the worker read
        theta <- theta + server(delta, staleness, weight)
        s_w   <- theta                                                  the worker reads again

        delta  = sum_{i in S_n} d_i (s_i - (s_i after its local phase)) aggregation n, of all workers i in S_n at once
        theta <- theta + server(delta),    s_i <- theta                 for i in S_n

    All randomness of a run is in the table and in `data`, so a run is reproducible bit for bit, and two calls with the
    first and the second half of a table give what one call with the table gives.

    Args:
      arrivals: `arrival_schedule(...)`: one worker per event; or `fedfix(...)`, `async_fedavg(...)`: some workers per
        aggregation. The rest of a table continues a run: `jax.tree.map(lambda x: x[n:], table)`, of aggregations
        `table._replace(sent=table.sent[n:], time=table.time[n:])`.
      phase: (parameters read, state of the worker, data, steps) -> (pseudo-gradient, state of the worker): the
        parameters read minus those after the local steps, or simply a gradient. `async_local_sgd` makes one.
      server: transformation of the pseudo-gradients; its `update` gets `staleness` and `weight` of the event.
      run: from `start_simulation`, or from an earlier call.
      data: a tree with a leading axis of events, of which a phase gets its own entry; for aggregations, with the
        leading axes (aggregations, workers). Default None.
      weight: one number per worker, such as its number of examples. Default 1 each. Aggregations have their own.
      record: parameters -> what is recorded after every event. Default None: nothing.

    Returns:
      (`Simulation`, what was recorded with a leading axis of events). An event costs one phase, an aggregation one for
      each worker, under `vmap`; workers that are not in it get the weight 0. No collective.

    Raises:
      ValueError: a table of more workers than the run has; data of another number of events.

    Example:
      >>> from gradkit.parallel import arrival_schedule
      >>> table, tx = arrival_schedule([1.0, 1.5], 1, 3), optax.sgd(0.5)
      >>> run = start_simulation(jnp.array(1.0), tx, 2)
      >>> run, path = simulate_events(table, lambda x, own, data, steps: (x, own), tx, run, record=lambda x: x)
      >>> print(path)  # worker 0 sees 1, worker 1 still sees 1, worker 0 sees 0.5
      [ 0.5   0.   -0.25]

    Reference: Liu et al. Asynchronous Local-SGD Training for Language Modeling. 2024, arXiv 2401.09135.
    Pseudo-gradients are against the parameters that the worker read (FedBuff), not against the server's (FedAsync).
    """
    checks.function("phase", phase)
    checks.transformation(server=server)
    several = isinstance(arrivals, Aggregations)
    workers = jax.tree.leaves(run.snapshots)[0].shape[0] if jax.tree.leaves(run.snapshots) else 0
    known = arrivals.sent.shape[1] if several else int(np.max(arrivals.worker, initial=-1)) + 1
    if (several and known != workers) or known > workers:
        raise ValueError(
            f"arrivals must be of the {workers} workers of the run, got {known}; write "
            f"start_simulation(params, server, {known})"
        )
    count = len(arrivals.time)
    for x in jax.tree.leaves(data):
        want = (count, workers) if several else (count,)
        if jnp.shape(x)[: len(want)] != want:
            raise ValueError(f"data must have leading axes {want}, one entry per event, got shape {jnp.shape(x)}")
    server = optax.with_extra_args_support(server)
    play = _aggregation if several else _event
    weights = jnp.ones(workers) if weight is None else jnp.asarray(weight)
    if weights.shape != (workers,):
        raise ValueError(f"weight must be one number for each of the {workers} workers, got shape {weights.shape}")

    def step(run: Simulation, row: Any) -> tuple[Simulation, Any]:
        run = play(run, row, phase, server, weights)
        return run, None if record is None else record(run.params)

    return jax.lax.scan(step, run, (_rows(arrivals), data))


def _rows(arrivals: Arrivals | Aggregations) -> Any:
    """The arrays of a table that a program reads, none of them float64."""
    if isinstance(arrivals, Aggregations):
        takes = jnp.asarray(np.asarray(arrivals.sent) >= 0)
        return takes, jnp.asarray(np.broadcast_to(arrivals.weights, takes.shape))
    return tuple(jnp.asarray(x, jnp.int32) for x in (arrivals.worker, arrivals.staleness, arrivals.steps))


def _published(run: Simulation, delta: Any, server: Any, **extra: Any) -> tuple[Any, Any]:
    u, state = server.update(delta, run.server, run.params, **extra)
    return jax.tree.map(lambda x, u: x + u.astype(x.dtype), run.params, u), state


def _event(run: Simulation, row: Any, phase: Phase, server: Any, weights: jax.Array) -> Simulation:
    (w, staleness, steps), data = row

    def of(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[w], tree)

    def put(tree: Any, new: Any) -> Any:
        return jax.tree.map(lambda x, v: x.at[w].set(v.astype(x.dtype)), tree, new)

    delta, own = phase(of(run.snapshots), of(run.workers), data, steps)
    params, state = _published(run, delta, server, staleness=staleness, weight=weights[w])
    return Simulation(params, state, put(run.snapshots, params), put(run.workers, own), run.events + 1)


def _aggregation(run: Simulation, row: Any, phase: Phase, server: Any, weights: jax.Array) -> Simulation:
    del weights
    (takes, d), data = row
    deltas, own = jax.vmap(phase, in_axes=(0, 0, 0, None))(run.snapshots, run.workers, data, None)

    def chosen(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(takes.reshape(-1, *[1] * (o.ndim - 1)), n, o), new, old)

    def total(x: jax.Array) -> jax.Array:
        kept = jnp.where(takes.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros((), x.dtype))
        return jnp.tensordot(d.astype(x.dtype), kept, 1, precision="highest")

    params, state = _published(run, jax.tree.map(total, deltas), server)
    read = jax.tree.map(lambda x, s: jnp.broadcast_to(x, s.shape), params, run.snapshots)
    return Simulation(params, state, chosen(read, run.snapshots), chosen(own, run.workers), run.events + 1)


register(simulate_events, form="program", paper=PAPER)
