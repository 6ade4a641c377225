"""From the words of a golden file (`method`, `mode`, `hyper`) to what this library would run.

No entry knows a file: hyperparameters are handed on under their names here, and one that a method does not
have fails.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradkit as gk
from tests.golden import (
    answers,
    estimators,
    extras,
    fixture,
    measured,
    modern_adaptive,
    modern_free,
    modern_muon,
    modern_norms,
    parallel,
    schedules,
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


# method -> (file, state, parameters after and before the step) -> name of an array -> what it should be
MEASURED: dict[str, Callable[[fixture.Golden, Any, Any, Any], dict[str, Any]]] = {
    **measured.MEASURED,
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


# method -> (file, step, parameters) -> what its update is handed besides
EXTRAS: dict[str, Callable[[fixture.Golden, int, Any], dict[str, Any]]] = {
    **measured.EXTRAS,
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


# method -> (file -> the largest error of a program's run)
RUNS: dict[str, Callable[[fixture.Golden], float]] = {**second_shelf.RUNS, **modern_free.RUNS}

# method -> (hyper -> name of an array -> schedule whose values it holds)
SCHEDULES: dict[str, Callable[[dict[str, Any]], dict[str, Callable[[Any], Any]]]] = {
    **schedules.SCHEDULES,
    **modern_free.SCHEDULES,
}


# method -> (file -> name of an array -> what this library answers)
ANSWERS: dict[str, Callable[[fixture.Golden], dict[str, Any]]] = {
    **schedules.ANSWERS,
    **answers.ANSWERS,
    **modern_adaptive.ANSWERS,
}


# method -> (hyper, arrays -> some of the arrays, computed)
FUNCTIONS: dict[str, Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]] = {
    **answers.FUNCTIONS,
    **estimators.FUNCTIONS,
    **second_shelf.FUNCTIONS,
    **second_shelf_layers.FUNCTIONS,
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
