"""Averages of the iterates."""

from gradkit.optimizers.averaging.polyak_average import IterateAverageState, params_ema, polyak_average
from gradkit.optimizers.averaging.proximal_ewma import ProximalEwmaState, proximal_ewma

__all__ = ["IterateAverageState", "ProximalEwmaState", "params_ema", "polyak_average", "proximal_ewma"]
