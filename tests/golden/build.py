"""From the words of a golden file (`method`, `mode`, `hyper`) to what this library would run.

No entry knows a file: hyperparameters are handed on under their names here, and one that a method does not
have fails.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from gradkit.schedules.refined import median_filter
from gradkit.transforms.weight_normalized import DirectionAndLength
from tests.golden import (
    estimators,
    extras,
    fixture,
    modern_adaptive,
    modern_free,
    modern_muon,
    modern_norms,
    parallel,
    second_shelf,
    second_shelf_layers,
)
from tests.golden.aggregators import AGGREGATORS as AGGREGATORS
from tests.golden.aggregators import WEIGHTS as WEIGHTS
from tests.golden.aggregators import bloop
from tests.golden.servers import SERVERS as SERVERS
from tests.golden.translate import (
    ARRAYS,
    adam_l2,
    agc,
    around,
    averaged,
    conda,
    direct,
    known,
    lars,
    low_rank,
    penalised,
    proximal_ewma,
    shampoo,
    through,
    tvlars,
    without,
)


def in_front(filter_: Callable[..., Any], *names: str) -> Callable[[dict[str, Any]], Any]:
    """A filter whose file names the optimizer behind it as `base`."""

    def build(hyper: dict[str, Any]) -> optax.GradientTransformation:
        own = {name: hyper[name] for name in names if name in hyper}
        base = hyper.get("base", "sgd")
        return optax.chain(filter_(**own), TRANSFORMATIONS[base](known(hyper, "base", *names)))

    return build


TRANSFORMATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    **modern_adaptive.TRANSFORMATIONS,
    **modern_free.TRANSFORMATIONS,
    **modern_muon.TRANSFORMATIONS,
    **modern_norms.TRANSFORMATIONS,
    **second_shelf.TRANSFORMATIONS,
    "adadelta": direct(gk.adadelta),
    "adagrad": direct(gk.adagrad),
    "adam": direct(gk.adam),
    "adam_l2": adam_l2,
    "adahessian": direct(gk.adahessian),
    "adamax": direct(gk.adamax),
    "adamp": direct(gk.adamp),
    "adamw": direct(gk.adamw),
    "adaptive_grad_clip then trace then learning rate": agc,
    "amsgrad": direct(gk.amsgrad),
    "conda": conda,
    "clip_top_coordinates": in_front(gk.clip_top_coordinates, "fraction", "threshold_scale"),
    "clip_adagrad": direct(gk.clip_adagrad),
    "clip_adam": direct(gk.clip_adam),
    "clip_adamd": direct(gk.clip_adamd),
    "ademamix": direct(gk.ademamix),
    "ano": direct(gk.ano),
    "anolog": direct(gk.anolog),
    "auon": direct(gk.auon),
    # The simple form of the code: Q stands at the inputs; where it starts from is in the file.
    "dion": lambda hyper: gk.dion(**{"side": "inputs", "key": 0, **known(hyper)}),
    "delayed_nesterov": direct(gk.parallel.delayed_nesterov),
    "dog": averaged(gk.dog),
    "dog_init_eta": averaged(gk.dog),
    "distributed_shampoo": direct(gk.distributed_shampoo),
    "diffgrad": penalised(gk.diffgrad),
    "fira_adamw": low_rank(gk.fira),
    "galore_adamw": low_rank(gk.galore),
    "grams": direct(gk.grams),
    "hybrid_auon": direct(gk.hybrid_auon),
    "gravity": direct(gk.gravity),
    "grokfast_ema": in_front(gk.grokfast_ema, "alpha", "lamb"),
    "induced_metric_log": direct(gk.induced_metric_log),
    "induced_metric_rms": direct(gk.induced_metric_rms),
    "induced_metric_sgd": direct(gk.induced_metric_sgd),
    "grokfast_ma": in_front(gk.grokfast_ma, "window_size", "lamb", "filter_type", "warmup"),
    "inna": direct(gk.inna),
    "innaprop": direct(gk.innaprop),
    "igt_adam": around(gk.implicit_gradient_transport, gk.adam, "delta", "tail_fraction"),
    "igt_heavy_ball": around(gk.implicit_gradient_transport, gk.sgd, "delta", "tail_fraction"),
    "kron": direct(gk.kron),
    "lamb": direct(gk.lamb),
    "lars": lars,
    "ldog": averaged(gk.ldog, layout=ARRAYS),
    "lion": direct(gk.lion),
    "nadam": direct(gk.nadam),
    "muon": direct(gk.muon),
    "mars_adamw": direct(gk.mars_adamw),
    "mars_exact": direct(gk.mars_exact),
    "mars_lion": without(gk.mars_lion, "b2", "eps"),
    "mars_shampoo": without(gk.mars_shampoo, "b2"),
    "momo": direct(gk.momo),
    "momo_adam": direct(gk.momo_adam),
    "momo_adam_star": direct(gk.momo_adam),
    "momo_star": direct(gk.momo),
    "novograd": direct(gk.novograd),
    "perpgrad": in_front(gk.perpgrad, "rescale", "eps"),
    "rmsprop": direct(gk.rmsprop),
    "proximal_ewma": proximal_ewma,
    "scaled_standardize_weight": through(gk.layers.scaled_standardize_weight),
    "standardize_weight": through(gk.layers.standardize_weight),
    "qhadam": direct(gk.qhadam),
    "qhm": penalised(gk.qhm),
    "ranger21": direct(gk.ranger21),
    "sania_adagrad_sqr": direct(gk.sania_adagrad_sqr),
    "sania_adam_sqr": direct(gk.sania_adam_sqr),
    "schedule_free_adamw": direct(gk.schedule_free_adamw),
    # The paper's correction is that of the rate; the package's file is of its later class.
    "schedule_free_adamw_paper": lambda hyper: gk.schedule_free_adamw(**known(hyper), bias_correction="learning_rate"),
    "schedule_free_radam": direct(gk.schedule_free_radam),
    "schedule_free_sgd": direct(gk.schedule_free_sgd),
    "shampoo": shampoo,
    "soap": direct(gk.soap),
    "sgd": direct(gk.sgd),
    "smb": direct(gk.smb),
    "sgdp": direct(gk.sgdp),
    # The official code adds eps to the denominator; the number of labels is in the curvature.
    "sophia_g": lambda hyper: gk.sophia_g(**{"denominator": "add", **known(hyper, "batch_size")}),
    "tvlars": tvlars,
    "weight_normalized(sgd)": lambda hyper: gk.weight_normalized(
        TRANSFORMATIONS[hyper.get("inner", "sgd")](known(hyper, "inner", "axis"))
    ),
    "xgrad_adam": direct(gk.xgrad_adam),
    "xgrad_adamw": direct(gk.xgrad_adamw),
    "xgrad_sgd": direct(gk.xgrad_sgd),
    **parallel.TRANSFORMATIONS,
}


# method -> transformation of a file that says more than its hyperparameters
OF_FILES: dict[str, Callable[[fixture.Golden], Any]] = {**modern_adaptive.OF_FILES}


def transformation(golden: fixture.Golden) -> Any:
    """What a file of a trajectory is of."""
    if golden.method in OF_FILES:
        return OF_FILES[golden.method](golden)
    return TRANSFORMATIONS[golden.method](golden.hyper())


def _dion_start(state: Any, reader: extras.Reader) -> Any:
    """Q of every leaf, found by its rows, of which no two leaves have the same number."""
    by_rows = {value.shape[0]: jnp.asarray(value) for value in reader.tree("q0").values()}
    return jax.tree_util.tree_map_with_path(
        lambda path, x: by_rows[x.shape[0]] if jax.tree_util.GetAttrKey("Q") in path else x, state
    )


# method -> (state, arrays of the file) -> the state to start from; and the state to go on from after the first step
STARTS: dict[str, Callable[[Any, extras.Reader], Any]] = {"dion": _dion_start, **parallel.STARTS}
SECOND_STARTS: dict[str, Callable[[Any, extras.Reader], Any]] = {**modern_muon.SECOND_STARTS}

# method -> arrays of its files that are handed to `update` under another name: array -> argument
HANDED: dict[str, dict[str, str]] = {"qk_clip": {"logits": "max_attention_logits"}}


def _effective(function: Callable[..., Any]) -> Callable[[fixture.Golden, Any, Any, Any], dict[str, Any]]:
    """The weights that a layer used at a step: the function of those before it."""
    own = ("eps", "gain")

    def show(golden: fixture.Golden, state: Any, x: Any, before: Any) -> dict[str, Any]:
        given = {name: value for name, value in golden.hyper().items() if name in own}
        return {"effective_last": {leaf: function(w, axis=0, **given) for leaf, w in before.items()}}

    return show


def _direction_and_length(golden: fixture.Golden, state: Any, x: Any, before: Any) -> dict[str, Any]:
    """v and g of weight normalization; a file has g without the axis that is summed."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, DirectionAndLength))
    z = next(node for node in nodes if isinstance(node, DirectionAndLength))
    return {"v": z.v, "g": {leaf: g[0] for leaf, g in z.g.items()}}


