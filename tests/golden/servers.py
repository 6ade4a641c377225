"""Golden files of servers that workers reach one by one, or some at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.golden import fixture
from tests.golden.fixture import Golden


def _weights(golden: Golden) -> np.ndarray:
    """Those of the file; of the schemes that have a formula, "Async" and "FedFix-PERIOD", they must be those here."""
    hyper, extra = golden.hyper(), golden.extra()
    scheme, _, number = hyper["scheme"].partition("-")
    importance, want = hyper["importance"], extra["agg_weights"]
    if hyper["weights"] == "weight" and scheme in ("Async", "FedFix") and importance == "uniform":
        own = {"period": float(number)} if scheme == "FedFix" else {}
        np.testing.assert_allclose(gk.parallel.arrival_weights(scheme.lower(), extra["tau"], **own), want, rtol=1e-12)
    return want


def _phase(golden: Golden, shift: Callable[[int], int]) -> Callable[..., Any]:
    """Local SGD of worker i: the loss of step `n local_steps + k` of its own seed, where n is the aggregation."""
    hyper = golden.hyper()
    workers, local, rate = (hyper[k] for k in ("workers", "local_steps", "local_learning_rate"))
    own = [golden.worker(shift(i)) for i in range(workers)]
    rows = [[[_problem(one, n * local + k) for k in range(local)] for one in own] for n in range(len(golden.steps))]
    data = jax.tree.map(lambda *x: jnp.stack(x).reshape(len(rows), workers, local, *x[0].shape), *_flat(rows))

    def phase(start: Any, state: Any, data: Any, steps: Any) -> tuple[Any, Any]:
        del steps
        x = start
        for k in range(local):
            g = jax.tree.map(lambda x, a, c, k=k: a[k] * (x - c[k]) + 0.4 * (x - c[k]) ** 3, x, *data)
            x = jax.tree.map(lambda x, g: x - rate * g, x, g)
        return jax.tree.map(jnp.subtract, start, x), state

    phase.data = data  # pyright: ignore[reportFunctionMemberAccess]
    return phase


def _flat(rows: Any) -> list[Any]:
    return [one for row in rows for worker in row for one in worker]


def _problem(golden: Golden, step: int) -> tuple[Any, Any]:
    """Curvature and centre of the loss of a step, by leaf: the gradient at 0 and at the centre show both."""
    seed, leaves = golden.meta["seed"], golden.meta["leaves"]
    curvature = {leaf: 0.5 + np.abs(fixture._draw(seed, "curv", step)[leaf]) for leaf in leaves}
    return curvature, {leaf: fixture._draw(seed, "centre")[leaf] for leaf in leaves}


def aggregations(golden: Golden) -> float:
    """The largest error of a run over the file's table, with the weights of this library."""
    hyper, start = golden.hyper(), fixture.params(golden)
    phase = _phase(golden, lambda i: 1000 * (i + 1))
    d = _weights(golden)
    table = gk.parallel.Aggregations(golden.extra()["schedule"], golden.extra()["times"][: len(golden.steps)], d)
    tx = optax.sgd(hyper["learning_rate"])
    run = gk.parallel.start_simulation(start, tx, hyper["workers"])
    _, path = jax.jit(
        lambda run: gk.parallel.simulate_events(table, phase, tx, run, data=phase.data, record=lambda x: x)
    )(run)
    return _worst(path, golden, start)


def buffer(golden: Golden) -> float:
    """The arrivals of the file's aggregations one by one, into a buffer of so many."""
    hyper, start = golden.hyper(), fixture.params(golden)
    sent, d = golden.extra()["schedule"], _weights(golden)
    phase = _phase(golden, lambda i: 1000 * (i + 1))
    n, w = np.nonzero(sent >= 0)
    K = int(hyper["scheme"].partition("-")[2])
    assert (np.bincount(n) == K).all()
    tx = gk.parallel.fedbuff(
        optax.sgd(hyper["learning_rate"]), buffer_size=K, staleness=gk.parallel.polynomial_staleness(0.0)
    )
    versions, x, state = [jax.tree.map(jnp.asarray, start)], jax.tree.map(jnp.asarray, start), None
    state = tx.init(x)
    work, update = jax.jit(phase), jax.jit(tx.update)
    for row, worker in zip(n, w, strict=True):
        own = jax.tree.map(lambda v, r=row, i=worker: v[r, i], phase.data)
        delta, _ = work(versions[sent[row, worker]], None, own, None)
        u, state = update(delta, state, x, weight=d[worker] * K)
        x = jax.tree.map(jnp.add, x, u)
        if int(state.arrived) == 0:
            versions.append(x)
    path = jax.tree.map(lambda *v: jnp.stack(v), *versions[1:])
    return _worst(path, golden, start)


def fedspeed(golden: Golden) -> float:
    """Rounds of all workers, of which some are absent; at last the dual variables too, as -prox times them."""
    hyper, start, active = golden.hyper(), fixture.params(golden), golden.extra()["active"]
    workers, K = hyper.pop("workers"), hyper.pop("local_steps")
    rows = [
        [[_problem(golden.worker(1000 * (i + 1)), r * K + k) for i in range(workers)] for k in range(K)]
        for r in range(len(golden.steps))
    ]
    tx = gk.parallel.fedspeed(sync_every=K, **hyper)

    def step(x: Any, state: Any, problem: Any, there: Any) -> tuple[Any, Any]:
        def grad(x: Any) -> Any:
            return jax.tree.map(lambda x, a, c: a * (x - c) + 0.4 * (x - c) ** 3, x, *problem)

        u, state = tx.update(grad(x), state, x, grad_fn=grad, active=there)
        return optax.apply_updates(x, u), state

    program = jax.jit(jax.vmap(step, axis_name="replica"))
    x: Any = gk.parallel.replicate(start, workers)
    state, worst = gk.parallel.init_replicas(tx, x), 0.0
    for row, there, want in zip(rows, active, golden.steps, strict=True):
        for problems in row:
            x, state = program(x, state, jax.tree.map(lambda *v: np.stack(v), *problems), there)
        worst = max(worst, fixture.error({leaf: v[0] for leaf, v in x.items()}, want, start))
    for i in range(workers):
        want = {leaf: golden.extra()[f"h_worker{i}_{leaf}"] for leaf in start}
        got = {leaf: -hyper["prox"] * v[i] for leaf, v in state.dual.items()}
        worst = max(worst, fixture.error(got, want, {leaf: np.zeros_like(v) for leaf, v in start.items()}))
    return worst


def _worst(path: Any, golden: Golden, start: Any) -> float:
    return max(
        fixture.error(jax.tree.map(lambda v, n=n: v[n], path), want, start) for n, want in enumerate(golden.steps)
    )


# method -> file -> the largest error
SERVERS: dict[str, Callable[[Golden], float]] = {
    "async_fedavg": aggregations,
    "fedbuff": buffer,
    "fedfix": aggregations,
    "fedspeed": fedspeed,
}
