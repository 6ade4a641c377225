"""From the words of a golden file of an aggregator to the aggregator of this library."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradkit as gk
from gradkit.aggregation import learned_weights, scalarizers
from tests.golden.fixture import Golden
from tests.golden.translate import known

Build = Callable[[dict[str, Any], dict[str, Any]], Any]


def named(factory: Callable[..., Any]) -> Build:
    """Hyperparameters under their names here."""
    return lambda hyper, arrays: factory(**hyper)


def _graddrop(hyper: dict[str, Any], arrays: dict[str, Any]) -> Any:
    """The uniform numbers of the file, as the two leaves that a Jacobian is split into."""
    u = jnp.asarray(arrays["uniform"])
    half = min(5, len(u))
    return gk.aggregation.graddrop(uniform={"a": u[:half], "b": u[half:, None]}, **hyper)


def per_task(factory: Callable[..., Any]) -> Build:
    """With a state per task, of which there are as many as rows in the gradients of a file."""
    return lambda hyper, arrays: _of_any_number(lambda m: factory(num_tasks=m, **hyper))


def _of_any_number(make: Callable[..., Any], each: Any = None) -> Any:
    """An aggregator that is made when the number of tasks is known; `each`: what it is made with anew in every step."""
    steps = itertools.count()

    def update(gradients: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        m = len(jax.tree.leaves(gradients)[0])
        tx = make(m) if each is None else make(m, each[next(steps)])
        return tx.update(gradients, tx.init(params) if state is None else state, params, **extra)

    return optax.GradientTransformationExtraArgs(lambda params: None, update)


def _gradvac(hyper: dict[str, Any], arrays: dict[str, Any]) -> Any:
    """Row i of a file's order permutes the tasks but i, in ascending order."""
    orders = []
    for step in arrays["order"]:
        others = [[j for j in range(len(step)) if j != i] for i in range(len(step))]
        orders.append([[own[j] for j in row] for own, row in zip(others, step, strict=True)])
    return _of_any_number(lambda m, order: gk.aggregation.gradvac(num_tasks=m, order=order, **hyper), orders)


def _cr_mogm(hyper: dict[str, Any], arrays: dict[str, Any]) -> Any:
    own = known(hyper, "weighting")
    weighting = AGGREGATORS[hyper["weighting"]]({}, {})
    return _of_any_number(lambda m: gk.aggregation.cr_mogm(weighting, num_tasks=m, **own))


# method -> (hyper of a case, its other arrays -> aggregator)
AGGREGATORS: dict[str, Build] = {
    "aligned_mtl": named(gk.aggregation.aligned_mtl),
    "aligned_mtl_median": named(gk.aggregation.aligned_mtl),
    "cagrad": named(gk.aggregation.cagrad),
    "config": named(gk.aggregation.config),
    "cr_mogm": _cr_mogm,
    "dualproj": named(gk.aggregation.dualproj),
    "excess_mtl": per_task(gk.aggregation.excess_mtl),
    "fairgrad": named(gk.aggregation.fairgrad),
    "graddrop": _graddrop,
    "gradvac": _gradvac,
    "imtl_g": named(gk.aggregation.imtl_g),
    # The reference adds up distances that are not squared.
    "krum": lambda hyper, arrays: gk.aggregation.krum(**{"squared": False, **known(hyper)}),
    "mgda": named(gk.aggregation.mgda),
    "pcd": per_task(gk.aggregation.pcd),
    "pcgrad": lambda hyper, arrays: gk.aggregation.pcgrad(order=arrays.get("order"), **hyper),
    "trimmed_mean": named(gk.aggregation.trimmed_mean),
    "upgrad": named(gk.aggregation.upgrad),
}


def weights(tx: Any, state: Any, losses: Any, **extra: Any) -> tuple[Any, Any]:
    """The weights of an aggregator: its result for the gradients e_1 ... e_m."""
    m = len(losses)
    return tx.update(jnp.eye(m), tx.init(jnp.zeros(m)) if state is None else state, losses=jnp.asarray(losses), **extra)


