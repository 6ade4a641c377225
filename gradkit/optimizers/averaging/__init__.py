"""Averages of the iterates."""

from gradkit.optimizers.averaging.polyak_average import IterateAverageState, params_ema, polyak_average

__all__ = ["IterateAverageState", "params_ema", "polyak_average"]
