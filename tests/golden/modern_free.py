"""What this library answers to the files of modern methods without a learning rate, of averages and of sharpness."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradkit as gk
from tests.golden import fixture
from tests.golden.fixture import Golden
from tests.golden.translate import direct, known

BASES: dict[str, Callable[..., optax.GradientTransformation]] = {"adam": gk.adam, "adamw": gk.adamw, "sgd": gk.sgd}


def _ema_nesterov(hyper: dict[str, Any]) -> optax.GradientTransformation:
    own = ("beta", "gamma", "start", "stop")
    inner = BASES[hyper["base"]](**known(hyper, "base", *own))
    return gk.ema_nesterov(inner, **{name: hyper[name] for name in own if name in hyper})


def _msam(hyper: dict[str, Any]) -> optax.GradientTransformation:
    return {"sgd": gk.msam_sgd, "adamw": gk.msam_adamw}[hyper["base"]](**known(hyper, "base"))


def _gpa_adamw(hyper: dict[str, Any]) -> optax.GradientTransformation:
    """A file has the hyperparameters of both averages, of which one is read."""
    foreign = ("mu_x",) if hyper["averaging"] == "schedule_free" else ("weight_power", "weight_lr_power")
    return gk.gpa_adamw(**known(hyper, *foreign))


def _mechanic(hyper: dict[str, Any]) -> optax.GradientTransformation:
    """A file with the hyperparameters of its optimizer, SGD or AdamW with their defaults."""
    own = known(hyper, "base", "learning_rate", "base_weight_decay")
    inner = BASES[hyper["base"]](hyper["learning_rate"], weight_decay=hyper["base_weight_decay"])
    return gk.mechanic(inner, **{**own, "betas": tuple(hyper["betas"])})


def _scale(golden: Golden, state: Any, x: Any, before: Any) -> dict[str, Any]:
    return {"s": gk.diagnostics.metrics(state)["mechanic_scale"]}


def _stateful(source: Callable[..., Any], *names: str) -> Callable[[Golden], float]:
    """The run of a source with a memory, and heavy ball behind it; the rates of a file may be those of every step."""

    def run(golden: Golden) -> float:
        start, own = fixture.params(golden), golden.meta["hyper"]
        centre = fixture._draw(golden.meta["seed"], "centre")
        tx = gk.sgd(**known(golden.hyper(), *names))

        def loss(x: Any, curvature: Any) -> jax.Array:
            parts = [
                jnp.sum((0.5 + jnp.abs(curvature[n])) * (x[n] - centre[n]) ** 2 / 2 + 0.1 * (x[n] - centre[n]) ** 4)
                for n in x
            ]
            return jnp.sum(jnp.stack(parts))

        given = {name: own[name] for name in names if name in own}
        if "every" in given:
            given["update_interval"] = given.pop("every")
        method = source(loss, **given)

        def step(x: Any, state: Any, memory: Any, curvature: Any) -> Any:
            _, g, memory = method.value_and_grad(memory, x, curvature)
            updates, state = tx.update(g, state, x)
            return optax.apply_updates(x, updates), state, memory

        once = jax.jit(step)
        x: Any = jax.tree.map(jnp.asarray, start)
        state, memory, worst = tx.init(x), method.init(x), 0.0
        for t, want in enumerate(golden.steps):
            drawn = fixture._draw(golden.meta["seed"], "curv", t)
            x, state, memory = once(x, state, memory, {n: jnp.asarray(drawn[n]) for n in start})
            worst = max(worst, fixture.error(x, want, start))
        return worst

    return run


def _gsam(golden: Golden) -> float:
    """The rates of the file are those of every step, also for the step uphill; heavy ball follows."""
    start, own, rates = fixture.params(golden), golden.meta["hyper"], golden.extra()["learning_rate"]
    centre = fixture._draw(golden.meta["seed"], "centre")
    tx = gk.sgd(lambda count: jnp.asarray(rates)[count], momentum=own["momentum"])

    def loss(x: Any, curvature: Any) -> jax.Array:
        parts = [
            jnp.sum((0.5 + jnp.abs(curvature[n])) * (x[n] - centre[n]) ** 2 / 2 + 0.1 * (x[n] - centre[n]) ** 4)
            for n in x
        ]
        return jnp.sum(jnp.stack(parts))

    def step(x: Any, state: Any, curvature: Any, rate: Any) -> Any:
        given = {name: own[name] for name in ("rho", "alpha", "rho_min", "minimize")}
        source = gk.gradients.gsam(loss, **given, learning_rate=rate, max_learning_rate=own["learning_rate"])
        updates, state = tx.update(source(x, curvature)[1], state, x)
        return optax.apply_updates(x, updates), state

    run = jax.jit(step)
    x: Any = jax.tree.map(jnp.asarray, start)
    state, worst = tx.init(x), 0.0
    for t, want in enumerate(golden.steps):
        drawn = fixture._draw(golden.meta["seed"], "curv", t)
        x, state = run(x, state, {n: jnp.asarray(drawn[n]) for n in start}, jnp.asarray(rates[t]))
        worst = max(worst, fixture.error(x, want, start))
    return worst


TRANSFORMATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "cocob": direct(gk.cocob),
    "dadapt_adam": direct(gk.dadapt_adam),
    "dadapt_lion": direct(gk.dadapt_lion),
    "dadapt_sgd": direct(gk.dadapt_sgd),
    "dowg": direct(gk.dowg),
    "ema_nesterov": _ema_nesterov,
    "gpa_adamw": _gpa_adamw,
    "mechanic": _mechanic,
    "msam": _msam,
    "prodigy": direct(gk.prodigy),
}

# method -> (file, state, parameters after and before the step) -> name of an array -> what it should be
MEASURED: dict[str, Callable[[Golden, Any, Any, Any], dict[str, Any]]] = {"mechanic": _scale}

# method -> (hyperparameters -> name of an array -> schedule)
SCHEDULES: dict[str, Callable[[dict[str, Any]], dict[str, Callable[[Any], Any]]]] = {
    "rex": lambda hyper: {"learning_rate": gk.schedules.rex(**hyper)},
}

# method -> (file -> the largest error of its run)
RUNS: dict[str, Callable[[Golden], float]] = {
    "friendly_sam": _stateful(gk.gradients.friendly_sam, "rho", "sigma", "decay", "memory"),
    "gsam": _gsam,
    "looksam": _stateful(gk.gradients.looksam, "rho", "alpha", "every"),
}
