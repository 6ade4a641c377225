"""From the words of a golden file (`method`, `mode`, `hyper`) to what this library would run.

No entry knows a file: hyperparameters are handed on under their names here, and one that a method does not
have fails.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.golden import fixture

MASKS = {"ndim>1": gk.leaves.by_rank(2)}
NAMES = {"l2": "weight_decay", "norm_max": "param_norm_max"}


def _hyper(hyper: dict[str, Any], *drop: str) -> dict[str, Any]:
    """Hyperparameters under this library's names and types."""
    out = {}
    for name, value in hyper.items():
        if name in drop:
            continue
        if name == "learning_rate" and isinstance(value, list):
            value = _per_step(value)
        if isinstance(value, str):
            value = MASKS.get(value, value)
        out[NAMES.get(name, name)] = value
    return out


def _per_step(values: list[float]) -> Callable[[Any], Any]:
    return lambda count: jnp.asarray(values)[count]


def _direct(function: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda hyper: function(**_hyper(hyper))


def _penalised(function: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
    """A method that has both an L2 penalty and decoupled decay."""
    return lambda hyper: function(**_hyper(hyper, "l2"), l2=hyper.get("l2", 0.0))


def _without(function: Callable[..., Any], *foreign: str) -> Callable[[dict[str, Any]], Any]:
    """A file whose reference has arguments that its method does not read."""
    return lambda hyper: function(**_hyper(hyper, *foreign))


def _around(wrapper: Callable[..., Any], inner: Callable[..., Any], *names: str) -> Callable[[dict[str, Any]], Any]:
    """A wrapper whose file has the hyperparameters of both."""

    def build(hyper: dict[str, Any]) -> optax.GradientTransformation:
        own = {name: hyper[name] for name in names if name in hyper}
        return wrapper(inner(**_hyper(hyper, *names)), **own)

    return build


def _in_front(filter_: Callable[..., Any], *names: str) -> Callable[[dict[str, Any]], Any]:
    """A filter whose file names the optimizer behind it as `base`."""

    def build(hyper: dict[str, Any]) -> optax.GradientTransformation:
        own = {name: hyper[name] for name in names if name in hyper}
        return optax.chain(filter_(**own), TRANSFORMATIONS[hyper["base"]](_hyper(hyper, "base", *names)))

    return build


def _lars(hyper: dict[str, Any]) -> optax.GradientTransformation:
    clip = hyper.get("ratio_clip")
    assert clip in (None, "larc")
    return (gk.larc if clip else gk.lars)(**_hyper(hyper, "ratio_clip"))


def _tvlars(hyper: dict[str, Any]) -> optax.GradientTransformation:
    """`norm_max` is of both norms here; the reference has the joint denominator, which is the only one."""
    own = {**hyper}
    assert own.pop("denominator", "joint") == "joint"
    return gk.tvlars(norm_max=own.pop("norm_max", math.inf), **_hyper(own))


def _adam_l2(hyper: dict[str, Any]) -> optax.GradientTransformation:
    return optax.chain(gk.add_decayed_weights(hyper["l2"]), gk.adam(**_hyper(hyper, "l2")))


def _agc(hyper: dict[str, Any]) -> optax.GradientTransformation:
    clip = gk.adaptive_grad_clip(hyper["clipping"], eps=hyper["eps"])
    return optax.chain(clip, gk.sgd(**_hyper(hyper, "clipping", "eps")))


def _shampoo(hyper: dict[str, Any]) -> optax.GradientTransformation:
    """The reference's exponent is one of matrices, where it is given."""
    exponent = hyper.get("exponent_override")
    return gk.shampoo(**_hyper(hyper, "exponent_override"), exponent="shampoo" if exponent is None else exponent)


TRANSFORMATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "adadelta": _direct(gk.adadelta),
    "adagrad": _direct(gk.adagrad),
    "adam": _direct(gk.adam),
    "adam_l2": _adam_l2,
    "adamax": _direct(gk.adamax),
    "adamp": _direct(gk.adamp),
    "adamw": _direct(gk.adamw),
    "adaptive_grad_clip then trace then learning rate": _agc,
    "amsgrad": _direct(gk.amsgrad),
    "clip_adagrad": _direct(gk.clip_adagrad),
    "clip_adam": _direct(gk.clip_adam),
    "clip_adamd": _direct(gk.clip_adamd),
    "ademamix": _direct(gk.ademamix),
    "ano": _direct(gk.ano),
    "anolog": _direct(gk.anolog),
    "distributed_shampoo": _direct(gk.distributed_shampoo),
    "diffgrad": _penalised(gk.diffgrad),
    "grams": _direct(gk.grams),
    "gravity": _direct(gk.gravity),
    "grokfast_ema": _in_front(gk.grokfast_ema, "alpha", "lamb"),
    "induced_metric_log": _direct(gk.induced_metric_log),
    "induced_metric_rms": _direct(gk.induced_metric_rms),
    "induced_metric_sgd": _direct(gk.induced_metric_sgd),
    "grokfast_ma": _in_front(gk.grokfast_ma, "window_size", "lamb", "filter_type", "warmup"),
    "inna": _direct(gk.inna),
    "innaprop": _direct(gk.innaprop),
    "igt_adam": _around(gk.implicit_gradient_transport, gk.adam, "delta", "tail_fraction"),
    "igt_heavy_ball": _around(gk.implicit_gradient_transport, gk.sgd, "delta", "tail_fraction"),
    "lamb": _direct(gk.lamb),
    "lars": _lars,
    "lion": _direct(gk.lion),
    "nadam": _direct(gk.nadam),
    "muon": _direct(gk.muon),
    "mars_adamw": _direct(gk.mars_adamw),
    "mars_exact": _direct(gk.mars_exact),
    "mars_lion": _without(gk.mars_lion, "b2", "eps"),
    "mars_shampoo": _without(gk.mars_shampoo, "b2"),
    "novograd": _direct(gk.novograd),
    "perpgrad": _in_front(gk.perpgrad),
    "rmsprop": _direct(gk.rmsprop),
    "qhadam": _direct(gk.qhadam),
    "qhm": _penalised(gk.qhm),
    "ranger21": _direct(gk.ranger21),
    "shampoo": _shampoo,
    "soap": _direct(gk.soap),
    "sgd": _direct(gk.sgd),
    "sgdp": _direct(gk.sgdp),
    "tvlars": _tvlars,
    "weight_normalized(sgd)": lambda hyper: gk.weight_normalized(gk.sgd(**_hyper(hyper, "inner", "axis"))),
    "xgrad_adam": _direct(gk.xgrad_adamw),
    "xgrad_adamw": _direct(gk.xgrad_adamw),
    "xgrad_sgd": _direct(gk.xgrad_sgd),
}

# method -> transformation of a file that brings a problem of its own
PROBLEMS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nonconvex_accelerated_gradient": lambda hyper: gk.nonconvex_accelerated_gradient(
        **hyper, mask={"intercept": False, "coef": True}
    ),
}