def _lower_bound(golden: fixture.Golden, state: Any, x: Any, before: Any) -> dict[str, Any]:
    return {"lower_bound": gk.find(state, "bound")}


def _dog_rates(golden: fixture.Golden, state: Any, x: Any, before: Any) -> dict[str, Any]:
    """The step sizes, per leaf in the order of the file, and the average after the step."""
    found = gk.find(state, "step_size")
    sizes = [jnp.ravel(found[leaf])[0] if isinstance(found, dict) else found for leaf in golden.meta["leaves"]]
    return {"eta": jnp.stack(sizes), "avg": gk.averaged_params(state, x)}


# method -> (file, state, parameters after and before the step) -> name of an array -> what it should be
MEASURED: dict[str, Callable[[fixture.Golden, Any, Any, Any], dict[str, Any]]] = {
    **dict.fromkeys(("dog", "dog_init_eta", "ldog"), _dog_rates),
    **dict.fromkeys(("momo", "momo_star", "momo_adam", "momo_adam_star"), _lower_bound),
    "scaled_standardize_weight": _effective(gk.layers.scaled_standardize_weight),
    "standardize_weight": _effective(gk.layers.standardize_weight),
    "weight_normalized(sgd)": _direction_and_length,
    **modern_free.MEASURED,
    **modern_muon.MEASURED,
    **parallel.MEASURED,
}

