"""The entrants of `record_race.py`: AdamW and what has set records since, each with two hyperparameters."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax

import gradkit as gk
from gradkit.leaves import by_role, groups
from gradkit.training.methods import warmup_cosine
from gradkit.training.scoring import best_point

FACTORS = (1 / 8, 1 / 2, 2.0, 8.0)
SIZED = {"scale": "match_rms_adamw"}
MATRICES = ("matrix", "conv", "expert")


class Entrant(NamedTuple):
    """One line of the table.

    Attributes:
      make: (learning rate or schedule, second hyperparameter, steps) -> transformation.
      centre: of the learning rates.
      schedule: whether the rate follows the cosine.
      second: what the second hyperparameter is called.
      values: its default, and the two other values of tuning.
      tuned: whether anything is.
    """

    make: Callable[[Any, Any, int], optax.GradientTransformation]
    centre: float = 5e-3
    schedule: bool = True
    second: str = "decay"
    values: tuple[float, float, float] = (0.0, 0.1, 0.4)
    tuned: bool = True


def _on_matrices(method: Callable[..., Any], rate: Any, decay: Any, steps: int) -> optax.GradientTransformation:
    del steps
    adamw = gk.adamw(rate, b2=0.95, weight_decay=decay)
    return groups([(by_role(*MATRICES), method(rate, weight_decay=decay))], default=adamw)


def _one_rate(method: Callable[..., Any], rate: Any, decay: Any, steps: int) -> optax.GradientTransformation:
    del steps
    return method(rate, weight_decay=decay, adam_weight_decay=decay, **SIZED)


def _cautious_muon(rate: Any, decay: Any, steps: int) -> optax.GradientTransformation:
    del steps
    muon = groups([(by_role(*MATRICES), gk.scale_by_muon(**SIZED))], default=gk.scale_by_adam(b2=0.95))
    return optax.chain(gk.cautious(muon), gk.add_decayed_weights(decay), gk.scale_by_learning_rate(rate))


def _scion(rate: Any, pull: Any, steps: int) -> optax.GradientTransformation:
    """With a pull of 1 this is the constrained Scion, with 0 the unconstrained one."""
    del steps
    return optax.chain(gk.scale_by_scion(), gk.add_decayed_weights(pull), gk.scale_by_learning_rate(rate))


def _muonh(rate: Any, ratio: Any, steps: int) -> optax.GradientTransformation:
    del steps
    return gk.muonh(rate, adam_learning_rate=lambda count: ratio * rate(count))


def _schedule_free(rate: Any, decay: Any, steps: int) -> optax.GradientTransformation:
    return gk.schedule_free_adamw(rate, weight_decay=decay, warmup_steps=max(1, steps // 20))


ENTRANTS: dict[str, Entrant] = {
    "adamw": Entrant(lambda rate, decay, steps: gk.adamw(rate, b2=0.95, weight_decay=decay)),
    "muon": Entrant(functools.partial(_one_rate, gk.muon)),
    "soap": Entrant(functools.partial(_on_matrices, gk.soap)),
    "normuon": Entrant(functools.partial(_one_rate, gk.normuon)),
    "scion": Entrant(_scion, 1e-3, second="pull", values=(1.0, 0.0, 5.0)),
    "muonh": Entrant(_muonh, 2e-2, second="ratio", values=(0.5, 0.15, 1.5)),
    "cautious_adamw": Entrant(lambda rate, decay, steps: gk.cautious_adamw(rate, b2=0.95, weight_decay=decay)),
    "cautious_muon": Entrant(_cautious_muon),
    "kl_soap": Entrant(functools.partial(_on_matrices, gk.kl_soap)),
    "schedule_free_adamw": Entrant(_schedule_free, schedule=False),
    "prodigy": Entrant(lambda rate, decay, steps: gk.prodigy(rate, weight_decay=decay), 1.0, schedule=False),
    "soap_muon": Entrant(functools.partial(_one_rate, functools.partial(gk.soap_muon, update_interval=10))),
    "prodigy at 1 with cosine": Entrant(
        lambda rate, decay, steps: gk.prodigy(rate, weight_decay=decay), 1.0, tuned=False
    ),
}


def factory_of(entrant: Entrant) -> Callable[..., optax.GradientTransformation]:
    """What a sweep calls with the two hyperparameters of a trial."""

    def factory(learning_rate: Any, second: Any, steps: int) -> optax.GradientTransformation:
        return entrant.make(warmup_cosine(learning_rate, steps) if entrant.schedule else learning_rate, second, steps)

    return factory


def chosen(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """The rate and the second hyperparameter of the best trial among these runs."""
    trials = list(dict.fromkeys((row["rate"], row["second"]) for row in rows))
    of = [[row for row in rows if (row["rate"], row["second"]) == trial] for trial in trials]
    arrived, finals = (np.array([[row[key] for row in runs] for runs in of]) for key in ("arrived", "final"))
    return trials[best_point(arrived, finals)]


def trials_of(entrant: Entrant, stage: str, known: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """The trials of a stage, of which the earlier stages are known."""
    default, *others = entrant.values
    if stage == "rates":
        return [(entrant.centre * factor, default) for factor in FACTORS]
    if not entrant.tuned:
        return [(entrant.centre, default)]
    if stage == "report":
        return [chosen([row for row in known if row["stage"] != "report"])]
    best, _ = chosen([row for row in known if row["stage"] == "rates"])
    place = [np.isclose(best, entrant.centre * factor) for factor in FACTORS].index(True)
    factors = {0: (1 / 4, 1 / 2), len(FACTORS) - 1: (2.0, 4.0)}.get(place, (1 / 2, 2.0))
    return [*((best * factor, default) for factor in factors), *((best, value) for value in others)]


def difference(a: np.ndarray, b: np.ndarray, most: float) -> tuple[float, float, float]:
    """Mean of what a has beyond b, and its central 95 % over all resamples of their pairs; `most` stands for a miss."""
    pairs = np.minimum(a, most) - np.minimum(b, most)
    means = np.array([np.mean(draw) for draw in itertools.product(pairs, repeat=len(pairs))])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(np.mean(pairs)), float(low), float(high)
