"""Filters of the gradient that go in front of any optimizer."""

from gradkit.optimizers.filters.grokfast import GrokfastEmaState, grokfast_ema
from gradkit.optimizers.filters.perpgrad import perpgrad

__all__ = ["GrokfastEmaState", "grokfast_ema", "perpgrad"]