def _scalarizers(golden: Golden) -> dict[str, Any]:
    """Of most the value and its derivative by the losses; of `famo` the logits after the step as well."""
    room, hyper, arrays = gk.aggregation, golden.meta["hyper"], golden.arrays
    own, z, s = (jnp.asarray(arrays[name]) for name in ("weights", "reference", "learned"))
    L = {name.split("/")[1]: jnp.asarray(x) for name, x in arrays.items() if name.startswith("matrix/")}
    mu, lambda_, theta = (hyper[name] for name in ("stch_mu", "cosmos_lambda", "pbi_theta"))
    fixed = {
        "stch": (scalarizers.stch_value(L["stch"], own, z, mu), room.stch(mu=mu, weights=own, reference=z)),
        "geometric_mean": (jnp.exp(jnp.mean(jnp.log(L["geometric_mean"]))), room.geometric_mean_loss()),
        "cosmos": (
            scalarizers.cosmos_value(L["cosmos"], own, lambda_),
            room.cosmos(lambda_=lambda_, weights=own),
        ),
        "pbi": (
            scalarizers.pbi_value(L["pbi"], own, z, theta),
            room.pbi(theta=theta, weights=own, reference=z),
        ),
    }
    out = {f"output/{n}": jnp.array([value, *weights(tx, None, L[n])[0]]) for n, (value, tx) in fixed.items()}
    for name, factory, value in (
        ("uw", room.uncertainty_weighting, learned_weights.uncertainty_value),
        ("imtl_l", room.imtl_l, learned_weights.imtl_l_value),
    ):
        tx = factory(num_tasks=len(s), weight_learning_rate=1.0)
        w, after = weights(tx, tx.init(jnp.zeros(len(s)))._replace(learned=s), L[name])
        out[f"output/{name}"] = jnp.array([value(L[name], s), *w])
        out[f"{name}_grad_learned"] = s - after.learned
    return {**out, "output/famo": _famo(L["famo"], hyper["famo"]), "output/dwa": _dwa(L["dwa"], hyper["dwa"])}


def _famo(pairs: Any, hyper: dict[str, Any]) -> Any:
    """The value is c z . log(L + 1e-8); the logits take their step when the losses after it are handed over."""
    m = pairs.shape[-1]
    tx = gk.aggregation.famo(num_tasks=m, weight_learning_rate=hyper["lr"], weight_decay=hyper["weight_decay"])
    state, rows = None, []
    for t, (before, after) in enumerate(pairs):
        w, state = weights(tx, state, before, **({"losses_after": pairs[t - 1, 1]} if t else {}))
        next_logits = weights(tx, state, after, losses_after=after)[1].logits
        value = jnp.sum(w * (before + 1e-8) * jnp.log(before + 1e-8))
        rows.append(jnp.concatenate([value[None], w, next_logits]))
    return jnp.stack(rows)


def _dwa(losses: Any, hyper: dict[str, Any]) -> Any:
    tx, state, rows = gk.aggregation.dwa(num_tasks=losses.shape[1], **hyper), None, []
    for L in losses:
        w, state = weights(tx, state, L)
        rows.append(w)
    return jnp.stack(rows)


def _of_two_batches(factory: Callable[..., Any], names: dict[str, str]) -> Callable[[Golden], dict[str, Any]]:
    """The first batch has the rows of the file's A = J_1 J_2^T as gradients, the second those of the unit matrix."""

    def run(golden: Golden) -> dict[str, Any]:
        hyper, out = {names.get(name, name): value for name, value in golden.hyper().items()}, {}
        for case in golden.meta["cases"]:
            rows = []
            A = jnp.asarray(golden.arrays[f"matrix/{case}"])
            m = A.shape[-1]
            tx = factory(num_tasks=m, **hyper)
            state = tx.init(jnp.zeros(m))
            for matrix in A:
                u, state = tx.update(jnp.concatenate([matrix, jnp.eye(m)]), state)
                # u = (A + I)^T w / 2
                rows.append(jnp.linalg.solve(matrix.T + jnp.eye(m), 2 * u))
            out[f"output/{case}"] = jnp.stack(rows)
        return out

    return run


# method -> (file -> the arrays that hold weights, computed)
WEIGHTS: dict[str, Callable[[Golden], dict[str, Any]]] = {
    "modo": _of_two_batches(gk.aggregation.modo, {}),
    "scalarizers": _scalarizers,
    "sdmgrad": _of_two_batches(gk.aggregation.sdmgrad, {"lr": "weight_learning_rate", "n_iter": "iterations"}),
}


def bloop(hyper: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    """A run of each of the two directions, over two leaves."""
    pairs = jnp.stack([jnp.asarray(arrays[name]) for name in ("main", "aux")], axis=1)
    out = {}
    for name, factory in (("output", gk.aggregation.bloop), ("output_dynamic_barrier", gk.aggregation.dynamic_barrier)):
        tx = factory(**hyper)
        state, rows = tx.init({"a": pairs[0, 0, :5], "b": pairs[0, 0, 5:]}), []
        for pair in pairs:
            u, state = tx.update({"a": pair[:, :5], "b": pair[:, 5:]}, state)
            rows.append(jnp.concatenate([u["a"], u["b"]]))
        out[name] = jnp.stack(rows)
    return out
