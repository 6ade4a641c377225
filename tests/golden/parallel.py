"""From the words of a golden file of an exchange between replicas to what this library would run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.golden import extras, fixture
from tests.golden.translate import ARRAYS, known

Build = Callable[[dict[str, Any]], Any]


def one_worker(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """A transformation of replicas where there is one."""

    def of_one(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*trees: Any) -> Any:
            ahead = jax.tree.map(lambda x: jnp.asarray(x)[None], trees)
            return jax.tree.map(lambda x: x[0], jax.vmap(function, axis_name="replica")(*ahead))

        return run

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del extra
        return of_one(tx.update)(updates, state, params)

    return optax.GradientTransformationExtraArgs(of_one(tx.init), update)


def _powersgd(hyper: dict[str, Any]) -> Any:
    """The reference of the two-sided form compresses every matrix, and divides by norm + 1e-8; the package of the
    alternating form has QR."""
    own = known(hyper, "learning_rate", "momentum", "nesterov")
    eps = 0.0 if hyper.get("alternating") else 1e-8
    exchange = gk.parallel.powersgd(min_compression_rate=0.0, eps=eps, **own)
    momentum = hyper.get("momentum") or None
    return one_worker(
        optax.chain(exchange, optax.sgd(hyper["learning_rate"], momentum, nesterov=hyper.get("nesterov", False)))
    )


def _powersgd_start(state: Any, reader: extras.Reader) -> Any:
    """The random factors of the first step, Q or P, of every leaf that has them."""

    def with_factors(low_rank: Any) -> Any:
        for field, name in (("Q", "q0"), ("P", "p0")):
            old = getattr(low_rank, field) or {}
            given = {leaf: reader.take(f"{name}_{leaf}") for leaf in old if f"{name}_{leaf}" in reader.arrays}
            if given:
                # One matrix per leaf.
                new = {leaf: jnp.asarray(given[leaf])[None] if leaf in given else x for leaf, x in old.items()}
                low_rank = low_rank._replace(**{field: new})
        return low_rank

    memory, *rest = state
    if hasattr(memory, "compressor"):
        memory = memory._replace(compressor=with_factors(memory.compressor))
    else:
        memory = with_factors(memory)
    return (memory, *rest)


def _powersgd_error(golden: fixture.Golden, state: Any, x: Any, before: Any) -> dict[str, Any]:
    """What is remembered of the leaves that are compressed."""
    del x, before
    if not hasattr(state[0], "error"):
        return {}
    return {f"error_{leaf}": e for leaf, e in state[0].error.items() if f"error_{leaf}" in golden.extra()}


def _deep_gradient_compression(hyper: dict[str, Any]) -> Any:
    exchange = gk.parallel.deep_gradient_compression(**known(hyper, "learning_rate", "workers"))
    return optax.chain(exchange, optax.scale_by_learning_rate(hyper["learning_rate"]))


def _demo(hyper: dict[str, Any]) -> Any:
    """The arrays of the file are one matrix, or vector, each."""
    return gk.parallel.demo(**known(hyper, "workers"), layout=ARRAYS)


def _dadao(golden: fixture.Golden) -> float:
    """Quadratics (x - b)^T A (x - b) / 2 of every worker; all six fields after every event."""
    arrays, hyper = golden.extra(), golden.hyper()
    rules = gk.parallel.dadao(hyper["mu"], hyper["L"], hyper["chi_1"])
    A, b = jnp.asarray(arrays["A"]), jnp.asarray(arrays["b"])
    computed = jax.jit(lambda state, i, time: rules.gradient_event(state, i, time, lambda x, i: A[i] @ (x - b[i])))
    talked = jax.jit(rules.gossip_event)
    state, worst = rules.init(jnp.asarray(arrays["x0"])), 0.0
    for (kind, time, i, j), want in zip(arrays["events"], golden.steps, strict=True):
        state = computed(state, int(i), time) if kind else talked(state, int(i), int(j), time)
        for name, value in want.items():
            error = np.abs(np.asarray(getattr(state, name)) - value).max()
            worst = max(worst, float(error / (np.abs(value).max() or 1.0)))
    return worst


TRANSFORMATIONS: dict[str, Build] = {"powersgd": _powersgd}
STARTS: dict[str, Callable[[Any, extras.Reader], Any]] = {"powersgd": _powersgd_start}
MEASURED: dict[str, Callable[[fixture.Golden, Any, Any, Any], dict[str, Any]]] = {"powersgd": _powersgd_error}
EVENTS: dict[str, Callable[[fixture.Golden], float]] = {"dadao": _dadao}
STRATEGIES: dict[str, Build] = {"demo": _demo, "deep_gradient_compression": _deep_gradient_compression}
