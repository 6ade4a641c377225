"""Methods whose step depends on the norms of a layer."""

from gradkit.optimizers.layerwise.lamb import lamb
from gradkit.optimizers.layerwise.lars import larc, lars
from gradkit.optimizers.layerwise.novograd import (
    ScaleByNovogradState,
    novograd,
    scale_by_novograd,
)
from gradkit.optimizers.layerwise.tvlars import tvlars

__all__ = [
    "ScaleByNovogradState",
    "lamb",
    "larc",
    "lars",
    "novograd",
    "scale_by_novograd",
    "tvlars",
]
