"""What this library answers to the files of schedules."""

from collections.abc import Callable
from typing import Any

import numpy as np

import gradkit as gk
from gradkit.schedules.refined import median_filter
from tests.golden import fixture
from tests.golden.translate import known


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


# method -> (hyper -> name of an array -> schedule whose values it holds)
SCHEDULES: dict[str, Callable[[dict[str, Any]], dict[str, Callable[[Any], Any]]]] = {
    "drop_rate_schedule": _drop_rate,
    "one_cycle": _one_cycle,
    "one_cycle_linear": _one_cycle,
    "power_schedule": lambda hyper: {"learning_rate": gk.schedules.power_schedule(**hyper)},
    "sgdr": lambda hyper: {"learning_rate": gk.schedules.sgdr(**hyper)},
    "warmup_polynomial_schedule": _warmup_polynomial,
    "wsd": _wsd,
}


# method -> (file -> name of an array -> what this library answers)
ANSWERS: dict[str, Callable[[fixture.Golden], dict[str, Any]]] = {
    "convex_schedule_bound": _bounds,
    "quadratic_synchronization": _rounds,
    "refined_schedule": _refined,
}
