"""What this library answers to the files of the second shelf."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.golden import fixture
from tests.golden.fixture import Golden
from tests.golden.translate import known

Arrays = dict[str, Any]


def _zeroth_order(factory: Callable[..., Any], *drop: str) -> Callable[[Golden], float]:
    """The directions of step t are the arrays z{t}/LEAF; a file of one direction per step has no axis for it."""

    def run(golden: Golden) -> float:
        start, extra, hyper = fixture.params(golden), golden.extra(), golden.hyper()
        count = hyper.get("num_directions", 1)
        # The coefficients of every step are arguments of one program.
        centre = fixture._draw(golden.meta["seed"], "centre")

        def loss(x: Any, curvature: Any) -> jax.Array:
            parts = [
                jnp.sum((0.5 + jnp.abs(curvature[n])) * (x[n] - centre[n]) ** 2 / 2 + 0.1 * (x[n] - centre[n]) ** 4)
                for n in x
            ]
            return jnp.sum(jnp.stack(parts))

        method = factory(loss, **known(hyper, *drop))
        update = jax.jit(method.update)
        x: Any = jax.tree.map(jnp.asarray, start)
        state, worst = method.init(x), 0.0
        for t, want in enumerate(golden.steps):
            z = {leaf: extra[f"z{t + 1}/{leaf}"] for leaf in start}
            z = {leaf: a if a.ndim > start[leaf].ndim else a[None] for leaf, a in z.items()}
            assert all(len(a) == count for a in z.values())
            curvature = fixture._draw(golden.meta["seed"], "curv", t)
            _, updates, state = update(state, x, {n: jnp.asarray(curvature[n]) for n in start}, direction=z)
            x = optax.apply_updates(x, updates)
            worst = max(worst, fixture.error(x, want, start))
        return worst

    return run


# method -> (file -> the largest error of its run)
RUNS: dict[str, Callable[[Golden], float]] = {
    "zo_adam": _zeroth_order(gk.gradients.zo_adam),
    "zo_adamm": _zeroth_order(gk.gradients.zo_adamm),
    "zo_conservative": _zeroth_order(gk.gradients.zo_conservative),
    "zo_history": _zeroth_order(gk.gradients.zo_history, "num_directions"),
    "zo_sgd": _zeroth_order(gk.gradients.zo_sgd),
    "zo_sign_sgd": _zeroth_order(gk.gradients.zo_sign_sgd, "scalar_sign"),
}


def _balanced_ema_rate(hyper: dict[str, Any], arrays: Arrays) -> Arrays:
    """The running statistics of the inputs, of which the variance is the population's, from 0 and 1."""
    inputs = np.asarray(arrays["inputs"])
    rate = np.asarray(gk.schedules.balanced_ema_rate(**known(hyper))(jnp.arange(len(inputs))))
    axes = tuple(a for a in range(1, inputs.ndim) if a != 2)
    mean, var, means, variances = 0.0, 1.0, [], []
    for e, x in zip(rate, inputs, strict=True):
        mean, var = (
            (1 - e) * mean + e * x.mean(tuple(a - 1 for a in axes)),
            (1 - e) * var + e * x.var(tuple(a - 1 for a in axes)),
        )
        means.append(mean)
        variances.append(var)
    return {"rate": rate, "running_mean": np.stack(means), "running_var": np.stack(variances)}


def _scale_by_return(hyper: dict[str, Any], arrays: Arrays) -> Arrays:
    scale = gk.gradients.scale_by_return(**known(hyper))

    def step(state: Any, row: Any) -> Any:
        sigma, state = scale.update(state, *row)
        return state, sigma

    rows = (jnp.asarray(arrays["reward"]), jnp.asarray(arrays["done"]))
    return {"sigma": jax.jit(lambda: jax.lax.scan(step, scale.init(), rows)[1])()}


def _hedge(hyper: dict[str, Any], arrays: Arrays) -> Arrays:
    """Plain gradient descent on the weighted losses; the floor is of as many layers as there are exits."""
    exits = arrays["losses"].shape[1]
    own = {"discount": hyper["discount"], "smoothing": hyper["smoothing"], "num_layers": exits}
    tx = optax.chain(gk.aggregation.hedge(num_tasks=exits, **own), gk.sgd(hyper["learning_rate"]))
    weights = {name.split("/", 1)[1]: jnp.asarray(a) for name, a in arrays.items() if name.startswith("w0/")}

    def losses(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        out, h = [], x
        for i in range(exits):
            h = jax.nn.relu(h @ params[f"hidden_layers.{i}.weight"].T + params[f"hidden_layers.{i}.bias"][None])
            logits = h @ params[f"output_layers.{i}.weight"].T + params[f"output_layers.{i}.bias"][None]
            out.append(jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y)))
        return jnp.stack(out)

    source = gk.gradients.task_gradients(losses)

    def step(carry: Any, row: Any) -> Any:
        params, state = carry
        values, g = source(params, *row)
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, values, state[0].alpha)

    rows = (jnp.asarray(arrays["x"]), jnp.asarray(arrays["y"]))
    seen, values, alpha = jax.jit(lambda: jax.lax.scan(step, (weights, tx.init(weights)), rows)[1])()
    after = {n: int(n[1:].split("/")[0]) for n in arrays if n[0] == "w" and n[1:].split("/")[0].isdigit()}
    trained = {n: seen[n.split("/", 1)[1]][t - 1] for n, t in after.items() if t}
    return {**trained, "losses": values, "alpha": alpha}


TRANSFORMATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    # A bias is a matrix of one row in these files.
    "overparameterized": lambda hyper: gk.overparameterized(vectors=True, **known(hyper)),
}
FUNCTIONS: dict[str, Callable[[dict[str, Any], Arrays], Arrays]] = {
    "balanced_ema_rate": _balanced_ema_rate,
    "hedge": _hedge,
    "scale_by_return": _scale_by_return,
}