# Arrays of a file that say nothing more: method -> beginnings of their names.
REPEATED = {
    # The same projection at every step until the next.
    "apollo": ("projection_t",),
    # The factors after the last step: every update but that of the last step follows from them.
    "kron": ("q_final/",),
    # The weights of iterates, which are the default.
    "contra_muon": ("soft_weights",),
    # The norms of gradients that the file has.
    "skip_step": ("grad_norm",),
    "zclip": ("norm",),
}


def unread(method: str, array: str) -> bool:
    """Whether an array of a file need not be read."""
    return array.startswith(REPEATED.get(method, ("\0",)))


# method -> transformation of a file that brings a problem of its own
PROBLEMS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nonconvex_accelerated_gradient": lambda hyper: gk.nonconvex_accelerated_gradient(
        **hyper, mask={"intercept": False, "coef": True}
    ),
}

# method -> transformation of a file whose loss is that of step 0 at every step
FIXED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "gradient_regularized_newton": direct(gk.gradient_regularized_newton),
}

# method -> transformation of an adapter whose dense gradient a file has
ADAPTERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "lora_pro_adam": lambda hyper: gk.lora_pro_adam(
        damping=hyper["delta"], **known(hyper, "delta", "rank", "b_init_zero")
    ),
}

# Methods that take the loss and its gradient at a second point.
CALLS_BACK = ("mars_exact", "smb")


def _hessian_diag(golden: fixture.Golden, t: int, x: Any) -> dict[str, Any]:
    """The Hessian of the loss is diagonal: its product with ones is its diagonal."""
    ones = {leaf: jnp.ones_like(value) for leaf, value in x.items()}
    grad = jax.grad(lambda x: fixture.loss(golden, t, x))
    return {"curvature": jax.jvp(grad, (x,), (ones,))[1]}


def _sampled_labels(golden: fixture.Golden, t: int, x: Any) -> dict[str, Any]:
    """The gradient of sampled labels of step t is drawn as that of step 1000 + t; B of them were sampled."""
    del x
    labels = golden.meta["hyper"].get("batch_size", 1)
    return {"curvature": {leaf: jnp.asarray(labels * g**2) for leaf, g in fixture.grads(golden, 1000 + t).items()}}


def _probe(golden: fixture.Golden, t: int, x: Any) -> dict[str, Any]:
    """The random tensors of step t are drawn as the gradients of step 2000 + t."""
    del x
    return {"probe": {leaf: jnp.asarray(v) for leaf, v in fixture.grads(golden, 2000 + t).items()}}


# method -> (file, step, parameters) -> what its update is handed besides
EXTRAS: dict[str, Callable[[fixture.Golden, int, Any], dict[str, Any]]] = {
    "adahessian": _hessian_diag,
    "kron": _probe,
    "sophia_g": _sampled_labels,
}