# Methods that take the gradient at a second point.
CALLS_BACK = ("mars_exact",)


def _sam(hyper: dict[str, Any]) -> tuple[Callable[..., Any], Any]:
    own = ("rho", "adaptive", "eta")
    source = gk.gradients.sam
    kwargs = {"rho": hyper["rho"]}
    if hyper["adaptive"]:
        source, kwargs = gk.gradients.asam, {**kwargs, "eta": hyper["eta"]}
    return lambda loss_fn: source(loss_fn, **kwargs), gk.sgd(**_hyper(hyper, *own))


# method -> (source: loss_fn -> value and gradient, transformation)
SOURCES: dict[str, Callable[[dict[str, Any]], tuple[Callable[..., Any], Any]]] = {"sam": _sam, "asam": _sam}


def _one_cycle(hyper: dict[str, Any]) -> dict[str, Callable[[Any], Any]]:
    momentum = ("b1_peak", "b1_trough")
    rate = {name: value for name, value in hyper.items() if name not in momentum}
    skipped = ("peak_value", "div_factor", "final_div_factor")
    shape = {name: value for name, value in hyper.items() if name not in skipped}
    return {"learning_rate": gk.schedules.one_cycle(**rate), "momentum": gk.schedules.one_cycle_b1(**shape)}


def _wsd(hyper: dict[str, Any]) -> dict[str, Callable[[Any], Any]]:
    """A file of several shapes: `hyper` is shape -> hyperparameters."""
    return {f"{shape}/learning_rate": gk.schedules.wsd(shape=shape, **own) for shape, own in hyper.items()}


def _drop_rate(hyper: dict[str, Any]) -> dict[str, Callable[[Any], Any]]:
    """A file that counts in epochs, of which "standard" has no cutoff."""
    steps, cutoff = hyper["steps_per_epoch"], hyper.get("cutoff_epoch") or 0
    schedule = gk.schedules.drop_rate_schedule(
        hyper["rate"],
        cutoff_step=cutoff * steps,
        total_steps=hyper["epochs"] * steps,
        mode=hyper["mode"],
        decay=hyper.get("schedule", "constant") if hyper["mode"] == "early" else "constant",
    )
    return {"values": schedule}


