"""Averages of the iterates."""

from gradkit.optimizers.averaging.gpa import gpa, gpa_adamw, gpa_mu_x
from gradkit.optimizers.averaging.iterate_moving_average import iterate_moving_average
from gradkit.optimizers.averaging.polyak_average import params_ema, polyak_average
from gradkit.optimizers.averaging.proximal_ewma import ProximalEwmaState, proximal_ewma
from gradkit.optimizers.averaging.schedule_free import (
    ScaleBySecondMomentState,
    schedule_free_adamw,
    schedule_free_radam,
    schedule_free_sgd,
)

__all__ = [
    "ProximalEwmaState",
    "ScaleBySecondMomentState",
    "gpa",
    "gpa_adamw",
    "gpa_mu_x",
    "iterate_moving_average",
    "params_ema",
    "polyak_average",
    "proximal_ewma",
    "schedule_free_adamw",
    "schedule_free_radam",
    "schedule_free_sgd",
]