def _sam(hyper: dict[str, Any]) -> tuple[Callable[..., Any], Any]:
    own = ("rho", "adaptive", "eta")
    source = gk.gradients.sam
    kwargs = {"rho": hyper["rho"]}
    if hyper.get("adaptive"):
        source, kwargs = gk.gradients.asam, {**kwargs, "eta": hyper["eta"]} if "eta" in hyper else kwargs
    return lambda loss_fn: source(loss_fn, **kwargs), gk.sgd(**known(hyper, *own))


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


def _bounds(golden: fixture.Golden) -> dict[str, Any]:
    """Per schedule; the last of its rates enters nowhere, and the best rate is that of the schedule of peak 1."""
    extra, got = golden.extra(), {}
    for name in dict.fromkeys(array.split("/")[0] for array in extra):
        rates, norms, distance = (extra[f"{name}/{array}"] for array in ("learning_rates", "grad_norms", "distance"))
        norms = norms if norms.ndim == 0 else norms[: len(rates) - 1]
        used = rates[:-1]
        got |= {f"{name}/{given}": extra[f"{name}/{given}"] for given in ("learning_rates", "grad_norms", "distance")}
        got[f"{name}/bound"] = gk.diagnostics.bound_curve(used, norms, distance)
        got[f"{name}/terms"] = gk.diagnostics.convex_schedule_bound(used, norms, distance, terms=True)
        got[f"{name}/optimal"] = gk.diagnostics.optimal_base_rate(used / used.max(), norms, distance)
    return got