def _warmup_polynomial(hyper: dict[str, Any]) -> dict[str, Callable[[Any], Any]]:
    return {"values": gk.schedules.warmup_polynomial_schedule(**hyper)}


# method -> (hyper -> name of an array -> schedule whose values it holds)
SCHEDULES: dict[str, Callable[[dict[str, Any]], dict[str, Callable[[Any], Any]]]] = {
    "drop_rate_schedule": _drop_rate,
    "one_cycle": _one_cycle,
    "one_cycle_linear": _one_cycle,
    "sgdr": lambda hyper: {"learning_rate": gk.schedules.sgdr(**hyper)},
    "warmup_polynomial_schedule": _warmup_polynomial,
    "wsd": _wsd,
}


def _batch_tests(golden: fixture.Golden) -> dict[str, Any]:
    """The example gradients follow from the seed; the file holds what the tests answer, and their variances."""
    hyper, start, want = golden.meta["hyper"], fixture.params(golden), golden.extra()
    n = hyper["batch_size"]
    rows = [fixture.grads(golden, i) for i in range(n)]
    grads = {leaf: jnp.stack([jnp.asarray(r[leaf] + hyper["signal"] * x) for r in rows]) for leaf, x in start.items()}
    mean = {leaf: g.mean(0) for leaf, g in grads.items()}
    var = {leaf: g.var(0, ddof=1) for leaf, g in grads.items()}
    tests: dict[str, Callable[[Any], Any]] = {
        "norm": lambda eta: gk.batches.norm_test(mean, var, batch=n, eta=eta),
        "ip": lambda theta: gk.batches.inner_product_test(grads, theta=theta),
        "orth": lambda nu: gk.batches.orthogonality_test(grads, nu=nu),
    }
    got: dict[str, Any] = {
        f"{name}_batch": test(hyper[threshold])
        for (name, test), threshold in zip(tests.items(), ("eta", "theta", "nu"), strict=True)
    }
    square = gk.diagnostics.from_moments(gk.gradients.GradientMoments(mean, var, jnp.ones(()), jnp.int32(n)))["sq_big"]
    got["grad_norm_sq"] = square
    # With the threshold at which the reference's own variance asks for half an example less than 10^9, the answer is
    # 10^9: to half of 1e-9 the variance is known by it.
    variances = zip(tests.values(), ("variance_l1", "ip_variance", "orth_variance"), (1, 2, 1), strict=True)
    for test, variance, power in variances:
        threshold = np.sqrt(want[variance] / want["grad_norm_sq"] ** power / (1e9 - 0.5))
        got[variance] = want[variance] * (float(test(float(threshold))) / 1e9)
    return got


def _multigrid(golden: fixture.Golden) -> dict[str, Any]:
    hyper = dict(golden.meta["hyper"])
    plan = gk.batches.multigrid_schedule(hyper.pop("batch_size"), **hyper)
    return {
        "schedule": np.asarray(plan.rows, np.float64),
        "lr_steps": np.asarray(plan.boundaries),
        "lrs": np.asarray(plan.rates),
        "max_epoch": plan.max_epoch,
    }


# method -> (file -> name of an array -> what this library answers)
ANSWERS: dict[str, Callable[[fixture.Golden], dict[str, Any]]] = {
    "multigrid_schedule": _multigrid,
    "norm_test, inner_product_test, orthogonality_test": _batch_tests,
}

# method -> (hyper, order of this case or None -> aggregator)
AGGREGATORS: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "pcgrad": lambda hyper, order: gk.aggregation.pcgrad(order=order, **hyper),
    "upgrad": lambda hyper, order: gk.aggregation.upgrad(**hyper),
}


def _strategy(function: Callable[..., Any], *drop: str) -> Callable[[dict[str, Any]], Any]:
    """A file that names its inner optimizer by `inner`, and says how many workers ran."""

    def build(hyper: dict[str, Any]) -> Any:
        own = dict(hyper["inner"])
        inner = TRANSFORMATIONS[own.pop("name")](own)
        return function(inner, **_hyper(hyper, "inner", "workers", *drop))

    return build


def _diloco(hyper: dict[str, Any]) -> Any:
    assert len(hyper["fragments"]) == 1 and not hyper["delay"] and not hyper["mixing"]
    return _strategy(gk.parallel.diloco, "fragments", "delay", "mixing")(hyper)


# method -> (hyper -> transformation of one worker)
STRATEGIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "diloco": _diloco,
    "local_sgd": _strategy(gk.parallel.local_updates),
}