def _refined(golden: fixture.Golden) -> dict[str, Any]:
    """The file divides by the maximum; what the filter does is in the multipliers of l1 norms, up to a factor."""
    norms, own = golden.extra()["grad_norms"], golden.hyper()
    return {
        "grad_norms": norms,
        "smoothed": median_filter(norms, 2 * (int(own["smoothing"] * len(norms)) // 2) + 1),
        "weights_sgd": gk.schedules.refined_schedule(norms, norm="l2", **own),
        "weights_adam": gk.schedules.refined_schedule(norms, norm="l1", **own),
    }


def _rounds(golden: fixture.Golden) -> dict[str, Any]:
    """Round after round, to the last step; the rate of every step is in the file."""
    rates, hyper = golden.extra()["learning_rate"], golden.hyper()
    own = known(hyper, "peak_value", "end_value")
    period = gk.parallel.quadratic_synchronization(gk.schedules.array_schedule(rates), **own)
    lengths = []
    while sum(lengths) < hyper["total_steps"]:
        lengths.append(int(period(sum(lengths))))
    return {"learning_rate": rates, "round_length": np.array(lengths), "sync_after": np.cumsum(lengths)}


# method -> (file -> the largest error of a program's run)
RUNS: dict[str, Callable[[fixture.Golden], float]] = {**second_shelf.RUNS, **modern_free.RUNS}

# method -> (hyper -> name of an array -> schedule whose values it holds)
SCHEDULES: dict[str, Callable[[dict[str, Any]], dict[str, Callable[[Any], Any]]]] = {
    **modern_free.SCHEDULES,
    "drop_rate_schedule": _drop_rate,
    "one_cycle": _one_cycle,
    "one_cycle_linear": _one_cycle,
    "power_schedule": lambda hyper: {"learning_rate": gk.schedules.power_schedule(**hyper)},
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
        "norm": lambda eta: gk.batches.norm_test(mean, var, batch_size=n, eta=eta),
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


def _dual_descent(golden: fixture.Golden) -> dict[str, Any]:
    """Step after step on the rows of the file; the weights are the parameters, without nesterov."""
    extra, own = golden.extra(), golden.hyper()
    K, targets, noise = jnp.asarray(extra["kernel"]), jnp.asarray(extra["targets"]), own["noise_variance"]
    tx = gk.stochastic_dual_descent(**known(own, "noise_variance"))

    def step(carry: Any, idx: jax.Array) -> Any:
        alpha, state = carry
        updates, state = tx.update(gk.dual_gradient(K[idx], alpha, targets, noise, idx), state, alpha)
        alpha = alpha + updates
        return (alpha, state), (alpha, gk.eval_params(state, alpha))

    start = jnp.zeros_like(targets)
    _, (alphas, averages) = jax.lax.scan(step, (start, tx.init(start)), jnp.asarray(extra["indices"]))
    given = {name: extra[name] for name in ("kernel", "targets", "indices")}
    return {**given, "alpha": alphas, "alpha_average": averages}


# method -> (file -> name of an array -> what this library answers)
ANSWERS: dict[str, Callable[[fixture.Golden], dict[str, Any]]] = {
    **modern_adaptive.ANSWERS,
    "convex_schedule_bound": _bounds,
    "multigrid_schedule": _multigrid,
    "norm_test, inner_product_test, orthogonality_test": _batch_tests,
    "quadratic_synchronization": _rounds,
    "refined_schedule": _refined,
    "stochastic_dual_descent": _dual_descent,
}


def _tract(hyper: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    linear = partial(gk.layers.tract_linear, damping=hyper["damping"])
    conv = partial(gk.layers.tract_conv, strides=hyper["stride"], padding=hyper["padding"], damping=hyper["damping"])
    out = {}
    for form in ("wide", "tall"):
        x, w, b = (jnp.asarray(extra[f"{form}/{name}"]) for name in ("x", "grad_kernel", "grad_bias"))
        _, back = jax.vjp(lambda w, b, x=x: linear(x, w, b), jnp.ones_like(w), jnp.ones_like(b))
        dw, db = back(jnp.asarray(extra[f"{form}/grad_out"]))
        out |= {f"{form}/grad_kernel": dw, f"{form}/grad_bias": db}
    k = jnp.asarray(extra["conv/grad_kernel_hwio"])
    _, conv_back = jax.vjp(lambda k: conv(jnp.asarray(extra["conv/x_nhwc"]), k), jnp.ones_like(k))
    (dk,) = conv_back(jnp.asarray(extra["conv/grad_out_nhwc"]))
    return {**out, "conv/grad_kernel_hwio": dk}


def _farms(hyper: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    own = dict(hyper)
    tail = {"xmin_pos": own.pop("xmin_pos"), "fitting": own.pop("pl_fitting")}
    out = {}
    for name in (name.removeprefix("matrix/") for name in arrays if name.startswith("matrix/")):
        eigs = gk.diagnostics.farms_eigs(arrays[f"matrix/{name}"], **own)
        found = gk.diagnostics.powerlaw_alpha(eigs, **tail)
        out |= {f"eigs/{name}": eigs, f"output/{name}": jnp.stack([found.alpha, found.distance])}
    return out


# method -> (hyper, arrays -> some of the arrays, computed)
FUNCTIONS: dict[str, Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]] = {
    **estimators.FUNCTIONS,
    **second_shelf.FUNCTIONS,
    **second_shelf_layers.FUNCTIONS,
    "farms": _farms,
    "tract": _tract,
    "bloop": bloop,
}

# Arrays of a case that an aggregator is built with; the others are handed to it step by step.
CONSTRUCTED = ("order",)
# method -> worker -> what is added to the seed of the file for its gradients. Default 1000 (worker + 1).
WORKER_SEEDS: dict[str, Callable[[int], int]] = {"deep_gradient_compression": lambda worker: 1000 * worker}
# Methods of whose files with one worker the gradients are those of the seed itself.
ALONE = ("demo",)


def _strategy(function: Callable[..., Any], *drop: str) -> Callable[[dict[str, Any]], Any]:
    """A file that names its inner optimizer by `inner`, and says how many workers ran."""

    def build(hyper: dict[str, Any]) -> Any:
        own = dict(hyper["inner"])
        inner = TRANSFORMATIONS[own.pop("name")](own)
        return function(inner, **known(hyper, "inner", "workers", *drop))

    return build


def _diloco(hyper: dict[str, Any]) -> Any:
    assert len(hyper["fragments"]) == 1 and not hyper["delay"] and not hyper["mixing"]
    return _strategy(gk.parallel.diloco, "fragments", "delay", "mixing")(hyper)


def _streaming_diloco(hyper: dict[str, Any]) -> Any:
    """A file lists the leaves of each fragment."""
    labels = {leaf: f for f, leaves in enumerate(hyper["fragments"]) for leaf in leaves}
    return _strategy(gk.parallel.streaming_diloco)({**hyper, "fragments": labels})


# method -> (hyper -> transformation of one worker)
STRATEGIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "diloco": _diloco,
    "local_sgd": _strategy(gk.parallel.local_updates),
    **parallel.STRATEGIES,
    "streaming_diloco": _streaming_diloco,
}

# method -> (file -> the largest error of what its table of events makes of its own data)
EVENTS: dict[str, Callable[[fixture.Golden], float]] = parallel.EVENTS
